"""Scenes of digits: real scans, exact masks, and the same ones on every machine and process."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from attnorm.config import CocoConfig
from attnorm.detection import scenes as scenes_module
from attnorm.detection.check import check_coco
from attnorm.detection.coco import read_split, training_view
from attnorm.detection.scenes import (
    CROWD_DIGITS,
    MAX_DIGITS,
    SIZES,
    make_digit_scenes,
    scenes_root,
)
from attnorm.errors import UserError

TRAIN, VAL = 60, 20


def scenes(root: Path | None, **values: Any) -> CocoConfig:
    settings: dict[str, Any] = {
        "name": "digit_scenes",
        "source": "digit_scenes",
        "root": None if root is None else str(root),
        "num_train_scenes": TRAIN,
        "num_val_scenes": VAL,
        "workers": 0,
        **values,
    }
    return CocoConfig(**settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes") / "made"
    assert scenes_root(scenes(root)) == root
    return root


def content(folder: Path, half: str = "train") -> dict[str, Any]:
    path = folder / "annotations" / f"instances_{half}2017.json"
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def mask_of(annotation: dict[str, Any]) -> NDArray[np.bool_]:
    code = annotation["segmentation"]
    if isinstance(code["counts"], list):
        code = coco_mask.frPyObjects(code, *code["size"])
    mask: NDArray[np.bool_] = coco_mask.decode(code).astype(bool)
    return mask


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_scenes_are_a_data_set_in_cocos_layout(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_coco(scenes(folder), training=True)
    for half, count in (("train", TRAIN), ("val", VAL)):
        coco = COCO(str(folder / "annotations" / f"instances_{half}2017.json"))
        assert len(coco.imgs) == len(list((folder / f"{half}2017").iterdir())) == count
        assert [coco.cats[digit]["name"] for digit in range(10)] == list("0123456789")
        for image in coco.imgs.values():
            with Image.open(folder / f"{half}2017" / image["file_name"]) as opened:
                assert (opened.height, opened.width) == (image["height"], image["width"])
                assert (opened.height, opened.width) in SIZES
    capsys.readouterr()


def test_they_hold_what_a_detector_has_to_cope_with(folder: Path) -> None:
    data = read_split(scenes(folder), training=True)
    counts = np.bincount(data.image_of[~data.crowd], minlength=len(data))
    assert counts.min() == 0, "empty scenes"
    assert counts.max() == MAX_DIGITS
    assert data.crowd.any()
    assert set(data.labels.tolist()) == set(range(1, 11))
    sides = (data.boxes[:, 2:] - data.boxes[:, :2])[~data.crowd].max(axis=1)
    assert sides.max() > 2 * sides.min()
    assert len({data.size(index) for index in range(len(data))}) == len(SIZES)
    view = training_view(data, min_side=16)
    assert len(view.objects) == np.count_nonzero(~data.crowd), "all can be trained on"


def test_masks_are_exact(folder: Path) -> None:
    """No two share a pixel, boxes fit tightly, areas are pixels, and ink is lighter than ground."""
    covered = 0
    values = content(folder)
    for image in values["images"]:
        own = [a for a in values["annotations"] if a["image_id"] == image["id"]]
        with Image.open(folder / "train2017" / image["file_name"]) as opened:
            light = np.asarray(opened.convert("L")).astype(float)
        masks = [mask_of(annotation) for annotation in own]
        together = np.sum([np.zeros(light.shape, dtype=int), *masks], axis=0)
        assert together.max() <= 1
        for annotation, mask in zip(own, masks, strict=True):
            rows, columns = np.nonzero(mask)
            left, top = columns.min(), rows.min()
            right, bottom = columns.max() + 1, rows.max() + 1
            assert annotation["bbox"] == [left, top, right - left, bottom - top]
            assert annotation["area"] == mask.sum()
            assert light[mask].mean() > light[together == 0].mean() + 30
            covered += int((together - mask)[top:bottom, left:right].any())
    assert covered > 5, "some lie on others"


def test_a_crowd_is_one_mask_of_many_digits_in_plain_counts(folder: Path) -> None:
    crowds = [a for a in content(folder)["annotations"] if a["iscrowd"]]
    assert crowds
    for crowd in crowds:
        assert isinstance(crowd["segmentation"]["counts"], list)
        assert sum(crowd["segmentation"]["counts"]) == np.prod(crowd["segmentation"]["size"])
        width, height = crowd["bbox"][2:]
        assert width > 0.4 * CROWD_DIGITS[0] * height / 1.5


def test_the_same_scenes_are_made_again(folder: Path, tmp_path: Path) -> None:
    make_digit_scenes(tmp_path / "again", scenes(None))
    assert files(tmp_path / "again") == files(folder)


def test_a_scene_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path) -> None:
    make_digit_scenes(tmp_path / "few", scenes(None, num_train_scenes=5, num_val_scenes=2))
    few, many = content(tmp_path / "few"), content(folder)
    assert few["images"] == many["images"][:5]
    assert few["annotations"] == many["annotations"][: len(few["annotations"])]
    pictures = {n: b for n, b in files(tmp_path / "few").items() if n.endswith(".jpg")}
    assert pictures.items() <= files(folder).items()


def test_both_halves_are_made_of_scans_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: list[set[str]] = []

    def scans_of(folder: Path) -> Any:
        read.append({path.name for path in folder.rglob("*.jpg")})
        assert folder.name == ("train", "val")[len(read) - 1]
        return original(folder)

    original = scenes_module._scans
    monkeypatch.setattr(scenes_module, "_scans", scans_of)
    make_digit_scenes(tmp_path / "few", scenes(None, num_train_scenes=1, num_val_scenes=1))
    train, val = read
    assert (len(train), len(val)) == (1437, 360)
    assert not train & val


def test_scenes_are_made_once_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATTNORM_CACHE", str(tmp_path / "cache"))
    config = scenes(None, num_train_scenes=3, num_val_scenes=2)
    root = scenes_root(config)
    assert root.parent == tmp_path / "cache"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert scenes_root(config) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert scenes_root(replace(config, num_train_scenes=4)) != root
    assert not list(root.parent.glob(".*")), "nothing half-made is left"
    assert root.stat().st_mode & 0o055 == 0o055, "others may read them"


def test_processes_that_start_at_once_do_not_collide(tmp_path: Path) -> None:
    config = scenes(tmp_path / "shared", num_train_scenes=8, num_val_scenes=4)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=scenes_root, args=(config,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]
    check_coco(config, training=True)


def test_a_folder_of_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"data\.root=.* is neither empty nor a folder of 60 \+ 20"):
        scenes_root(scenes(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(UserError, match=r"nor a folder of 61 \+ 20 digit scenes"):
        scenes_root(scenes(folder, num_train_scenes=61))
    with pytest.raises(UserError, match=r"The digit scenes cannot be written to .*ATTNORM_CACHE"):
        scenes_root(scenes(tmp_path / "letter.txt" / "below"))
