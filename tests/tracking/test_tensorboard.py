"""What TensorBoard itself reads from a run folder."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from attnorm.tracking.tensorboard import TensorBoard

TAGS = {"train": {"rate": "train/rate", "norm": "train/norm"}, "eval": {"error": "val/error"}}
CONFIG = {"arch": {"name": "net"}, "norm": {"components": 5}, "seed": 3}


@pytest.fixture
def sink(tmp_path: Path) -> Callable[..., TensorBoard]:
    def open_sink(**options: Any) -> TensorBoard:
        return TensorBoard(tmp_path, **{"tags": TAGS, "config": {}, "hparams": (), **options})

    return open_sink


def _read(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"histograms": 0}).Reload()


def test_values_with_a_tag_become_scalars_and_others_do_not(
    sink: Callable[..., TensorBoard], tmp_path: Path
) -> None:
    board = sink()
    board.record("train", 4, {"rate": 0.5, "norm": None, "untagged": 1.0})
    board.record("eval", 5, {"error": 12.5, "epoch": 1})
    board.record("event", 5, {"rate": 1.0})
    board.close()
    events = _read(tmp_path)
    assert events.Tags()["scalars"] == ["train/rate", "val/error"]
    assert [(event.step, event.value) for event in events.Scalars("train/rate")] == [(4, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("val/error")] == [(5, 12.5)]


def test_a_picture_is_the_one_that_was_drawn(
    sink: Callable[..., TensorBoard], tmp_path: Path
) -> None:
    pixels = torch.arange(24, dtype=torch.uint8).view(2, 4, 3)
    board = sink()
    board.picture("val/7", pixels, 3)
    board.close()
    (shown,) = _read(tmp_path).Images("val/7")
    assert (shown.step, shown.height, shown.width) == (3, 2, 4)
    decoded = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)))
    assert decoded.tolist() == pixels.tolist()


def test_histograms_have_their_step_and_texts_keep_their_lines(
    sink: Callable[..., TensorBoard], tmp_path: Path
) -> None:
    board = sink()
    board.histogram("weights", torch.tensor([[0.0, 1.0], [2.0, 5.0]]), 3)
    board.text("config", "a: 1\nb: 2")
    board.close()
    events = _read(tmp_path)
    (histogram,) = events.Histograms("weights")
    assert histogram.step == 3
    values = histogram.histogram_value
    assert (values.num, values.min, values.max, values.sum) == (4, 0, 5, 8)
    (text,) = events.Tensors("config/text_summary")
    assert text.tensor_proto.string_val[0] == b"```yaml\na: 1\nb: 2\n```"


def test_steps_that_a_continued_run_repeats_are_shown_once(
    sink: Callable[..., TensorBoard], tmp_path: Path
) -> None:
    interrupted = sink()
    for step in (1, 2, 3, 4, 5):
        interrupted.record("train", step, {"rate": 1.0})
    interrupted.close()
    continued = sink(start_step=3)
    continued.record("train", 4, {"rate": 2.0})
    continued.close()
    shown = {event.step: event.value for event in _read(tmp_path).Scalars("train/rate")}
    assert shown == {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0}, "step 3 is not repeated, so it stays"


def test_runs_are_compared_by_their_settings_and_evaluations(
    sink: Callable[..., TensorBoard], tmp_path: Path
) -> None:
    keys = ("arch.name", "norm.components", "seed", "norm.absent", "seed.absent")
    board = sink(config=CONFIG, hparams=keys)
    board.record("eval", 7, {"error": 12.5})
    board.close()
    events = _read(tmp_path)
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    assert set(values) == {"arch.name", "norm.components", "seed"}
    assert values["arch.name"].string_value == "net"
    assert values["norm.components"].number_value == 5
    assert values["seed"].number_value == 3
    content = events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    metrics = metadata.parse_experiment_plugin_data(content).metric_infos
    assert [metric.name.tag for metric in metrics] == ["val/error"]
    assert [event.step for event in events.Scalars("val/error")] == [7], "one run, not two"
