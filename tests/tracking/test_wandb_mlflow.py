"""Services that are optional: refused clearly where they are missing, told everything otherwise."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from attnorm.config import compose
from attnorm.errors import UserError
from attnorm.tracking import Tracker, check_service, open_tracker

TAGS = {"train": {"rate": "train/rate", "norm": "train/norm"}, "eval": {"error": "val/error"}}

# Write down what the libraries are called with, where they are not installed.
WANDB = """
calls, summary = [], {}

class Histogram:
    def __init__(self, values):
        self.values = values

class Image(Histogram):
    pass

class Run:
    summary = summary
    def log(self, values, step):
        calls.append((step, values))
    def finish(self):
        calls.append("finished")

def init(**options):
    calls.append(options)
    return Run()
"""
MLFLOW = """
from types import SimpleNamespace

calls, texts = [], {}

def set_experiment(name):
    calls.append(name)

def start_run(run_id, run_name):
    calls.append((run_id, run_name))
    return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "new"))

def log_metrics(values, step):
    calls.append((step, values))

def log_image(pixels, key, step):
    calls.append((key, step, pixels.shape))

def log_dict(values, name):
    calls.append((name, values))

def log_text(text, name):
    texts[name] = text

def end_run():
    calls.append("ended")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Puts a module in place of a library."""

    def write(name: str, source: str) -> Any:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        spec = spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return write


def _open(run_dir: Path, service: str, **options: Any) -> Tracker:
    console = Console(file=io.StringIO())
    settings = {"tags": TAGS, "tensorboard": False, "config": {"seed": 3}, **options}
    return open_tracker(run_dir, enabled=True, console=console, service=service, **settings)


def _tell(tracker: Tracker) -> None:
    tracker.text("config", "seed: 3\n")
    tracker.record("event", 0, {"event": "started"})
    tracker.histogram("weights", torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.bfloat16), 2)
    tracker.record("train", 2, {"rate": 0.5, "norm": None})
    tracker.record("eval", 2, {"error": 12.5, "epoch": 1})
    tracker.picture("val/7", torch.zeros(2, 3, 3, dtype=torch.uint8), 2)
    tracker.close()


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
        _open(tmp_path, name)


def test_none_is_wanted_by_default_and_others_are_not_known() -> None:
    assert compose([]).tracking.service is None
    check_service(None)
    with pytest.raises(UserError, match=r"tracking\.service=comet"):
        compose(["tracking.service=comet"])


def test_wandb_gets_scalars_histograms_and_texts_under_the_runs_name(
    stand_in: Callable[[str, str], Any], tmp_path: Path
) -> None:
    library = stand_in("wandb", WANDB)
    _tell(_open(tmp_path, "wandb", name="table/net"))
    started, (step, distribution), *scalars, (at, picture), ended = library.calls
    assert started == {
        "project": "attnorm",
        "name": "table/net",
        "id": "table-net",
        "resume": "allow",
        "dir": str(tmp_path),
        "config": {"seed": 3},
    }
    assert step == 2
    assert distribution["weights"].values.tolist() == [1, 2, 3, 6]
    assert scalars == [(2, {"train/rate": 0.5}), (2, {"val/error": 12.5})]
    assert (at, picture["val/7"].values.shape, ended) == (2, (2, 3, 3), "finished")
    assert library.summary == {"config": "seed: 3\n"}


def test_mlflow_gets_scalars_moments_and_texts_and_a_continued_run_stays_one(
    stand_in: Callable[[str, str], Any], tmp_path: Path
) -> None:
    library = stand_in("mlflow", MLFLOW)
    run_dir = tmp_path / "net"
    run_dir.mkdir()
    _tell(_open(run_dir, "mlflow"))
    *opened, (step, moments), rate, error, picture, ended = library.calls
    assert opened == ["attnorm", (None, "net"), ("config.json", {"seed": 3})]
    assert step == 2
    assert moments == pytest.approx(
        {"weights/mean": 3, "weights/std": 3.5**0.5, "weights/min": 1, "weights/max": 6}
    )
    assert (rate, error, ended) == ((2, {"train/rate": 0.5}), (2, {"val/error": 12.5}), "ended")
    assert picture == ("val_7", 2, (2, 3, 3))
    assert library.texts == {"config.yaml": "seed: 3\n"}

    library.calls.clear()
    _open(run_dir, "mlflow").close()
    assert library.calls == ["attnorm", ("new", None), "ended"]


def test_wandb_itself_takes_all_this(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = _open(tmp_path, "wandb", name="table/net")
    assert (wandb.run.id, wandb.run.name) == ("table-net", "table/net")
    _tell(tracker)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_mlflow_itself_takes_all_this(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    store = tmp_path / "store"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.as_uri())
    for start in (0, 2):
        _tell(_open(tmp_path, "mlflow", name="table/net", start_step=start))
    (run,) = store.glob("*/*/artifacts")
    assert json.loads((run / "config.json").read_text()) == {"seed": 3}
    assert (run / "config.yaml").read_text() == "seed: 3\n"
    metrics = run.parent / "metrics"
    found = {str(path.relative_to(metrics)) for path in metrics.rglob("*") if path.is_file()}
    moments = {f"weights/{moment}" for moment in ("mean", "std", "min", "max")}
    assert found == {"train/rate", "val/error", *moments}
