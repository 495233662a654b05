"""A start reads its checkpoint once, and all processes go on from what was read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from attnorm.run.train import run
from attnorm.training import checkpoint, checkpoints
from tests.conftest import SHORT, TINY_RESNET, compose_config, write_photos
from tests.forked import Forked, ranks


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), val_images=4)


def _settings(photos: Path) -> list[str]:
    size = ["data.image_size=32", "data.resize_size=32", "optim.lr=0.02"]
    return [*SHORT, *TINY_RESNET, "norm=an", "data=folder", f"data.root={photos}", *size]


def _launch(folder: Path, *arguments: str) -> tuple[list[int], str]:
    """Train in a working folder of its own for each rank, as on machines that share no disk.

    Returns:
        The exit status of each rank, and what both of them printed.
    """
    output = folder / "output.txt"
    output.write_text("")
    processes = [
        Forked(folder / f"node{rank}", output, ["train", *arguments], environment)
        for rank, environment in enumerate(ranks(2, LOCAL_WORLD_SIZE="1", LOCAL_RANK="0"))
    ]
    return [process.wait(240) for process in processes], output.read_text()


def test_a_machine_without_the_run_folder_continues_where_the_others_do(
    photos: Path, tmp_path: Path
) -> None:
    arguments = [*_settings(photos), "batch_size=6", "epochs=3", "name=pair"]
    for node in ("node0", "node1"):
        (tmp_path / node).mkdir()
    status, printed = _launch(tmp_path, *arguments)
    assert status == [0, 0], printed
    run_dir = tmp_path / "node0" / "runs" / "pair"
    end = checkpoint.load_checkpoint(run_dir / "last.pt")
    assert not (tmp_path / "node1" / "runs" / "pair" / "last.pt").exists()

    # Back to the checkpoint before the last, which rank 0's machine alone has.
    numbered = sorted((run_dir / "checkpoints").glob("*.pt"))
    numbered[-1].unlink()
    shutil.copy(numbered[-2], run_dir / "last.pt")
    shutil.rmtree(tmp_path / "node1" / "runs")
    status, printed = _launch(tmp_path, *arguments)
    assert status == [0, 0], printed
    log = (tmp_path / "node1" / "runs" / "pair" / "log" / "rank1.log").read_text()
    assert "Continuing from runs/pair/last.pt: epoch 3, step 0 of 3" in log
    for name, value in end["model"].items():
        assert torch.equal(value, checkpoint.load_checkpoint(run_dir / "last.pt")["model"][name])


def test_processes_refuse_together_what_one_of_them_cannot_do(photos: Path, tmp_path: Path) -> None:
    """Rank 1's machine has no data: the message comes from rank 0, and nothing is created."""
    (tmp_path / "node0").mkdir()
    (tmp_path / "node1").mkdir()
    (tmp_path / "node0" / "data").symlink_to(photos)
    settings = [*_settings(photos), "data.root=data", "batch_size=6", "name=half"]
    status, printed = _launch(tmp_path, *settings)
    assert status == [2, 2], printed
    assert printed.count("error: ") == 1
    assert "data.root=" in printed
    assert "(rank 1)" in printed
    assert not (tmp_path / "node0" / "runs").exists()


def test_a_start_prepares_once_and_reads_the_checkpoint_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config(*_settings(photos), "batch_size=6", "epochs=1")
    run(config, tmp_path / "run")
    read: list[Path] = []
    prepared: list[object] = []
    real_read, real_check = checkpoints.read_checkpoint, run.__globals__["prepare"]
    monkeypatch.setattr(
        checkpoints, "read_checkpoint", lambda path: (read.append(path), real_read(path))[1]
    )
    monkeypatch.setitem(
        run.__globals__, "prepare", lambda *given: (prepared.append(given), real_check(*given))[1]
    )
    run(config, tmp_path / "run")
    assert read == [tmp_path / "run" / "last.pt"]
    assert len(prepared) == 1
