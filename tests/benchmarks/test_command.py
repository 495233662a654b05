"""Whole commands as contestants: they do the same work, and the figures are the system's."""

from __future__ import annotations

import argparse
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch

from attnorm.errors import UserError
from benchmarks import command
from tests.conftest import write_photos
from tests.script import exit_code


@pytest.fixture
def args(tmp_path: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    root = write_photos(tmp_path / "photos", val_images=3)
    size = ["--image-size", "32", "--batch-size", "6", "--workers", "0", "--images", "12"]
    return parser.parse_args(["--root", str(root), *size])


def test_images_are_spread_over_the_classes_or_repeated(
    args: argparse.Namespace, tmp_path: Path
) -> None:
    assert command.link_images(args.root, tmp_path / "few", 6) == 6
    few = sorted((tmp_path / "few" / "train").rglob("*.jpg"))
    assert [path.parent.name for path in few] == ["blue", "blue", "green", "green", "red", "red"]
    assert len({path.resolve() for path in few}) == 6
    command.link_images(args.root, tmp_path / "many", 80)
    assert len(list((tmp_path / "many" / "train").rglob("*.jpg"))) == 80
    assert len(list((tmp_path / "many" / "val").rglob("*.jpg"))) == 9


def test_a_commands_figures_are_the_systems_and_failures_are_told(tmp_path: Path) -> None:
    busy = "import time; t=time.process_time()\nwhile time.process_time()-t<0.5: pass"
    done = command.time_command([sys.executable, "-c", busy + "\nx=b'x'*(80<<20)"], tmp_path)
    assert 0.4 < done.user_seconds + done.system_seconds < 2
    assert done.seconds > 0.5
    assert done.peak_mib > 80
    assert 80 * 2**20 // 4096 < done.page_faults < 2 * 80 * 2**20 // 4096
    with pytest.raises(UserError, match="no such thing"):
        command.time_command([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)


def _run_here(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m MODULE …`` in this process, up to its exit."""
    python, m, module, *arguments = line
    assert (python, m) == (sys.executable, "-m")
    monkeypatch.delitem(sys.modules, module, raising=False)
    assert not exit_code(lambda: runpy.run_module(module, run_name="__main__"), module, *arguments)


@pytest.mark.slow
def test_every_contestant_trains_the_epoch_and_saves_the_same_weights_shapes(
    args: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.link_images(args.root, tmp_path / "images", args.images)
    args.rivals = (*command.LOOPS, *command.WITHOUT)
    shapes, logs = {}, {}
    for name, line in command.contestants(args, "mobilenetv2", "bn", tmp_path).items():
        if name in ("plain operations", "bare loop, memory kept"):
            command.time_command(line, tmp_path)
        else:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            _run_here(line, monkeypatch)
        if name in (command.OURS, *command.WITHOUT):
            logs[name] = (tmp_path / "run" / "log" / "rank0.log").read_text()
            state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
        else:
            state = torch.load(tmp_path / "weights.pt", weights_only=True)
            (tmp_path / "weights.pt").unlink()
        assert state["bn1.num_batches_tracked"] == 2, f"{name}: two batches of six images"
        shapes[name] = {key: value.shape for key, value in state.items()}
    assert len(shapes) == 6
    assert "torch loader" in logs["loader=torch"]
    assert "torch loader" not in logs[command.OURS]
    assert all(found == shapes[command.OURS] for found in shapes.values())
