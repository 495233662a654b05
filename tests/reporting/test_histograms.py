"""Histograms in TensorBoard at the right steps, and a run that is none the wiser."""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from attnorm import distributed
from attnorm.errors import UserError
from attnorm.reporting.histograms import HistogramRecorder
from attnorm.tracking import Tracker
from tests.conftest import SHORT, compose_config

TINY = [*SHORT, "norm=an", "loader=synthetic", "loader.images=32", "batch_size=8", "optim.lr=0.01"]


def _train(folder: Path, every: int | None) -> dict[str, torch.Tensor]:
    config = train.prepare(compose_config(*TINY, "grad_accumulation=2"))
    process = distributed.current_process("cpu")
    folder.mkdir()
    with ExitStack() as loaders:
        trainer = train.build_trainer(config, process, folder, loaders)
        tracker = Tracker(folder, enabled=True, console=Console(file=io.StringIO()))
        if every is not None:
            HistogramRecorder(trainer.state.model, tracker, every, step=lambda: trainer.state.step)
        trainer.fit(tracker)
    return {name: value.clone() for name, value in trainer.state.model.state_dict().items()}


def test_mixtures_scales_and_offsets_are_recorded_at_every_nth_step(tmp_path: Path) -> None:
    """Two epochs of two steps, two micro-batches each."""
    watched = _train(tmp_path / "watched", every=2)
    sizes = {"histograms": 0}
    events = EventAccumulator(str(tmp_path / "watched" / "tensorboard"), size_guidance=sizes)
    events.Reload()
    tags = events.Tags()["histograms"]
    assert sum(tag.startswith("lambda/") for tag in tags) == 17
    assert {"gamma/conv_head", "gamma/bn1", "beta/bn2"} & set(tags) == {"gamma/bn1", "beta/bn2"}
    weights = events.Histograms("lambda/blocks.6.0.bn2.norm")
    assert [event.step for event in weights] == [2, 4]
    last = weights[-1].histogram_value
    assert last.num == 8 * 10, "the images of one micro-batch × K"
    assert last.min >= 0
    assert last.max <= 1
    scale = events.Histograms("gamma/blocks.6.0.bn2.norm")[-1].histogram_value
    assert scale.num == 10 * 960

    alone = _train(tmp_path / "alone", every=None)
    assert all(torch.equal(value, alone[name]) for name, value in watched.items())


@pytest.mark.parametrize("every", ["0", "-3"])
def test_impossible_settings_are_refused(every: str) -> None:
    with pytest.raises(UserError, match=f"tracking.histograms_every={every}"):
        compose_config(f"tracking.histograms_every={every}")
    with pytest.raises(UserError, match=r"tracking\.tensorboard=true"):
        compose_config("tracking.histograms_every=5", "tracking.tensorboard=false")
