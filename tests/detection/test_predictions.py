"""Predictions in pixels of the image: pasted as torchvision does, coded and filed as COCO does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes

from attnorm.detection.batch import Detections, InstanceMasks, Targets
from attnorm.detection.coco import CocoData, read_coco
from attnorm.detection.predictions import (
    ImagePredictions,
    from_detections,
    from_targets,
    read_predictions,
    write_predictions,
)
from attnorm.detection.run_lengths import covers, encode_window
from attnorm.errors import UserError
from tests.detection.ground_truth import CATEGORY_IDS, SIZE, near_predictions, write_truth

INPUT, ORIGINAL = (80, 106), (61, 81)


def detections(count: int = 60) -> Detections:
    """Boxes of all sizes, also at the borders, thin as a line and of no size."""
    generator = torch.Generator().manual_seed(0)
    height, width = INPUT
    limits = torch.tensor([width, height, width, height])
    corners = torch.rand(count, 4, generator=generator)
    first, second = corners[:, :2], corners[:, 2:]
    boxes = torch.cat((torch.minimum(first, second), torch.maximum(first, second)), 1) * limits
    boxes[0] = torch.tensor([0, 0, width, height])
    boxes[1] = torch.tensor([width - 3, 0, width, 0.5])
    boxes[2] = torch.tensor([40.0, 30, 40, 30])
    boxes[3] = torch.tensor([0, 10, 1, height])
    masks = torch.rand(count, 28, 28, generator=generator)
    masks[4], masks[5] = 0, 1
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    return Detections(boxes, scores, torch.arange(count) % 3 + 1, masks)


def test_masks_are_pasted_and_boxes_scaled_as_torchvision_does() -> None:
    found = detections()
    assert found.masks is not None
    predictions = from_detections(found, 7, INPUT, ORIGINAL)
    boxes = resize_boxes(found.boxes, list(INPUT), list(ORIGINAL))
    pasted = paste_masks_in_image(found.masks[:, None], boxes, ORIGINAL)[:, 0] > 0.5
    assert predictions.masks is not None
    for index, expected in enumerate(pasted):
        whole = coco_mask.encode(np.asfortranarray(expected.numpy().astype(np.uint8)))
        assert predictions.masks[index] == whole["counts"], f"mask {index}"
        assert np.array_equal(predictions.bitmap(index), expected.numpy())
    corners = predictions.boxes.copy()
    corners[:, 2:] += corners[:, :2]
    assert np.array_equal(predictions.boxes[:, :2], boxes[:, :2].double().numpy())
    np.testing.assert_allclose(corners, boxes.double().numpy(), rtol=1e-15)
    assert np.array_equal(predictions.scores, found.scores.double().numpy())
    assert np.array_equal(predictions.labels, found.labels.numpy())


def test_another_threshold_takes_other_pixels() -> None:
    found = detections()
    low, high = (from_detections(found, 7, INPUT, ORIGINAL, at) for at in (0.3, 0.7))
    assert low.bitmap(0).sum() > 2 * high.bitmap(0).sum() > 0


def test_an_image_without_detections_has_empty_predictions() -> None:
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert from_detections(none, 7, INPUT, ORIGINAL).masks is None
    none = dataclasses.replace(none, masks=torch.zeros(0, 28, 28))
    predictions = from_detections(none, 7, INPUT, ORIGINAL)
    assert (len(predictions), predictions.masks) == (0, ())
    assert predictions.boxes.shape == (0, 4)


def test_a_window_is_coded_as_the_whole_mask_would_be() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        size = tuple(random.integers(1, 9, 2))
        (top, bottom), (left, right) = (np.sort(random.integers(0, side + 1, 2)) for side in size)
        whole = np.zeros(size, dtype=np.uint8)
        whole[top:bottom, left:right] = random.random((bottom - top, right - left)) < 0.6
        code = encode_window(whole[top:bottom, left:right], (left, top), size)
        assert code == coco_mask.encode(np.asfortranarray(whole))["counts"], whole
        assert covers(code, size)
        assert not covers(code, (size[0] + 1, size[1]))


def test_targets_become_predictions_of_the_networks_input() -> None:
    bitmaps = [torch.tensor([[0, 1, 0], [1, 1, 0]], dtype=torch.uint8), torch.ones(2, 2).byte()]
    windows = torch.tensor([[1, 2, 4, 4], [0, 0, 2, 2]])
    boxes = torch.tensor([[1.0, 2, 3, 4], [0, 0, 2, 2]])
    masks = InstanceMasks.from_bitmaps(bitmaps, windows)
    shown = from_targets(Targets(boxes, torch.tensor([2, 1]), masks), 5, (6, 7))
    expected = np.zeros((6, 7))
    expected[2, 2] = expected[3, 1] = expected[3, 2] = 1
    assert np.array_equal(shown.bitmap(0), expected)
    assert shown.boxes.tolist() == [[1, 2, 2, 2], [0, 0, 2, 2]]
    assert shown.labels.tolist() == [2, 1]


def coco_of(truth_file: Path) -> CocoData:
    return read_coco(truth_file.parent, truth_file, "data.val_annotations")


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, CocoData, list[ImagePredictions]]:
    truth = write_truth(tmp_path / "truth.json")
    predictions = near_predictions(truth)
    write_predictions(tmp_path / "predictions.json", predictions, CATEGORY_IDS)
    return tmp_path / "predictions.json", coco_of(tmp_path / "truth.json"), predictions


def test_a_file_of_predictions_reads_back_bit_by_bit(
    written: tuple[Path, CocoData, list[ImagePredictions]],
) -> None:
    path, coco, predictions = written
    for before, after in zip(predictions, read_predictions(path, coco), strict=True):
        assert (after.image_id, after.size, after.masks) == (before.image_id, SIZE, before.masks)
        for name in ("labels", "scores", "boxes"):
            assert np.array_equal(getattr(after, name), getattr(before, name)), name


def test_a_file_is_in_cocos_format_and_of_the_models_order(
    written: tuple[Path, CocoData, list[ImagePredictions]],
) -> None:
    path, _, predictions = written
    entries = json.loads(path.read_text())
    assert len(entries) == sum(len(image) for image in predictions)
    first = predictions[0]
    for index, entry in enumerate(entries[: len(first)]):
        assert set(entry) == {"image_id", "category_id", "score", "bbox", "segmentation"}
        assert entry["category_id"] == CATEGORY_IDS[first.labels[index] - 1]
        assert entry["score"] == first.scores[index]
        assert np.array_equal(coco_mask.decode(entry["segmentation"]), first.bitmap(index))


def test_masks_alone_give_their_own_boxes_and_images_may_have_nothing(
    written: tuple[Path, CocoData, list[ImagePredictions]],
) -> None:
    path, coco, predictions = written
    entries = [entry for entry in json.loads(path.read_text()) if entry["image_id"] != 20]
    for entry in entries:
        del entry["bbox"]
    path.write_text(json.dumps(entries))
    first, second, *_ = read_predictions(path, coco)
    assert len(second) == 0
    rows, columns = np.nonzero(predictions[0].bitmap(0))
    sides = [np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert first.boxes[0].tolist() == [columns.min(), rows.min(), *sides]


def test_an_empty_file_is_one_where_nothing_was_found(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json")
    write_predictions(tmp_path / "none.json", [], CATEGORY_IDS)
    found = read_predictions(tmp_path / "none.json", coco_of(tmp_path / "truth.json"))
    assert [len(image) for image in found] == [0] * len(truth["images"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 5}, "entry 1 cannot be evaluated, image_id 5 is not in the annotations"),
        ({"category_id": 4}, "category_id 4 is not in the annotations"),
        ({"score": None}, "entry 1"),
        ({"score": float("nan")}, "not five numbers"),
        ({"bbox": [1, 2, 3]}, "not five numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, "no compressed run-length code"),
        ({"segmentation": {"size": [9, 9], "counts": "0"}}, r"of size \[9, 9\], the image of"),
        *(
            ({"segmentation": {"size": list(SIZE), "counts": counts}}, "do not add up to the image")
            for counts in ("", "abc", "ooooo", "~~", "/", "0" * 9)
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_its_place(
    written: tuple[Path, CocoData, list[ImagePredictions]], change: dict[str, Any], words: str
) -> None:
    path, coco, _ = written
    entries = json.loads(path.read_text())
    entries[1].update(change)
    path.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=words):
        read_predictions(path, coco)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read .No such file"),
        ("{", "no JSON"),
        ("{}", "holds no list"),
        ("[1]", "entry 0 cannot be evaluated, it is no object"),
        ('[{"image_id": 10, "category_id": 3}]', "it has no 'score'"),
        ('[{"image_id": 10, "category_id": 3, "score": 1}]', "it has no 'bbox'"),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "predictions.json"
    if text is not None:
        path.write_text(text)
    write_truth(tmp_path / "truth.json")
    with pytest.raises(UserError, match=words):
        read_predictions(path, coco_of(tmp_path / "truth.json"))


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        write_predictions(tmp_path / "missing" / "predictions.json", [], CATEGORY_IDS)
