"""What is recorded of a run, under which names, and the lines that a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from attnorm.training.meter import Interval
from attnorm.training.task import Metric, Metrics, Score, Task

# TensorBoard's pages: what the run learns, and how fast. A task adds its metrics to the first.
_TRAIN_TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "scaler_scale": "train/scaler_scale",
    "skipped_steps": "train/skipped_steps",
    "images_per_second": "speed/images_per_second",
    "data_wait": "speed/data_wait",
    "slowest_data_wait": "speed/slowest_data_wait",
    "forward": "speed/forward",
    "backward": "speed/backward",
    "communication": "speed/communication",
    "optimizer": "speed/optimizer",
    "peak_memory_mib": "speed/peak_memory_mib",
}


def tags(task: Task) -> dict[str, dict[str, str]]:
    """By kind of record, the scalar that each of its values becomes."""
    own = {name: f"train/{name}" for name in task.train_metrics}
    evaluated = {name: f"val/{name}" for name in task.eval_metrics}
    averaged = {f"ema_{name}": f"val/ema_{name}" for name in task.eval_metrics}
    return {"train": {**_TRAIN_TAGS, **own}, "eval": {**evaluated, **averaged}}


def speeds(interval: Interval) -> dict[str, float]:
    """How fast an interval was, and the shares of its time."""
    shares = dict(interval.shares)
    return {
        "images_per_second": interval.images_per_second,
        "data_wait": shares.pop("data"),
        "slowest_data_wait": interval.slowest_data,
        **shares,
    }


def in_lines(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Those that lines have room for."""
    return {name: metric for name, metric in metrics.items() if metric.in_lines}


def status(task: Task, values: Mapping[str, Any]) -> str:
    """A training interval, short enough for a bar on 80 columns."""
    own = "".join(
        f" {m.short} {m.text(values[n], 1)}" for n, m in in_lines(task.train_metrics).items()
    )
    return (
        f"loss {values['loss']:.3f}{own} lr {values['lr']:.2g}"
        f" {values['images_per_second']:,.0f} img/s"
        f" eta {timedelta(seconds=round(values['eta_seconds']))}"
    )


def train_line(task: Task, values: Mapping[str, Any]) -> str:
    """A training interval, on a line of its own."""
    own = "".join(
        f"  {m.label} {m.text(values[n], 1)}" for n, m in in_lines(task.train_metrics).items()
    )
    return (
        f"epoch {values['epoch']}/{values['epochs']} step {values['step_in_epoch']}"
        f"/{values['steps_per_epoch']}  loss {values['loss']:.3f}{own}  lr {values['lr']:.4g}"
        f"  {values['images_per_second']:,.0f} img/s"
        f"  eta {timedelta(seconds=round(values['eta_seconds']))}"
    )


def score_line(task: Task, scores: Sequence[Score]) -> str:
    """The newest of ``scores``, and the best, in one line."""
    last, best = scores[-1], min(scores, key=lambda score: score.rank(task))
    headline = task.eval_metrics[task.headline]
    parts = [f"{m.label} {m.text(last.metrics[n])}" for n, m in in_lines(task.eval_metrics).items()]
    averaged = last.metrics.get(f"ema_{task.headline}")
    if averaged is not None:
        parts.append(f"EMA {headline.label} {headline.text(averaged)}")
    return (
        f"val {'  '.join(parts)}  (best {headline.label}"
        f" {headline.text(best.metrics[task.headline])} after epoch {best.epoch})"
    )


def with_average(evaluation: Metrics, averaged: Metrics | None) -> Metrics:
    """Metrics of the weights, and those of their moving average as ``ema_…``."""
    return {**evaluation, **{f"ema_{name}": value for name, value in (averaged or {}).items()}}
