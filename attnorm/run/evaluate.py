"""A checkpoint's metrics on a whole validation set, on any number of processes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from attnorm import distributed
from attnorm.classification import Classification
from attnorm.errors import UserError
from attnorm.run.trained import Trained, load_trained
from attnorm.training.task import Metric, Metrics

_MOST_COLUMNS = 8


@dataclass(frozen=True)
class Evaluated:
    """A checkpoint's model, and what its task measured."""

    trained: Trained
    metrics: Metrics


def evaluate_checkpoint(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    weights: str = "model",
    allow: Collection[str] = (),
    labels: str = "original",
    classes: str | None = None,
    device: str = "auto",
    timeout_minutes: float = 10.0,
) -> Evaluated:
    """Evaluate the checkpoint at ``path`` with the processes of this launch.

    Args:
        overrides, weights, allow: as in :func:`attnorm.run.trained.load_trained`.
        labels, classes: as in :meth:`attnorm.classification.Classification.grade_by`.
        timeout_minutes: how long processes wait for one that does not answer.

    Raises:
        UserError: the checkpoint, the data, the labels or the device cannot be had.
    """
    process = distributed.current_process(device)
    overrides = [*overrides, f"device={device}"]
    with distributed.process_group(process, timeout_minutes):
        trained = distributed.together(
            lambda: load_trained(path, overrides, weights=weights, allow=allow)
        )
        if labels != "original" or classes is not None:
            distributed.together(lambda: _grade_by(trained, labels, classes))
        with closing(distributed.together(trained.loader)) as loader:
            metrics = trained.task.evaluate(
                trained.model, loader, trained.precision, process.device
            )
    return Evaluated(trained, metrics)


def _grade_by(trained: Trained, labels: str, classes: str | None) -> None:
    if not isinstance(trained.task, Classification):
        name = trained.config.task.name
        raise UserError(f"labels= and classes= are for task=classification, not {name}.")
    trained.task.grade_by(trained.config, labels, classes)


def show(evaluated: Evaluated, console: Console) -> None:
    """The result as a table."""
    title = str(evaluated.trained.path)
    console.print(results_table(title, evaluated.trained.task.eval_metrics, evaluated.metrics))


def results_table(title: str, named: Mapping[str, Metric], metrics: Metrics) -> Table:
    """Metrics beside each other; where they are many, one below the other."""
    texts = {metric.label: metric.text(metrics[key]) for key, metric in named.items()}
    texts["images"] = f"{metrics['images']:,}"
    table = Table(title=title, title_justify="left")
    if len(texts) <= _MOST_COLUMNS:
        for label in texts:
            table.add_column(label, justify="right")
        table.add_row(*texts.values())
        return table
    table.add_column("metric")
    table.add_column("value", justify="right")
    for row in texts.items():
        table.add_row(*row)
    return table
