"""Histograms at the right steps, and a training that is none the wiser."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attnorm.config import compose
from attnorm.errors import UserError
from attnorm.tracking import open_tracker
from attnorm.training.histograms import HistogramRecorder
from tests.training.memory import make_config, make_trainer


def _train(folder: Path, every: int | None) -> dict[str, torch.Tensor]:
    """Two epochs of three steps, two micro-batches of ten images each, and their evaluations."""
    config = make_config(epochs=2, grad_accumulation=2, **{"optim.lr": 0.5})
    trainer = make_trainer(folder, config)
    tracker = open_tracker(folder, enabled=True, console=Console(file=io.StringIO()))
    if every is not None:
        HistogramRecorder(trainer.state.model, tracker, every, step=lambda: trainer.state.step)
    trainer.fit(tracker)
    return {name: value.clone() for name, value in trainer.state.model.state_dict().items()}


def test_mixtures_scales_and_offsets_are_recorded_at_every_nth_step(tmp_path: Path) -> None:
    watched = _train(tmp_path / "watched", every=2)
    sizes = {"histograms": 0}
    events = EventAccumulator(str(tmp_path / "watched" / "tensorboard"), size_guidance=sizes)
    events.Reload()
    # AN is layer 1 of the network, BN layer 4; convolutions and the head have no histograms.
    expected = {"lambda/1", "gamma/1", "beta/1", "gamma/4", "beta/4"}
    assert set(events.Tags()["histograms"]) == expected
    mixtures = events.Histograms("lambda/1")
    assert [event.step for event in mixtures] == [2, 4, 6]
    last = mixtures[-1].histogram_value
    assert last.num == 10 * 3, "the images of one micro-batch × K"
    assert last.min >= 0
    assert last.max <= 1
    assert events.Histograms("gamma/1")[-1].histogram_value.num == 3 * 8, "K × C"
    assert events.Histograms("gamma/4")[-1].histogram_value.num == 16

    alone = _train(tmp_path / "alone", every=None)
    assert all(torch.equal(value, alone[name]) for name, value in watched.items())


@pytest.mark.parametrize("every", ["0", "-3"])
def test_impossible_settings_are_refused(every: str) -> None:
    with pytest.raises(UserError, match=f"tracking.histograms_every={every}"):
        compose([f"tracking.histograms_every={every}"])
    with pytest.raises(UserError, match=r"tracking\.tensorboard=true"):
        compose(["tracking.histograms_every=5", "tracking.tensorboard=false"])
