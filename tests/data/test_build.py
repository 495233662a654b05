"""What is refused before a run begins, and which loader is chosen."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attnorm.config import LabelledImagesConfig, LoaderConfig
from attnorm.data import build
from attnorm.data.decode import Transform
from attnorm.data.folder import ImageFolder, scan
from attnorm.data.loader import Loader
from attnorm.data.normalize import PixelNormalization
from attnorm.data.sampling import Plan
from attnorm.distributed import Placement
from attnorm.errors import UserError
from tests.data.conftest import CPU, fill

TORCH = LoaderConfig(name="torch")
IN_THREES = Placement(CPU, batch_size=3)


def check(
    root: Path | None,
    *,
    training: bool = True,
    batch_size: int = 2,
    world_size: int = 1,
    loader: LoaderConfig = TORCH,
    num_classes: int | None = None,
) -> None:
    data = LabelledImagesConfig(
        name="folder", root=None if root is None else str(root), num_classes=num_classes
    )
    placement = Placement(CPU, batch_size, world_size=world_size)
    build.check(data, loader, placement, training=training)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three training images and two evaluation images each."""
    for split, count in (("train", 3), ("val", 2)):
        for name in ("ant", "bee"):
            fill(tmp_path / split / name, count)
    return tmp_path


def test_a_sound_folder_is_accepted_and_its_classes_counted(root: Path) -> None:
    check(root, batch_size=6, num_classes=2)
    data = LabelledImagesConfig(name="folder", root=str(root))
    assert build.num_classes(data, TORCH) == 2
    assert build.class_names(data, TORCH) == ["ant", "bee"]


def test_no_root_is_refused_except_for_synthetic_data() -> None:
    with pytest.raises(UserError, match=r"data\.root=FOLDER.*train/CLASS"):
        check(None)
    check(None, loader=LoaderConfig(name="synthetic"))


def test_a_root_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=.*nowhere is not a folder"):
        check(tmp_path / "nowhere")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_split_is_named(root: Path, split: str) -> None:
    shutil.rmtree(root / split)
    with pytest.raises(UserError, match=rf"has no {split}/"):
        check(root)


def test_an_evaluation_needs_no_training_images(root: Path) -> None:
    shutil.rmtree(root / "train")
    check(root, training=False, num_classes=2, batch_size=100)
    data = LabelledImagesConfig(name="folder", root=str(root))
    loader = build.build_eval_loader(data, TORCH, IN_THREES)
    assert loader.num_images == 4
    loader.close()


def test_an_empty_class_folder_is_named(root: Path) -> None:
    (root / "train" / "cow").mkdir()
    (root / "train" / "cow" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="1 class folders without an image: cow"):
        check(root)


def test_evaluation_classes_that_are_not_trained_are_named(root: Path) -> None:
    fill(root / "val" / "dog", 1)
    with pytest.raises(UserError, match="not classes to train on: dog"):
        check(root)


def test_a_folder_without_any_image_is_refused(root: Path) -> None:
    for image in (root / "train").rglob("*.JPEG"):
        image.unlink()
    with pytest.raises(UserError, match="2 class folders but no image"):
        check(root)


def test_images_outside_of_class_folders_are_not_enough(root: Path) -> None:
    shutil.rmtree(root / "train")
    fill(root / "train", 3)
    with pytest.raises(UserError, match=r"no class folders.*train/CLASS"):
        check(root)


def test_another_number_of_classes_is_refused_with_both_numbers(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.num_classes=1000, but .* has 2 class folders"):
        check(root, num_classes=1000)


@pytest.mark.parametrize(("batch_size", "world_size"), [(7, 1), (4, 2)])
def test_a_batch_larger_than_the_data_set_is_refused(
    root: Path, batch_size: int, world_size: int
) -> None:
    with pytest.raises(UserError, match=rf"batch_size={batch_size}.*6 training images.*at most"):
        check(root, batch_size=batch_size, world_size=world_size)


def test_dali_that_is_not_installed_is_refused_or_passed_over(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "has_dali", lambda: False)
    with pytest.raises(UserError, match=r"DALI is not installed: install attnorm\[cuda13\]"):
        check(root, loader=LoaderConfig(name="dali"))
    data = LabelledImagesConfig(name="folder", root=str(root), workers=0)
    loader = build.build_eval_loader(data, LoaderConfig(name="auto"), IN_THREES)
    assert loader.name == "torch"
    assert "not installed" in loader.reason


def test_auto_says_what_it_chose_and_why(root: Path) -> None:
    data = LabelledImagesConfig(name="folder", root=str(root), workers=1)
    loader = build.build_eval_loader(data, LoaderConfig(name="auto"), IN_THREES)
    assert (loader.name, loader.reason.count("\n")) == ("dali", 0)
    assert loader.reason
    loader.close()


@pytest.mark.parametrize(
    ("cores", "processes", "wanted", "workers"),
    [(2, 1, None, 2), (64, 1, None, 8), (64, 16, None, 4), (1, 2, None, 1), (2, 1, 0, 0)],
)
def test_there_is_a_worker_for_each_core_unless_another_number_is_asked_for(
    cores: int,
    processes: int,
    wanted: int | None,
    workers: int,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    data = LabelledImagesConfig(name="folder", root=str(root), workers=wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of more workers than cores
        loader = build.build_eval_loader(data, LoaderConfig(name="torch"), IN_THREES)
    assert loader.workers == workers
    loader.close()


class OwnLoader(Loader):
    """Keeps what it is built with."""

    name = "own"

    def __init__(self, *arguments: object, **options: object) -> None:
        self.num_images = 0
        self.arguments, self.options = arguments, options

    def __len__(self) -> int:
        return 0

    def _batches(self, epoch: int, start_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ()


def test_an_own_loader_is_built_like_ours(root: Path) -> None:
    loader = LoaderConfig(name="own", prefetch=5, loader_class=f"{__name__}.OwnLoader")
    check(root, loader=loader)
    data = LabelledImagesConfig(
        name="folder", root=str(root), workers=3, image_size=8, resize_size=9
    )
    placement = Placement(CPU, 2, dtype=torch.bfloat16, channels_last=False)
    own = build.build_train_loader(data, loader, placement, seed=0)
    assert isinstance(own, OwnLoader)
    source, plan, transform, normalize = own.arguments
    assert isinstance(source, ImageFolder)
    assert isinstance(plan, Plan)
    assert isinstance(transform, Transform)
    assert isinstance(normalize, PixelNormalization)
    assert (len(source), len(plan), transform.resize_size) == (6, 3, 9)
    assert (normalize.device, normalize.dtype, normalize.channels_last) == (
        CPU,
        torch.bfloat16,
        False,
    )
    assert (normalize.mean, normalize.std) == (tuple(data.mean), tuple(data.std))
    assert own.options == {"workers": 3, "prefetch": 5, "skip_broken": False}
    assert own.reason == "asked for"


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("attnorm.data.nothing.Nothing", "cannot be imported"),
        ("attnorm.data.loader.Nothing", "cannot be imported"),
        ("attnorm.data.sampling.Plan", "is not a class derived from attnorm.data.loader.Loader"),
        ("attnorm.data.sampling.uniform", "is not a class derived from"),
    ],
)
def test_an_own_loader_that_is_none_is_refused_before_the_run(
    root: Path, path: str, problem: str
) -> None:
    with pytest.raises(UserError, match=f"loader.loader_class={path} {problem}"):
        check(root, loader=LoaderConfig(name="own", loader_class=path))


def test_hidden_files_and_folders_are_no_data(root: Path) -> None:
    (root / "train" / ".cache").mkdir()
    (root / "train" / "ant" / "._0000.JPEG").write_bytes(b"not an image")
    images = scan(root / "train")
    assert images.classes == ("ant", "bee")
    assert len(images) == 6


def test_images_may_lie_deeper_and_names_may_hold_any_byte(root: Path) -> None:
    fill(root / "train" / "ant" / "more" / "of them", 1)
    odd = root / "train" / "bee" / "naïve 画.jpeg"
    (root / "train" / "bee" / "0000.JPEG").rename(odd)
    data = LabelledImagesConfig(
        name="folder", root=str(root), image_size=8, resize_size=8, workers=1
    )
    assert str(odd) in {scan(root / "train").path(index) for index in range(7)}
    for name in ("torch", "dali"):
        loader = build.build_train_loader(
            data, LoaderConfig(name=name), Placement(CPU, batch_size=7), seed=0
        )
        _, labels = next(loader.epoch(0))
        assert sorted(labels.tolist()) == [0, 0, 0, 0, 1, 1, 1]
        loader.close()


ODD_FOLDERS = [
    "odd däta (1)",
    'it\'s "quoted" & $HOME, 100 %=x',
    os.fsdecode(b"latin d\xe4ta"),  # no UTF-8 at all
]


@pytest.mark.parametrize("name", ["torch", "dali"])
@pytest.mark.parametrize("folder", ODD_FOLDERS, ids=["blanks", "quotes", "bytes"])
def test_a_root_may_have_any_name(root: Path, folder: str, name: str) -> None:
    plain = batches(root, name)
    odd = root / folder
    odd.mkdir()
    for split in ("train", "val"):
        (root / split).rename(odd / split)
    check(odd, loader=LoaderConfig(name=name))
    for images, others in zip(plain, batches(odd, name), strict=True):
        assert torch.equal(images, others)


def batches(root: Path, name: str) -> list[Tensor]:
    """Training images of an epoch, then those of an evaluation."""
    data = LabelledImagesConfig(
        name="folder", root=str(root), image_size=16, resize_size=16, workers=1
    )
    loaders = (
        build.build_train_loader(data, LoaderConfig(name=name), IN_THREES, seed=0),
        build.build_eval_loader(data, LoaderConfig(name=name), IN_THREES),
    )
    found = [images for loader in loaders for images, _ in loader.epoch(0)]
    for loader in loaders:
        loader.close()
    return found


def test_synthetic_batches_cost_nothing_and_need_no_data() -> None:
    data = LabelledImagesConfig(name="imagenet", num_classes=7, image_size=16, resize_size=16)
    placement = Placement(CPU, batch_size=8, dtype=torch.float16, rank=1, world_size=3)
    synthetic = LoaderConfig(name="synthetic", images=100)
    loader = build.build_train_loader(data, synthetic, placement, seed=0)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 100 // 24
    images, labels = batches[0]
    assert images.shape == (8, 3, 16, 16)
    assert images.dtype == torch.float16
    assert labels.max() < 7
    assert all(later.data_ptr() == images.data_ptr() for later, _ in batches)

    evaluation = build.build_eval_loader(
        data, LoaderConfig(name="synthetic", images=10), Placement(CPU, batch_size=8)
    )
    assert [len(labels) for _, labels in evaluation.epoch(0)] == [8, 2]
