"""Pictures of predictions: where colours are, and what counts as found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from attnorm.detection.coco import read_coco
from attnorm.detection.pictures import (
    FOUND,
    IGNORED,
    LEGIBLE,
    MADE_UP,
    MISSED,
    color_of,
    draw,
    draw_comparison,
    found_and_missed,
    match,
)
from attnorm.detection.predictions import ImagePredictions
from attnorm.detection.run_lengths import encode_window

SIZE = (400, 600)
NAMES = ["cup", "spoon"]
NONE = np.zeros(0, dtype=bool)


def objects(
    *boxes: tuple[int, int, int, int], labels: list[int], scores: list[float] | None = None
) -> ImagePredictions:
    """Boxes x, y, width, height, each with a mask of its left half."""
    masks = tuple(encode_window(np.ones((h, w // 2)), (x, y), SIZE) for x, y, w, h in boxes)
    sides = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    found = np.array(scores if scores is not None else [1.0] * len(boxes))
    return ImagePredictions(1, SIZE, np.array(labels, dtype=np.int64), found, sides, masks)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.full((*SIZE, 3), 100, dtype=np.uint8)


def at(picture: NDArray[np.uint8], x: int, y: int) -> tuple[int, ...]:
    return tuple(picture[y, x].tolist())


def test_boxes_and_masks_are_drawn_where_they_are(image: NDArray[np.uint8]) -> None:
    before = image.copy()
    found = objects((100, 100, 200, 150), (400, 300, 50, 50), labels=[1, 2], scores=[0.9, 0.4])
    picture = draw(image, found, NAMES)
    assert np.array_equal(image, before), "the image itself stays"
    color = color_of(1)
    assert at(picture, 299, 200) == color, "the right side of the frame"
    assert at(picture, 200, 249) == color, "its lower side"
    mixed = tuple(round(0.55 * 100 + 0.45 * part) for part in color)
    assert at(picture, 150, 200) == mixed, "the left half has the mask"
    assert at(picture, 250, 200) == (100, 100, 100)
    assert at(picture, 425, 300) == (100, 100, 100), "0.4 is below 0.5"
    assert at(draw(image, found, NAMES, score=0.3), 425, 300) == color_of(2)
    # The name stands above the frame, on its colour.
    label = picture[80:98, 100:160].reshape(-1, 3)
    assert (label == color).all(axis=1).mean() > 0.2


def test_names_stay_inside_the_picture(image: NDArray[np.uint8]) -> None:
    picture = draw(image, objects((560, 0, 40, 40), labels=[2], scores=[0.99]), NAMES)
    assert picture.shape == image.shape
    assert (picture[2:12, 530:555] == color_of(2)).all(axis=-1).any(), "moved to the left"


def test_small_images_are_magnified() -> None:
    small = np.zeros((64, 80, 3), dtype=np.uint8)
    found = ImagePredictions(
        1, (64, 80), np.array([1]), np.array([0.9]), np.array([[10.0, 10, 20, 30]])
    )
    picture = draw(small, found, NAMES)
    assert picture.shape == (256, LEGIBLE, 3)
    assert at(picture, 4 * 10, 4 * 30) == color_of(1)
    with pytest.raises(ValueError, match="for an image of"):
        draw(small, objects((0, 0, 5, 5), labels=[1]), NAMES)


def test_classes_have_colours_of_their_own() -> None:
    assert len({color_of(label) for label in range(1, 81)}) == 80


def test_an_object_is_found_once_by_its_class_and_the_highest_score() -> None:
    truth = objects((100, 100, 100, 100), (300, 100, 100, 100), labels=[1, 2])
    found = objects(
        (110, 100, 100, 100),  # overlaps the first, and is the second best
        (100, 100, 100, 100),  # is the first, exactly
        (300, 100, 100, 100),  # the second's place, another class
        (340, 160, 100, 100),  # too far from the second
        labels=[1, 1, 1, 2],
        scores=[0.6, 0.9, 0.8, 0.7],
    )
    assert match(found, truth, np.zeros(2, dtype=bool)) == [None, 0, None, None]
    assert match(found, objects(labels=[]), NONE) == [None] * 4
    assert match(objects(labels=[]), truth, np.zeros(2, dtype=bool)) == []


def test_a_crowd_takes_what_is_left_any_number_of_times() -> None:
    truth = objects((0, 0, 300, 300), (10, 10, 50, 50), labels=[1, 1])
    found = objects(
        (10, 10, 50, 50),
        (10, 10, 50, 50),
        (200, 200, 40, 40),
        labels=[1, 1, 1],
        scores=[0.9, 0.8, 0.7],
    )
    assert match(found, truth, np.array([True, False])) == [1, 0, 0]


def test_found_missed_made_up_and_crowds_have_their_colours(image: NDArray[np.uint8]) -> None:
    truth = objects((50, 50, 100, 100), (250, 50, 100, 100), (50, 250, 120, 120), labels=[1, 2, 1])
    found = objects(
        (52, 50, 100, 100),
        (450, 50, 100, 100),
        (60, 260, 40, 40),
        (250, 50, 100, 100),
        labels=[1, 2, 1, 2],
        scores=[0.9, 0.8, 0.7, 0.2],  # the last one is too low to count
    )
    crowd = np.array([False, False, True])
    picture = draw_comparison(image, found, truth, NAMES, crowd=crowd)
    assert at(picture, 152, 100) == FOUND
    assert at(picture, 350, 100) == MISSED
    assert at(picture, 550, 100) == MADE_UP
    assert at(picture, 170, 300) == IGNORED
    assert at(picture, 100, 290) == IGNORED
    assert at(picture, 200, 200) == (100, 100, 100)


def test_masks_lie_below_every_frame(image: NDArray[np.uint8]) -> None:
    truth = objects((100, 100, 50, 50), labels=[1])
    picture = draw_comparison(image, objects((0, 0, 600, 400), labels=[2]), truth, NAMES)
    assert at(picture, 150, 120) == MISSED, "under a mask that reaches to x = 300"
    assert at(picture, 120, 120) != (100, 100, 100)


def test_an_image_of_a_data_set_is_read_and_compared_with_its_own_objects(tmp_path: Path) -> None:
    files = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    Image.new("RGB", (600, 400), (0, 0, 0)).save(files[0])
    Image.new("L", (600, 400), 100).save(files[1])  # grey ones become RGB
    annotations = [
        {"image_id": 9, "category_id": 4, "bbox": [0, 0, 600, 400]},
        {"image_id": 1, "category_id": 4, "bbox": [50, 50, 100, 100]},
        {"image_id": 1, "category_id": 8, "bbox": [250, 50, 100, 100]},
    ]
    content = {
        "images": [
            {"id": number, "file_name": file.name, "height": 400, "width": 600}
            for number, file in zip((9, 1), files, strict=True)
        ],
        "categories": [{"id": 4, "name": "cup"}, {"id": 8, "name": "spoon"}],
        "annotations": [{"id": i, **entry} for i, entry in enumerate(annotations)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    coco = read_coco(tmp_path, tmp_path / "truth.json", "data.val_annotations")
    picture = found_and_missed(coco, objects((52, 50, 100, 100), labels=[1]), NAMES)
    assert at(picture, 152, 100) == FOUND
    assert at(picture, 350, 100) == MISSED
    assert at(picture, 500, 300) == (100, 100, 100)
    assert at(picture, 599, 300) == (100, 100, 100), "the other image's object is not drawn"
