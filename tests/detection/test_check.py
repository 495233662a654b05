"""A data set is refused before the run, with the file, the id, and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attnorm.detection import check
from attnorm.detection.check import check_coco
from attnorm.errors import UserError
from tests.detection.coco_files import change, config, write_coco, write_maps


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path)


def annotations(root: Path, half: str = "train") -> Path:
    return root / "annotations" / f"instances_{half}2017.json"


def message(root: Path, training: bool = True, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_coco(config(root, **values), training)
    text = str(caught.value)
    assert text.count("\n") <= 2
    return text


def test_a_good_data_set_passes(root: Path) -> None:
    check_coco(config(root, semantic="things"), training=True)
    check_coco(config(root), training=False)


def test_an_evaluation_needs_no_training_half(root: Path) -> None:
    annotations(root).unlink()
    check_coco(config(root), training=False)
    assert str(annotations(root)) in message(root)


@pytest.mark.parametrize("half", ["train", "val"])
def test_missing_pictures_are_counted_and_the_first_is_named(root: Path, half: str) -> None:
    first, second = ("11", "20") if half == "train" else ("501", "510")
    for number in (first, second):
        (root / f"{half}2017" / f"{int(number):012d}.jpg").unlink()
    text = message(root, training=half == "train")
    assert text == (
        f"{root}/{half}2017/{int(first):012d}.jpg is missing, image {first} of"
        f" data.{half}_annotations={annotations(root, half)} (and 1 more): complete"
        f" {root}/{half}2017, or take the images out of the file."
    )


def test_pictures_may_lie_in_folders_of_their_own(root: Path) -> None:
    (root / "val2017" / "a").mkdir()
    (root / "val2017" / "000000000501.jpg").rename(root / "val2017" / "a" / "x.jpg")
    assert "000000000501.jpg is missing" in message(root, training=False)
    change(annotations(root, "val"), lambda c: c["images"][0].update(file_name="a/x.jpg"))
    check_coco(config(root), training=False)
    change(annotations(root, "val"), lambda c: c["images"][0].update(file_name="b/x.jpg"))
    assert "b/x.jpg is missing" in message(root, training=False)


def test_a_missing_folder_of_pictures_is_named_with_its_key(root: Path) -> None:
    text = message(root, val_images="val2014")
    assert text.startswith(f"{root}/val2014 is not a folder: give data.root and data.val_images")


@pytest.mark.parametrize(
    "box", [[64, 5, 10, 10], [-11, 5, 10, 10], [5, 48, 10, 10], [5, -20, 10, 20]]
)
def test_boxes_outside_of_their_image_are_refused(root: Path, box: list[float]) -> None:
    def move(content: dict[str, Any]) -> None:
        for number in (11, 17):
            own = [a for a in content["annotations"] if a["image_id"] == number]
            own[0]["bbox"] = box if number == 11 else [900, 900, 10, 10]

    change(annotations(root), move)
    text = message(root)
    number = next(
        a["id"]
        for a in json.loads(annotations(root).read_text())["annotations"]
        if a["bbox"] == box
    )
    assert f"the box of annotation {number} (x {box[0]} to {box[0] + box[2]}" in text
    assert "000000000011.jpg, which is 48 × 64 pixels high and wide (and 1 more): correct" in text


def test_a_box_that_reaches_outside_is_none_outside(root: Path) -> None:
    change(annotations(root), lambda c: c["annotations"][0].update(bbox=[-5, -5, 200, 200]))
    check_coco(config(root), training=True)


def test_pictures_of_another_size_are_refused(root: Path) -> None:
    path = root / "train2017" / "000000000011.jpg"
    Image.new("RGB", (64, 49)).save(path)
    text = message(root)
    assert f"{path} is 49 × 64 pixels high and wide, image 11 of data.train_annotations=" in text
    assert "is 48 × 64: give the picture that was annotated" in text
    assert "EXIF" not in text
    Image.new("RGB", (48, 64)).save(path)
    assert "is 48 × 64 (rotations that EXIF data ask for are not applied)" in message(root)


def test_of_many_pictures_the_sizes_of_some_are_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(check, "SIZES_CHECKED", 3)
    monkeypatch.setattr(check, "_size_of", opened.append)
    check_coco(config(root), training=False)
    assert [path.name for path in opened] == [f"000000000{n}.jpg" for n in (501, 507, 513)]


def test_pictures_that_do_not_decode_are_left_to_the_loader(root: Path) -> None:
    (root / "train2017" / "000000000011.jpg").write_bytes(b"no picture")
    check_coco(config(root), training=True)


def crowds_alone(content: dict[str, Any]) -> None:
    for thing in content["annotations"]:
        thing["iscrowd"] = 1


def boxes_without_area(content: dict[str, Any]) -> None:
    for thing in content["annotations"]:
        thing["bbox"][2] = 0


@pytest.mark.parametrize("how", [crowds_alone, boxes_without_area])
def test_a_half_with_nothing_to_train_on_is_refused(
    root: Path, how: Callable[[dict[str, Any]], None]
) -> None:
    change(annotations(root), how)
    assert "has nothing to train on: no object, crowds aside" in message(root)


def test_data_of_small_images_is_refused_with_the_key(root: Path) -> None:
    assert "in an image of data.min_side=100 or more" in message(root, min_side=100)


def test_objects_to_train_on_need_masks(root: Path) -> None:
    def without(content: dict[str, Any]) -> None:
        for thing in content["annotations"]:
            if thing["category_id"] == 90:
                thing["segmentation"] = [[1, 2, 3, 4]]

    change(annotations(root), without)
    assert "has no segmentation of three points or more (and 6 more)" in message(root)
    change(annotations(root, "val"), without)
    check_coco(config(root), training=False)


def test_semantic_maps_have_to_be_there(root: Path) -> None:
    settings = config(root, semantic="stuffthingmaps")
    assert "000000000011.png is missing (and 6 more)" in message(root, semantic="stuffthingmaps")
    write_maps(root)
    check_coco(settings, training=True)
    (root / "stuffthingmaps" / "train2017" / "000000000014.png").unlink()
    assert "000000000014.png is missing: data.semantic=stuffthingmaps needs a map" in message(
        root, semantic="stuffthingmaps"
    )
    check_coco(settings, training=False)


def test_what_semantic_maps_cannot_be_is_refused(root: Path) -> None:
    text = message(root, semantic="things", size_divisible=4)
    assert text.startswith("data.size_divisible=4 with data.semantic=things: give a multiple of 8")

    def many(content: dict[str, Any]) -> None:
        content["categories"] += [{"id": n, "name": f"c{n}"} for n in range(1_000, 1_252)]

    change(annotations(root), many)
    assert "has 255 categories, maps have room for 254" in message(root, semantic="things")
    check_coco(replace(config(root)), training=True)
