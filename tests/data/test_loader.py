"""What every loader has from its base class, a person's own loader too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from attnorm.data.loader import Loader
from attnorm.data.sampling import Plan
from attnorm.data.synthetic import SyntheticLoader
from attnorm.errors import UserError
from tests.data.conftest import CPU, Make

HARDWARE = "give it more CPU cores, or a faster disk than that of data.root"


class OwnLoader(Loader):
    """As little as the base class asks for."""

    name = "own"

    def __init__(self, error: Exception | None = None) -> None:
        self.num_images = 6
        self._error = error

    def __len__(self) -> int:
        return 3

    def _batches(self, epoch: int, start_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(start_batch, len(self)):
            if self._error is not None:
                raise self._error
            yield torch.full((2, 3, 4, 4), float(epoch)), torch.full((2,), number)


def test_an_own_loader_needs_no_more_than_its_batches() -> None:
    loader = OwnLoader()
    assert [int(labels[0]) for _, labels in loader.epoch(1, 1)] == [1, 2]
    assert list(loader.epoch(0, 3)) == []
    with pytest.raises(ValueError, match="start_batch=4 of an epoch of 3 batches"):
        next(loader.epoch(0, 4))
    assert (loader.reason, loader.skipped) == ("asked for", 0)
    assert loader.remedies(cores=8) == [HARDWARE]
    loader.close()


def test_an_own_loader_that_names_its_workers_is_told_to_have_more() -> None:
    loader = OwnLoader()
    loader.workers = 2
    assert loader.remedies(cores=3) == ["raise data.workers=2 (3 cores for each process)"]
    assert loader.remedies(cores=2) == [HARDWARE]


def test_failures_of_disks_and_workers_are_explained_and_others_are_bugs() -> None:
    with pytest.raises(UserError, match=r"Stale file handle.*\n.*data\.root readable again"):
        next(OwnLoader(OSError(116, "Stale file handle")).epoch(0))
    with pytest.raises(UserError, match=r"worker \(pid 7\) is killed.*lower data\.workers"):
        next(OwnLoader(RuntimeError("DataLoader worker (pid 7) is killed.")).epoch(0))
    with pytest.raises(RuntimeError, match="shapes differ") as caught:
        next(OwnLoader(RuntimeError("shapes differ")).epoch(0))
    assert not isinstance(caught.value, UserError)


def test_our_loaders_say_what_would_make_them_faster(make: Make) -> None:
    more = "raise data.workers=1 (4 cores for each process)"
    torchs, dali = make("torch", workers=1), make("dali", workers=1)
    assert torchs.remedies(cores=4) == [more, "use loader=dali"]
    assert torchs.remedies(cores=1) == ["use loader=dali"]
    assert dali.remedies(cores=4) == [more]
    assert dali.remedies(cores=1) == [HARDWARE]
    synthetic = SyntheticLoader(
        Plan(8, 4, training=True),
        image_size=lambda epoch: 4,
        num_classes=2,
        device=CPU,
        dtype=torch.float32,
        channels_last=True,
    )
    assert synthetic.remedies(cores=4) == []


@pytest.mark.parametrize("name", ["torch", "dali"])
def test_the_advice_names_the_workers_as_they_are_set(make: Make, name: str) -> None:
    first, *_ = make(name, workers=0).remedies(cores=4)
    assert first == "raise data.workers=0 (4 cores for each process)"
