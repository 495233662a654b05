"""Broken images stop a run with their path, or are replaced and counted."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from itertools import chain
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from attnorm.data import worker_batches
from attnorm.data.folder import scan
from attnorm.errors import UserError
from tests.data.conftest import Make

REAL = ["torch", "dali"]


@pytest.fixture
def damaged(photos: Path, tmp_path: Path) -> Path:
    """The photos, with the file to be damaged replaced by the test."""
    shutil.copytree(photos, tmp_path / "damaged")
    return tmp_path / "damaged"


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    path.write_bytes(
        {"truncated": whole[: len(whole) // 3], "empty": b"", "text": b"no image"}[how]
    )


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
@pytest.mark.parametrize("training", [True, False])
def test_a_broken_image_stops_with_its_path_and_what_to_do(
    make: Make, damaged: Path, name: str, how: str, training: bool
) -> None:
    path = (
        damaged
        / ("train" if training else "val")
        / "ant"
        / ("0003.JPEG" if training else "0103.JPEG")
    )
    damage(path, how)
    loader = make(name, training=training, root=str(damaged))
    # In some epoch a random crop reaches below the place where the file ends.
    epochs = chain.from_iterable(loader.epoch(epoch) for epoch in range(10))
    with pytest.raises(UserError) as caught:
        list(epochs)
    assert str(path) in str(caught.value)
    assert "data.skip_broken=true" in str(caught.value)
    assert str(caught.value).count("\n") <= 2


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(
    "folder", [b"odd d\xc3\xa4ta (1)", b"latin d\xe4ta"], ids=["utf-8", "bytes"]
)
def test_messages_name_images_of_any_name(
    make: Make, photos: Path, tmp_path: Path, name: str, folder: bytes
) -> None:
    root = tmp_path / os.fsdecode(folder)
    shutil.copytree(photos, root)
    damage(root / "val" / "ant" / "0103.JPEG", "empty")
    shown = folder.decode(errors="backslashreplace")
    with pytest.raises(UserError) as caught:
        list(make(name, training=False, root=str(root)).epoch(0))
    assert f"{tmp_path}/{shown}/val/ant/0103.JPEG cannot be decoded" in str(caught.value)

    # A log file is UTF-8, and logging prints a traceback for what it cannot write.
    log = logging.FileHandler(tmp_path / "log", encoding="utf-8")
    logger = logging.getLogger("attnorm.data.broken")
    logger.addHandler(log)
    try:
        list(make(name, training=False, root=str(root), skip_broken=True).epoch(0))
    finally:
        logger.removeHandler(log)
        log.close()
    assert f"/{shown}/val/ant/0103.JPEG" in (tmp_path / "log").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", REAL)
def test_a_skipped_image_is_replaced_by_the_next_one_and_counted(
    make: Make, damaged: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Two in a row, the second one the last of its class.
    for file in ("0107.JPEG", "0108.JPEG"):
        damage(damaged / "val" / "ant" / file, "empty")
    whole = make(name, training=False)
    reference = torch.cat([images for images, _ in whole.epoch(0)])
    loader = make(name, training=False, root=str(damaged), skip_broken=True)
    batches = list(loader.epoch(0))
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])

    assert len(images) == loader.num_images == 31
    assert loader.skipped == 2
    assert scan(damaged / "val").path(9).endswith("0109.JPEG")
    expected = reference.clone()
    expected[7] = expected[8] = reference[9]
    assert torch.allclose(images, expected, atol=1e-5)
    assert labels[6:10].tolist() == [0, 1, 1, 1]
    for file in ("0107.JPEG", "0108.JPEG"):
        assert sum(file in record.getMessage() for record in caplog.records) == 1

    again = torch.cat([images for images, _ in loader.epoch(0)])
    assert torch.equal(again, images)
    assert loader.skipped == 4


def test_both_loaders_put_the_same_images_in_place_of_broken_ones(
    make: Make, damaged: Path
) -> None:
    for file in ("0002.JPEG", "0011.JPEG", "0012.JPEG", "0019.JPEG"):
        damage(damaged / "train" / "ant" / file, "empty")
    loaders = [make(name, root=str(damaged), skip_broken=True) for name in REAL]
    for epoch in (0, 1):
        for (images, labels), (others, other_labels) in zip(
            *(loader.epoch(epoch) for loader in loaders), strict=True
        ):
            assert torch.allclose(images, others, atol=1e-5)
            assert torch.equal(labels, other_labels)
    assert loaders[0].skipped == loaders[1].skipped > 0


@pytest.mark.parametrize("name", REAL)
def test_a_set_of_broken_images_ends_in_an_error_not_in_a_loop(
    make: Make, damaged: Path, name: str
) -> None:
    for path in (damaged / "val").rglob("*.JPEG"):
        damage(path, "empty")
    with pytest.raises(UserError, match="None of the images"):
        list(make(name, training=False, root=str(damaged), skip_broken=True).epoch(0))


def test_a_killed_worker_is_reported_with_the_likely_cause(make: Make) -> None:
    """As the kernel kills one that takes too much memory."""
    loader = make("torch", batch_size=2, workers=2)
    batches = loader.epoch(0)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"worker .*killed.*out of memory: lower data\.workers"):
        list(batches)


@pytest.mark.timeout(60, method="thread")  # a signal's exception would be lost in a destructor
def test_a_worker_killed_while_it_holds_a_lock_does_not_block_the_end(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers ask an event before each batch; multiprocessing's own is locked meanwhile."""

    def die_locked(event: Event) -> bool:
        if multiprocessing.parent_process() is not None:
            event._cond.acquire()
            os.kill(os.getpid(), signal.SIGKILL)
        return is_set(event)

    is_set = Event.is_set
    monkeypatch.setattr(Event, "is_set", die_locked)
    loader = make("torch", batch_size=2, workers=2)
    batches = loader.epoch(0)
    next(batches)
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(UserError, match=r"lower data\.workers"):
        list(batches)
    loader.close()
    gc.collect()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()]
)
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_no_unreadable_image(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def answers(_: object) -> Iterator[None]:
        raise error
        yield

    monkeypatch.setattr(worker_batches, "_SECONDS_TO_SIGNAL", 0)
    monkeypatch.setattr(worker_batches.WorkerBatches, "_answers", staticmethod(answers))
    with pytest.raises(UserError, match=r"no longer answers.*killed.*lower data\.workers"):
        list(make("torch").epoch(0))


def test_an_image_that_dali_alone_refuses_is_replaced_too(
    make: Make,
    damaged: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU's decoder takes less than torchvision's, which is made to take everything here."""
    from attnorm.data import dali

    whole = list(make("dali", training=False, root=str(damaged)).epoch(0))
    refused = [damaged / "val" / "ant" / "0103.JPEG", damaged / "val" / "ant" / "0104.JPEG"]
    for path in refused:
        damage(path, "text")
    monkeypatch.setattr(dali, "decode_rgb", lambda data: torch.zeros(9, 9, 3))

    loader = make("dali", training=False, root=str(damaged), skip_broken=True)
    with caplog.at_level(logging.WARNING):
        batches = list(loader.epoch(0))
    assert loader.skipped == 2
    named = [path for path in refused for line in caplog.messages if str(path) in line]
    assert named == refused
    # Images 3 and 4 of the first batch are the next whole one; all others are what they were.
    assert torch.equal(batches[0][0][3], whole[0][0][5])
    assert torch.equal(batches[0][0][4], whole[0][0][5])
    assert torch.equal(batches[1][0], whole[1][0])

    with pytest.raises(UserError, match=r"0103\.JPEG cannot be decoded"):
        list(make("dali", training=False, root=str(damaged)).epoch(0))
