"""Files of COCO instances as arrays: what is read, what is trained on, what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from attnorm.detection.coco import CocoData, read_coco, read_split, training_view
from attnorm.detection.segmentations import Segmentations
from attnorm.errors import UserError
from tests.detection.coco_files import (
    TRAIN_SIZES,
    annotation,
    change,
    compressed,
    config,
    ellipse,
    rectangle,
    uncompressed,
    write_coco,
    write_split,
)

KEY = "data.train_annotations"


def read(path: Path) -> CocoData:
    return read_coco(path.parent.parent / "train2017", path, KEY)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


def one_image(root: Path, *annotations: dict[str, Any], size: tuple[int, int] = (40, 60)) -> Path:
    """A training half of one image, number 7."""
    return write_split(root, "train", {7: size}, annotations)


def test_arrays_say_what_pycocotools_says(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_split(config(root), training=True)
    coco = COCO(str(data.annotations))
    capsys.readouterr()
    assert data.image_ids.tolist() == sorted(coco.imgs)
    assert data.category_ids.tolist() == [3, 17, 90]
    assert data.category_names == ("cup", "plate", "spoon")
    seen = 0
    for index, number in enumerate(data.image_ids.tolist()):
        image = coco.imgs[number]
        assert data.size(index) == (image["height"], image["width"]) == TRAIN_SIZES[index]
        assert data.path(index) == root / "train2017" / image["file_name"]
        own = range(int(data.offsets[index]), int(data.offsets[index + 1]))
        annotations = coco.loadAnns(data.annotation_ids[own.start : own.stop].tolist())
        assert {thing["image_id"] for thing in annotations} <= {number}
        assert len(annotations) == len(coco.getAnnIds(number))
        for place, thing in zip(own, annotations, strict=True):
            x, y, width, height = thing["bbox"]
            assert data.boxes[place].tolist() == [x, y, x + width, y + height]
            assert data.category_ids[data.labels[place] - 1] == thing["category_id"]
            assert data.areas[place] == thing["area"]
            assert data.crowd[place] == thing["iscrowd"]
            seen += 1
    assert seen == len(data.labels) == 3 * (len(TRAIN_SIZES) - 1)
    assert data.image_of.tolist() == np.repeat(range(8), [3] * 6 + [0, 3]).tolist()


def test_an_image_without_objects_is_one_all_the_same(root: Path) -> None:
    data = read_split(config(root), training=False)
    assert [data.has_objects(number) for number in data.image_ids] == [True] * 3 + [False, True]


def test_workers_share_arrays_and_no_python_objects(root: Path) -> None:
    data = read_split(config(root), training=True)
    for part in (data, data.segmentations):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, np.ndarray):
                assert value.dtype != object, field.name
                assert value.base is None or value.base.nbytes <= 2 * value.nbytes, field.name
            elif field.name != "category_names":
                assert isinstance(value, (bytes, str, Path, Segmentations)), field.name


def test_all_forms_of_a_mask_are_kept_exactly(tmp_path: Path) -> None:
    size = (40, 60)
    mask = ellipse(size, 30, 20, 17, 9)
    rings = [[5.5, 6, 20.25, 6, 12, 15.125], [30, 30, 38, 30, 38, 36, 30, 36]]
    path = one_image(
        tmp_path,
        annotation(7, (13, 11, 34, 18), compressed(mask)),
        annotation(7, (13, 11, 34, 18), uncompressed(mask)),
        annotation(7, (5.5, 6, 32.5, 30), rings),
        annotation(7, (5.5, 6, 32.5, 30), [[1, 2, 3, 4], *rings]),  # a line encloses nothing
        annotation(7, (5.5, 6, 32.5, 30), []),
        annotation(7, (5.5, 6, 32.5, 30), None),
    )
    found = read(path).segmentations
    for index in (0, 1):
        code = {"size": list(size), "counts": found.code(index)}
        assert np.array_equal(coco_mask.decode(code), mask)
        assert found.polygons(index) == []
    for index in (2, 3):
        assert [ring.ravel().tolist() for ring in found.polygons(index)] == rings
        assert found.code(index) == b""
    assert found.present.tolist() == [True] * 4 + [False] * 2


def test_crowds_and_boxes_that_are_hardly_there_are_not_trained_on(tmp_path: Path) -> None:
    good = rectangle(7, (-5, 30, 20, 20))
    crowd = {**annotation(7, (0, 0, 60, 40), uncompressed(ellipse((40, 60), 9, 9, 5, 5)))}
    path = one_image(
        tmp_path,
        rectangle(7, (10, 10, 0.9, 20)),
        good,
        {**crowd, "iscrowd": 1},
        rectangle(7, (10, 10, 20, 0)),
        {**rectangle(7, (10, 10, 20, 20)), "area": 0},
        rectangle(7, (59.5, 10, 20, 20)),  # half a pixel of it is inside
        rectangle(7, (10, 10, 1, 1)),
    )
    view = training_view(read(path))
    assert view.objects.tolist() == [1, 6]
    assert view.boxes.tolist() == [[0, 30, 15, 40], [10, 10, 11, 11]]
    assert view.data.boxes[1].tolist() == [-5, 30, 15, 50], "the evaluation gets it as it is"


def test_small_and_empty_images_are_not_trained_on(tmp_path: Path) -> None:
    sizes = {9: (40, 60), 2: (31, 60), 5: (60, 32), 4: (50, 50), 3: (50, 50)}
    box = (3, 4, 20, 20)
    crowd = {**annotation(3, box, compressed(ellipse((50, 50), 9, 9, 5, 5))), "iscrowd": 1}
    things = [rectangle(5, box), rectangle(9, box), rectangle(2, box), crowd, rectangle(9, box)]
    data = read(write_split(tmp_path, "train", sizes, things))
    view = training_view(data)
    assert data.image_ids[view.images].tolist() == [5, 9]
    assert view.offsets.tolist() == [0, 1, 3]
    assert data.annotation_ids[view.objects].tolist() == [100, 101, 104], "in the file's order"
    assert data.image_ids[training_view(data, min_side=31).images].tolist() == [2, 5, 9]


def test_what_a_file_may_leave_out(tmp_path: Path) -> None:
    path = one_image(tmp_path, rectangle(7, (3, 4, 20, 10)))

    def without(content: dict[str, Any]) -> None:
        del content["annotations"][0]["area"], content["annotations"][0]["iscrowd"]

    change(path, without)
    data = read(path)
    assert data.areas.tolist() == [200]
    assert data.crowd.tolist() == [False]


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = one_image(tmp_path, rectangle(7, (3, 4, 20, 10)))
    first = read(path)
    assert read(path) is first
    change(path, lambda content: content["annotations"].pop())
    assert len(read(path).labels) == 0


def entry(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].update(values)


def put(part: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({part: value})


def image(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["images"][0].update(values)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (put("categories", []), 'list of "categories" is empty'),
        (put("images", None), 'no list of "images"'),
        (put("annotations", {"1": {}}), 'no list of "annotations"'),
        (put("annotations", [1]), 'no list of "annotations"'),
        (put("categories", [{"id": 3, "name": "a"}] * 2), "two categories have the id 3"),
        (put("categories", [{"id": 3, "name": "a"}, {"id": 4, "name": "a"}]), "are called a"),
        (put("categories", [{"id": 3}]), 'category 3 has "name": None'),
        (lambda c: c["images"].append(c["images"][0]), "two images have the id 7"),
        (image(id="7"), "an image has \"id\": '7': give it an integer"),
        (image(file_name=""), "image 7 has \"file_name\": ''"),
        (image(file_name="\ud800.jpg"), "image 7 has the file_name '\\ud800.jpg'"),
        (image(height=None), 'image 7 has "height": None'),
        (image(width=0), "image 7 is 40 × 0 pixels"),
        (entry(image_id=8), "annotation 100 is of image_id 8, which is not among"),
        (entry(image_id=[8]), "annotation 100 is of image_id [8], which is not among"),
        (entry(category_id=99), "annotation 100 has category_id 99, which is not among"),
        (entry(id="x"), "annotation x has an id that is no integer"),
        (entry(bbox=None), "annotation 100 has bbox None, not x, y, width and height"),
        (entry(bbox=[1, 2, 3]), "annotation 100 has bbox [1, 2, 3], not x, y"),
        (entry(bbox=[1, 2, -3, 4]), "annotation 100 has bbox [1.0, 2.0, -3.0, 4.0]"),
        (entry(bbox=[1, 2, float("nan"), 4]), "annotation 100 has bbox [1.0, 2.0, nan, 4.0]"),
        (entry(segmentation="x"), "neither polygons nor a run-length code"),
        (entry(segmentation=[1, 2, 3, 4, 5, 6]), "a polygon that is no list of numbers"),
        (entry(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "a polygon of 7 numbers"),
        (
            entry(segmentation={"size": [60, 40], "counts": [2400]}),
            "a run-length code of size [60, 40], its image is [40, 60]",
        ),
        (
            entry(segmentation={"size": [40, 60], "counts": [100, 2301]}),
            "a run-length code that is not one of 40 × 60 pixels",
        ),
        (
            entry(segmentation={"size": [40, 60], "counts": "abc"}),
            "a run-length code that is not one of 40 × 60 pixels",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_the_id_and_what_to_do(
    tmp_path: Path, how: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = one_image(tmp_path, rectangle(7, (3, 4, 20, 10)))
    change(path, how)
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{KEY}={path}: ")
    assert message in text
    assert text.count(":") >= 2, "the way out"
    assert "\n" not in text


def test_the_first_of_several_problems_is_told_and_their_number(tmp_path: Path) -> None:
    path = one_image(tmp_path, *(rectangle(7, (3, 4, 20, 10), category=c) for c in (3, 5, 6, 3)))
    with pytest.raises(UserError, match=r"annotation 101 has category_id 5.*\(and 1 more such"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b'"text"'])
def test_what_is_no_coco_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{KEY}={path}"):
        read_coco(tmp_path, path, KEY)


def test_a_missing_file_or_root_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.val_annotations=.*_val2017.json cannot be"):
        read_split(config(tmp_path), training=False)
    with pytest.raises(UserError, match=r"data.root=.*/nowhere is not a folder"):
        read_split(config(tmp_path / "nowhere"), training=True)
    with pytest.raises(UserError, match=r"data=small needs data\.root=FOLDER"):
        read_split(dataclasses.replace(config(tmp_path), root=None), training=True)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_coco(tmp_path, tmp_path, KEY)


def test_file_names_of_any_characters_are_kept(tmp_path: Path) -> None:
    path = one_image(tmp_path, rectangle(7, (3, 4, 20, 10)))
    name = "ünter/a b – 写真.jpg"
    change(path, image(file_name=name))
    assert read(path).name(0) == name
    assert json.loads(path.read_text())["images"][0]["file_name"] == name
