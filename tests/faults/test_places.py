"""Disks that are full, data that disappears, numbers that are not finite."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnorm.data.digits import digits_root
from attnorm.errors import UserError
from attnorm.training import checkpoint
from attnorm.training.checkpoints import load_newest
from tests.faults.conftest import Launch, lines, wait_for
from tests.training.memory import (
    CLASSES,
    MemoryLoader,
    make_config,
    make_tracker,
    make_trainer,
    metrics,
    stripes,
)

Start = Callable[..., Launch]
Report = Callable[..., None]
REPEATED = "nothing; steps since the checkpoint are repeated"


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system with room for three checkpoints of this run (5 MB each), not four."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = getattr(request, "param", "17m")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs to mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_with_a_message_and_the_last_checkpoint_continues(
    small_disk: Path, launch: Start, fault: Report
) -> None:
    run = small_disk / "run"
    arguments = [f"hydra.run.dir={run}", "checkpoint.keep_last=9"]
    started = launch(*arguments)
    assert started.wait() == 2, started.text
    message = started.text.split("error: ")[1]
    assert "No space left on device" in message
    assert f"the last good checkpoint is {run / 'last.pt'}" in message.replace("\n", " ")
    stopped_at = checkpoint.load_checkpoint(run / "last.pt")["step"]
    assert stopped_at >= 2
    for old in sorted((run / "checkpoints").glob("*.pt"))[:-1]:
        old.unlink()
    again = launch(f"hydra.run.dir={run}", "checkpoint.keep_last=1")
    assert again.wait() == 0, again.text
    assert lines(run, "event")[-1] | {"time": 0} == {
        "kind": "event",
        "step": stopped_at,
        "time": 0,
        "event": "continued",
        "world_size": 1,
    }
    fault("disk full while a checkpoint is written", 1, REPEATED)


@pytest.mark.parametrize("file", ["result.json", "metrics.jsonl"])
def test_whatever_of_the_run_cannot_be_written_the_last_good_checkpoint_is_named(
    file: str, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, make_config(epochs=2, **{"checkpoint.every_steps": 1}))
    tracker = make_tracker(tmp_path)
    (tmp_path / file).mkdir()
    with pytest.raises(UserError, match="cannot be written: Is a directory") as raised:
        trainer.fit(tracker)
    last = tmp_path / "last.pt"
    assert last.exists()
    assert f"the last good checkpoint is {last}" in str(raised.value)


@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_disk_that_the_digits_fill_is_named_and_nothing_of_them_stays(small_disk: Path) -> None:
    with pytest.raises(
        UserError, match=r"digits cannot be written to .*\(No space left on device\)"
    ):
        digits_root(str(small_disk / "digits"))
    assert not list(small_disk.iterdir())


def test_data_that_disappears_stops_the_run_and_its_return_continues_it(
    images: Path, launch: Start, fault: Report, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(images, data)
    run = tmp_path / "runs" / "orphan"
    started = launch(f"data.root={data}", "name=orphan", "epochs=40")
    wait_for(lambda: len(lines(run, "train")) >= 2)
    data.rename(tmp_path / "elsewhere")
    assert started.wait() == 2, started.text
    assert str(data) in started.text.split("error: ")[1]
    assert (run / "last.pt").exists()
    (tmp_path / "elsewhere").rename(data)
    again = launch(f"data.root={data}", "name=orphan", "epochs=40")
    wait_for(lambda: "Continuing from" in again.text)
    again.kill()
    fault("data folder gone in mid-epoch, and back", 1, REPEATED)


class _Poisoned(MemoryLoader):
    """One batch of the first data order, and only of that, holds an infinite pixel."""

    poisoned_step = 15

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for batch, (images, labels) in enumerate(super().epoch(epoch, start_batch), start_batch):
            if epoch * len(self) + batch == self.poisoned_step:
                images = images.clone()
                images[0, 0, 0, 0] = float("inf")
            yield images, labels


def _poisoned(tmp_path: Path, **overrides: Any) -> Any:
    config = make_config(epochs=4, **{"checkpoint.every_steps": 1, **overrides})
    trainer = make_trainer(tmp_path, config)
    trainer.train_loader = _Poisoned(*stripes(60, CLASSES), 10, shuffle=True)
    return trainer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_names_the_step_and_spares_the_checkpoint(
    precision: str, fault: Report, tmp_path: Path
) -> None:
    trainer = _poisoned(tmp_path, precision=precision)
    with pytest.raises(UserError, match="not finite since step 15 "):
        trainer.fit(make_tracker(tmp_path))
    stored = checkpoint.load_checkpoint(tmp_path / "last.pt")
    assert stored["step"] == 15, "the newest with finite weights"
    assert all(value.isfinite().all() for value in stored["model"].values())
    fault(f"infinite pixel at a known step, {precision}", 1)


def test_rewinding_goes_back_and_takes_another_order(tmp_path: Path, fault: Report) -> None:
    trainer = _poisoned(tmp_path, on_nonfinite="rewind")
    result = trainer.fit(make_tracker(tmp_path))
    assert result["status"] == "finished"
    assert result["rewinds"] == 1
    assert [line["event"] for line in metrics(tmp_path, "event")] == ["nonfinite_loss", "rewound"]
    steps = [line["step"] for line in metrics(tmp_path, "train")]
    assert steps == list(range(2, 25, 2)), "no step twice"
    assert all(torch.isfinite(p).all() for p in trainer.state.model.parameters())
    fault("infinite pixel with on_nonfinite=rewind", 1)


class _Hopeless(_Poisoned):
    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return super().epoch(epoch % 1_000_000, start_batch)


def test_rewinding_gives_up_after_max_rewinds(tmp_path: Path, fault: Report) -> None:
    trainer = _poisoned(tmp_path, on_nonfinite="rewind", max_rewinds=2)
    trainer.train_loader.__class__ = _Hopeless
    with pytest.raises(UserError, match="not finite since step 15 after 2 rewinds"):
        trainer.fit(make_tracker(tmp_path))
    fault("infinite pixel that stays: gives up after max_rewinds", 1)


def _damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "one bit flipped":
        content[len(content) // 3] ^= 1
    elif how == "empty":
        content = bytearray()
    path.write_bytes(content)
    if how == "another program's":
        torch.save({"state_dict": {}}, path)


@pytest.mark.parametrize("how", ["truncated", "one bit flipped", "empty", "another program's"])
def test_a_damaged_newest_checkpoint_is_named_and_the_previous_one_loaded(
    how: str, fault: Report, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, make_config(epochs=2))
    trainer.fit(make_tracker(tmp_path))
    before = sorted((tmp_path / "checkpoints").glob("*.pt"))[-2]
    _damaged(tmp_path / "last.pt", how)
    newest, damage = load_newest(tmp_path)
    assert newest is not None
    assert newest[0] == before
    assert newest[1]["epoch"] == 1
    assert len(damage) == 1
    assert str(tmp_path / "last.pt") in damage[0]
    fault(f"newest checkpoint {how}", 1, REPEATED)
