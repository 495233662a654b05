"""Services that are optional are refused clearly where they are not installed; the hparams tab."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from attnorm import config as schema
from attnorm.errors import UserError
from attnorm.services import check_service, open_service
from attnorm.tracking import Tracker
from tests.conftest import compose_config


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / name).mkdir()  # the folder that the service leaves in a run is not its library
    with pytest.raises(UserError, match=f"tracking.service={name}.*pip install {name}"):
        check_service(name)
    with pytest.raises(UserError, match="not installed"):
        open_service(name, tmp_path, {})


def test_none_is_wanted_by_default_and_others_are_not_known() -> None:
    assert compose_config().tracking.service is None
    check_service(None)
    with pytest.raises(UserError, match=r"tracking\.service=comet"):
        compose_config("tracking.service=comet")


def test_tensorboard_compares_runs_by_their_settings(tmp_path: Path) -> None:
    config = compose_config("arch=mobilenetv2", "norm=an", "norm.num_components=5", "seed=3")
    tracker = Tracker(tmp_path, enabled=True, console=Console(file=io.StringIO()))
    tracker.describe(schema.to_container(config))
    tracker.record("eval", 7, {"epoch": 1, "top1_error": 12.5, "loss": 1.0})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    assert values["arch.name"].string_value == "mobilenetv2"
    assert values["norm.num_components"].number_value == 5
    assert values["seed"].number_value == 3
    content = events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    metrics = metadata.parse_experiment_plugin_data(content).metric_infos
    assert "val/top1_error" in {metric.name.tag for metric in metrics}
    assert [event.step for event in events.Scalars("val/top1_error")] == [7]
