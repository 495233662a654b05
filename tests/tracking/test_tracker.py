"""One record for every sink; nothing from a rank that does not write."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from attnorm.tracking import Sink, Tracker, open_tracker


class Notes(Sink):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self.told.append(("record", kind, step, dict(values)))

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        self.told.append(("histogram", tag, values.tolist(), step))

    def text(self, tag: str, text: str) -> None:
        self.told.append(("text", tag, text))

    def rewind(self, step: int, epoch: int) -> None:
        self.told.append(("rewind", step, epoch))

    def close(self) -> None:
        self.told.append(("close",))


@pytest.fixture
def plain() -> Console:
    """A console that is no terminal."""
    return Console(file=io.StringIO())


def test_every_sink_is_told_everything_in_order(plain: Console) -> None:
    sinks = [Notes(), Notes()]
    tracker = Tracker([*sinks, Sink()], plain)
    tracker.start(2)
    tracker.text("config", "a: 1")
    tracker.record("event", 0, {"event": "started"})
    tracker.histogram("weights", torch.tensor([1.0, 2.0]), 1)
    tracker.train(1, {"speed": 3.0}, status="fast", line="step 1 fast")
    tracker.progress(1, 2, 1, 5)
    tracker.record("eval", 5, {"epoch": 1, "error": 4.0})
    tracker.rewind(3, 0)
    tracker.close()
    expected = [
        ("text", "config", "a: 1"),
        ("record", "event", 0, {"event": "started"}),
        ("histogram", "weights", [1.0, 2.0], 1),
        ("record", "train", 1, {"speed": 3.0}),
        ("record", "eval", 5, {"epoch": 1, "error": 4.0}),
        ("rewind", 3, 0),
        ("close",),
    ]
    assert [sink.told for sink in sinks] == [expected, expected]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_distribution_that_is_not_finite_is_left_out(bad: float, plain: Console) -> None:
    sink = Notes()
    Tracker([sink], plain).histogram("weights", torch.tensor([1.0, bad]), 1)
    assert sink.told == []


def test_a_plain_console_gets_a_line_for_each_interval(
    plain: Console, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker([], plain)
    tracker.start(2)
    with caplog.at_level(logging.INFO):
        tracker.train(1, {}, status="short", line="a whole line")
    assert caplog.messages == ["a whole line"]


def test_other_ranks_write_and_show_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True)
    # The service is not even looked for: where it is missing, rank 0 says so alone.
    tracker = open_tracker(tmp_path, enabled=False, console=console, service="wandb")
    assert (tracker.enabled, tracker.console) == (False, console)
    with caplog.at_level(logging.INFO):
        tracker.start(2)
        tracker.text("config", "a: 1")
        tracker.histogram("weights", torch.ones(3), 1)
        tracker.train(1, {"speed": 1.0}, status="fast", line="fast")
        tracker.progress(1, 2, 1, 5)
        tracker.record("eval", 1, {"epoch": 1})
        tracker.rewind(0, 0)
        tracker.close()
    assert list(tmp_path.iterdir()) == []
    assert output.getvalue() == ""
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("tensorboard", "expected"),
    [(True, {"metrics.jsonl", "tensorboard"}), (False, {"metrics.jsonl"})],
)
def test_a_run_folder_gets_the_files_that_were_asked_for(
    tensorboard: bool, expected: set[str], tmp_path: Path, plain: Console
) -> None:
    tracker = open_tracker(tmp_path, enabled=True, console=plain, tensorboard=tensorboard)
    tracker.record("event", 0, {"event": "started"})
    tracker.text("config", "a: 1")
    tracker.histogram("weights", torch.ones(3), 1)
    tracker.close()
    assert {path.name for path in tmp_path.iterdir()} == expected
