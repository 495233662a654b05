"""``metrics.jsonl`` holds every step once, whatever was interrupted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from attnorm.tracking.jsonl import JsonLines


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _positions(path: Path) -> list[tuple[str, int]]:
    return [(line["kind"], line["step"]) for line in _lines(path)]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Two epochs of three steps, and an event that came after them."""
    sink = JsonLines(tmp_path / "metrics.jsonl")
    for step in range(1, 7):
        sink.record("train", step, {"speed": 1.5})
        if step % 3 == 0:
            sink.record("eval", step, {"epoch": step // 3, "error": 2.5})
    sink.record("event", 6, {"event": "interrupted"})
    return tmp_path / "metrics.jsonl"


def test_a_line_has_kind_step_time_and_the_values_as_they_are(tmp_path: Path) -> None:
    before = time.time()
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.record("train", 7, {"speed": 1.5, "norm": None})
    (line,) = _lines(tmp_path / "metrics.jsonl")
    assert line.pop("time") == pytest.approx(before, abs=5)
    assert line == {"kind": "train", "step": 7, "speed": 1.5, "norm": None}


def test_a_continued_run_drops_what_it_will_record_again(recorded: Path) -> None:
    """Continued within the second epoch: events stay, since they say what happened."""
    JsonLines(recorded, start_step=4, start_epoch=1)
    expected = [("train", 1), ("train", 2), ("train", 3), ("eval", 3), ("train", 4), ("event", 6)]
    assert _positions(recorded) == expected


def test_an_epoch_that_was_not_evaluated_yet_is_evaluated_again(recorded: Path) -> None:
    """Stopped between an epoch's last step and the checkpoint after its evaluation."""
    JsonLines(recorded, start_step=6, start_epoch=1)
    assert ("eval", 6) not in _positions(recorded)
    assert ("train", 6) in _positions(recorded)


def test_a_run_that_begins_anew_keeps_events_alone(recorded: Path) -> None:
    JsonLines(recorded)
    assert _positions(recorded) == [("event", 6)]


def test_a_line_cut_short_by_a_kill_is_dropped_and_the_next_one_whole(recorded: Path) -> None:
    whole = recorded.read_text()
    recorded.write_text(whole + '{"kind": "train", "step": 7, "lo')
    sink = JsonLines(recorded, start_step=6, start_epoch=2)
    assert recorded.read_text() == whole
    sink.record("train", 7, {})
    assert _positions(recorded)[-1] == ("train", 7)


def test_rewinding_drops_lines_while_recording_goes_on(recorded: Path) -> None:
    sink = JsonLines(recorded, start_step=6, start_epoch=2)
    sink.rewind(5, 1)
    sink.record("event", 5, {"event": "rewound"})
    sink.record("train", 6, {"speed": 9.0})
    assert _positions(recorded)[-4:] == [("train", 5), ("event", 6), ("event", 5), ("train", 6)]


def test_histograms_and_texts_leave_no_line(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.histogram("weights", torch.ones(3), 1)
    sink.text("config", "a: 1")
    sink.close()
    assert list(tmp_path.iterdir()) == []
