"""Checkpoints that want more than to be read: what they name is not imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from attnorm import config as schema
from attnorm.__main__ import main
from attnorm.models.build import build_model
from attnorm.training import checkpoint
from tests.conftest import ROOT, SHORT, TINY_RESNET, compose_config, write_photos
from tests.forked import Forked

Report = Callable[..., None]

EVIL = """
from pathlib import Path
Path("imported").touch()
from torch import nn
class Evil(nn.BatchNorm2d):
    def __init__(self, features, command=None):
        super().__init__(features)
        Path("built").touch()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a module that a checkpoint would like to have imported."""
    write_photos(tmp_path / "photos", val_images=4)
    (tmp_path / "evilmod.py").write_text(EVIL)
    return tmp_path


def _checkpoint(folder: Path, **changes: Any) -> Path:
    """A run folder with one checkpoint, whose stored config is changed by dotted keys."""
    config = compose_config(
        *SHORT,
        *TINY_RESNET,
        "norm=bn",
        "data=folder",
        "data.image_size=32",
        "data.resize_size=32",
        f"data.root={folder / 'photos'}",
    )
    stored = schema.to_container(config)
    for key, value in changes.items():
        group, _, name = key.partition("__")
        stored[group][name] = value
    run = folder / "runs" / "given"
    run.mkdir(parents=True)
    state = {
        "model": build_model(config.arch, config.norm, 3).state_dict(),
        "config": stored,
        "class_names": ["blue", "green", "red"],
        "epoch": 1,
        "step": 2,
        "ema": None,
    }
    checkpoint.save_checkpoint(state, run / "best.pt")
    checkpoint.link_checkpoint(run / "best.pt", run / "last.pt")
    return run / "best.pt"


def _attnorm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    output, errors = folder / "output.txt", folder / "errors.txt"
    process = Forked(folder, output, [*arguments], errors=errors)
    return subprocess.CompletedProcess(
        arguments, process.wait(120), output.read_text(), errors.read_text()
    )


def _attnorm_from_its_start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "attnorm", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _refused(done: subprocess.CompletedProcess[str], folder: Path, *words: str) -> None:
    assert done.returncode == 2, done.stderr + done.stdout
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not (folder / "imported").exists()


COMMANDS = {
    "eval": ["eval", "checkpoint=runs/given/best.pt"],
    "predict": ["predict", "checkpoint=runs/given/best.pt", "photos/val/red/0.jpg"],
    "responses": ["responses", "checkpoint=runs/given/best.pt"],
    "export": ["export-safetensors", "runs/given"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_layer_that_a_checkpoint_names_is_not_imported(
    command: str, folder: Path, fault: Report
) -> None:
    _checkpoint(folder, norm__layer="evilmod.Evil", norm__options={"command": "rm"})
    done = _attnorm(folder, *COMMANDS[command])
    _refused(done, folder, "norm.layer=evilmod.Evil", "allow=evilmod.Evil")
    fault(f"checkpoint that names a foreign class, {command}", 1, "nothing; refused by name")


def test_a_person_may_allow_it_by_name(folder: Path) -> None:
    _checkpoint(folder, norm__layer="evilmod.Evil")
    allowed = [*COMMANDS["eval"], "allow=evilmod.Evil", "loader=torch"]
    done = _attnorm_from_its_start(folder, *allowed)
    assert done.returncode == 0, done.stderr
    assert (folder / "built").exists()
    assert json.loads((folder / "runs" / "given" / "eval.json").read_text())["images"] == 12


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task__task_class": "evilmod.Evil"}, ["task.task_class=evilmod.Evil"]),
        ({"norm__layer": "attnorm.files.write_text"}, ["norm.layer", "not a class of modules"]),
        ({"arch__timm_options": {"checkpoint_path": "x"}}, ["checkpoint_path"]),
        ({"arch__timm_options": {"pretrained": True}}, ["timm_options.pretrained"]),
        ({"arch__timm_model": "hf-hub:evil/model"}, ["arch.timm_model=hf-hub:evil/model"]),
        ({"data__root": "${oc.env:HOME}"}, ["data.root"]),
    ],
)
def test_other_wishes_of_a_file_are_refused(
    changes: dict[str, Any],
    words: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _checkpoint(folder, **changes)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(SystemExit) as stopped:
        main(COMMANDS["eval"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert not (folder / "imported").exists()


def test_a_loader_that_a_file_names_is_not_asked_for(folder: Path) -> None:
    """Which loader reads the images is the reader's choice, never the file's."""
    _checkpoint(folder, loader__loader_class="evilmod.Evil", loader__name="evil")
    done = _attnorm(folder, *COMMANDS["eval"])
    assert done.returncode == 0, done.stderr
    assert not (folder / "imported").exists()


def test_a_run_is_not_continued_from_a_checkpoint_that_names_another_layer(folder: Path) -> None:
    """The stored config is compared, never built from."""
    _checkpoint(folder, norm__layer="evilmod.Evil")
    size = ["data=folder", "data.root=photos", "data.image_size=32", "data.resize_size=32"]
    settings = [*SHORT, *TINY_RESNET, "norm=bn", *size, "name=given"]
    done = _attnorm(folder, "train", *settings)
    _refused(done, folder, "norm.layer: evilmod.Evil -> torch.nn.BatchNorm2d")


def test_weights_alone_are_loaded_whatever_the_file_says(folder: Path) -> None:
    """arch.pretrained takes tensors: the config beside them is not looked at."""
    path = _checkpoint(folder, norm__layer="evilmod.Evil")
    size = ["data=folder", "data.root=photos", "data.image_size=32", "data.resize_size=32"]
    settings = [*SHORT, *TINY_RESNET, "norm=bn", *size, "name=tuned", f"arch.pretrained={path}"]
    done = _attnorm(folder, "train", *settings, "epochs=1")
    assert done.returncode == 0, done.stderr
    assert not (folder / "imported").exists()


def test_an_exported_file_holds_the_names_that_were_checked(folder: Path) -> None:
    _checkpoint(folder)
    done = _attnorm(folder, *COMMANDS["export"])
    assert done.returncode == 0, done.stderr
    with safe_open(folder / "runs" / "given" / "best.safetensors", "pt") as file:
        stored = json.loads(file.metadata()["config"])
    assert schema.from_container(stored).norm.layer == "torch.nn.BatchNorm2d"
