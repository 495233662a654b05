"""COCO's numbers: as plain pycocotools gives them, by both referees, and by hand where easy."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from attnorm.detection import average_precision
from attnorm.detection.average_precision import OVERLAPS, RECALLS, AveragePrecision, evaluate
from attnorm.detection.predictions import (
    ImagePredictions,
    read_predictions,
    write_predictions,
)
from attnorm.detection.run_lengths import encode_window
from attnorm.errors import UserError
from tests.detection.ground_truth import (
    CATEGORY_IDS,
    SIZE,
    near_predictions,
    uncompressed,
    write_truth,
)
from tests.detection.test_predictions import coco_of

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
needs_hotcoco = pytest.mark.skipif(
    importlib.util.find_spec("hotcoco") is None, reason="hotcoco is not installed"
)


@pytest.fixture(scope="module")
def truth_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("truth") / "truth.json"
    write_truth(path)
    return path


@pytest.fixture(scope="module")
def predictions(truth_file: Path) -> list[ImagePredictions]:
    return near_predictions(json.loads(truth_file.read_text()))


@pytest.fixture(scope="module")
def found(truth_file: Path, predictions: list[ImagePredictions]) -> AveragePrecision:
    return evaluate(truth_file, predictions, CATEGORY_IDS)


def plain(truth_file: Path, results: list[dict[str, Any]], kind: str) -> COCOeval:
    """As everybody does it with pycocotools."""
    truth = COCO(str(truth_file))
    if kind == "segm":  # or areas would be those of the boxes
        results = [{k: v for k, v in entry.items() if k != "bbox"} for entry in results]
    evaluation = COCOeval(truth, truth.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_written_file_gives_the_same_numbers_in_plain_pycocotools(
    truth_file: Path,
    predictions: list[ImagePredictions],
    found: AveragePrecision,
    kind: str,
    tmp_path: Path,
) -> None:
    write_predictions(tmp_path / "predictions.json", predictions, CATEGORY_IDS)
    expected = plain(truth_file, json.loads((tmp_path / "predictions.json").read_text()), kind)
    assert tuple(found.statistics[kind]) == NAMES
    assert list(found.statistics[kind].values()) == [100 * value for value in expected.stats]
    assert np.array_equal(found.precision[kind], expected.eval["precision"])
    assert np.array_equal(found.recall[kind], expected.eval["recall"])
    # The data are no trivial case.
    assert 5 < (found.statistics[kind]["AP"] or 0) < 80
    assert len(set(found.statistics[kind].values())) > 8


def test_masks_count_with_their_own_areas(
    truth_file: Path, predictions: list[ImagePredictions], found: AveragePrecision
) -> None:
    assert found.statistics["segm"] != found.statistics["bbox"]
    alone = evaluate(truth_file, predictions, CATEGORY_IDS, ("segm",))
    assert alone.statistics["segm"] == found.statistics["segm"]
    assert set(alone.statistics) == {"segm"}


def test_read_back_from_the_file_the_numbers_stay(
    truth_file: Path, predictions: list[ImagePredictions], found: AveragePrecision, tmp_path: Path
) -> None:
    write_predictions(tmp_path / "predictions.json", predictions, CATEGORY_IDS)
    coco = coco_of(truth_file)
    again = evaluate(
        truth_file, read_predictions(tmp_path / "predictions.json", coco), CATEGORY_IDS
    )
    assert again.statistics == found.statistics


@needs_hotcoco
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("some", ["all", "none", "few"])
def test_both_referees_give_the_same_bits(
    truth_file: Path, predictions: list[ImagePredictions], kind: str, some: str
) -> None:
    chosen = {"all": predictions, "none": [], "few": predictions[-2:]}[some]
    one, two = (
        evaluate(truth_file, chosen, CATEGORY_IDS, (kind,), referee)
        for referee in ("pycocotools", "hotcoco")
    )
    assert np.array_equal(one.precision[kind], two.precision[kind])
    assert np.array_equal(one.recall[kind], two.recall[kind])
    assert one.statistics == two.statistics
    assert one.per_category == two.per_category


def test_nothing_is_printed(
    truth_file: Path, predictions: list[ImagePredictions], capfd: pytest.CaptureFixture[str]
) -> None:
    for referee in ("pycocotools", "hotcoco")[: 2 if importlib.util.find_spec("hotcoco") else 1]:
        evaluate(truth_file, predictions, CATEGORY_IDS, referee=referee)
    assert capfd.readouterr() == ("", "")


def test_nothing_found_is_zero_and_nothing_to_find_is_no_number(truth_file: Path) -> None:
    found = evaluate(truth_file, [], CATEGORY_IDS)
    for kind in ("bbox", "segm"):
        assert set(found.statistics[kind].values()) == {0.0}
        assert found.per_category[kind] == {3: 0.0, 7: 0.0, 90: None}
        assert found.curve(kind) == [0.0] * len(RECALLS)


def test_categories_average_to_the_whole(found: AveragePrecision) -> None:
    first, second, third = (found.per_category["segm"][number] for number in CATEGORY_IDS)
    assert third is None, "there is no such object"
    assert first is not None
    assert second is not None
    assert (first + second) / 2 == pytest.approx(found.statistics["segm"]["AP"])
    assert first != second


def test_curves_average_to_the_precision(found: AveragePrecision) -> None:
    for overlap, name in ((None, "AP"), (0.5, "AP50"), (0.75, "AP75")):
        curve = found.curve("bbox", overlap)
        assert np.mean(curve) == pytest.approx(found.statistics["bbox"][name])
        assert curve == sorted(curve, reverse=True) or overlap is None
    assert len(OVERLAPS) == 10
    assert RECALLS[-1] == 1.0


def one_image(tmp_path: Path, annotations: list[dict[str, Any]]) -> Path:
    """A file of 10 × 20 boxes in one image of one category, as a stranger may have written it."""
    path = tmp_path / "truth.json"
    whole = [
        {"id": i, "image_id": 1, "category_id": 3, **annotation}
        for i, annotation in enumerate(annotations, start=1)
    ]
    image = {"id": 1, "height": SIZE[0], "width": SIZE[1], "file_name": "1.jpg"}
    categories = [{"id": 3, "name": "box"}]
    path.write_text(json.dumps({"images": [image], "categories": categories, "annotations": whole}))
    return path


def box_at(x: float, y: float, side: int = 20) -> dict[str, Any]:
    polygon = [[x, y, x + side, y, x + side, y + side, x, y + side]]
    return {"bbox": [x, y, side, side], "segmentation": polygon}


def boxes_found(*corners: tuple[int, int], scores: tuple[float, ...]) -> list[ImagePredictions]:
    masks = tuple(encode_window(np.ones((20, 20)), corner, SIZE) for corner in corners)
    boxes = np.array([[x, y, 20, 20] for x, y in corners], dtype=np.float64)
    labels = np.ones(len(corners), dtype=np.int64)
    return [ImagePredictions(1, SIZE, labels, np.array(scores), boxes, masks)]


def test_what_others_leave_out_of_annotations_is_filled_in(tmp_path: Path) -> None:
    path = one_image(
        tmp_path, [box_at(10, 10), {**box_at(60, 60, 40), "iscrowd": None, "area": None}]
    )
    found = evaluate(path, boxes_found((10, 10), scores=(0.9,)), [3])
    for kind in ("bbox", "segm"):
        # 20² is small and 40² is medium: one of two found.
        assert found.statistics[kind]["ARs"] == 100
        assert found.statistics[kind]["ARm"] == 0
        assert found.statistics[kind]["ARl"] is None
        assert found.statistics[kind]["AR100"] == 50


def test_what_is_found_in_a_crowd_counts_neither_way(tmp_path: Path) -> None:
    crowd = np.zeros(SIZE, dtype=bool)
    crowd[50:110, 50:150] = True
    region = {"bbox": [50, 50, 100, 60], "segmentation": uncompressed(crowd), "iscrowd": 1}
    path = one_image(tmp_path, [box_at(10, 10), region])
    scores = (0.9, 0.8, 0.7)
    inside = evaluate(path, boxes_found((60, 60), (100, 80), (10, 10), scores=scores), [3])
    outside = evaluate(path, boxes_found((10, 60), (100, 10), (10, 10), scores=scores), [3])
    for kind in ("bbox", "segm"):
        assert inside.statistics[kind]["AP"] == pytest.approx(100)
        assert outside.statistics[kind]["AP"] == pytest.approx(100 / 3), "two of three are wrong"


def test_equal_scores_count_in_the_models_order(tmp_path: Path) -> None:
    path = one_image(tmp_path, [box_at(10, 10)])
    right_first = evaluate(path, boxes_found((10, 10), (90, 90), scores=(0.5, 0.5)), [3])
    wrong_first = evaluate(path, boxes_found((90, 90), (10, 10), scores=(0.5, 0.5)), [3])
    assert right_first.statistics["bbox"]["AP"] == pytest.approx(100)
    assert wrong_first.statistics["bbox"]["AP"] == pytest.approx(50)


def test_boxes_alone_need_no_masks(tmp_path: Path) -> None:
    path = one_image(tmp_path, [{"bbox": [10, 10, 20, 20]}])
    (image,) = boxes_found((10, 10), scores=(0.9,))
    found = evaluate(path, [dataclasses.replace(image, masks=None)], [3], ("bbox",))
    assert found.statistics["bbox"]["AP"] == pytest.approx(100)
    with pytest.raises(UserError, match="annotation 1 has no segmentation"):
        evaluate(path, [image], [3])


@pytest.mark.parametrize("annotations", [[], [{**box_at(1, 1), "iscrowd": 1}]])
def test_ground_truth_without_objects_is_refused(
    tmp_path: Path, annotations: list[dict[str, Any]]
) -> None:
    path = one_image(tmp_path, annotations)
    with pytest.raises(UserError, match="no object to find"):
        evaluate(path, [], [3])


def test_an_unknown_referee_is_refused(truth_file: Path) -> None:
    with pytest.raises(UserError, match="choose pycocotools or hotcoco"):
        evaluate(truth_file, [], CATEGORY_IDS, referee="linesman")


def test_a_referee_that_is_not_installed_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(average_precision, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"data\.referee=hotcoco is not installed: pip install"):
        average_precision.require_referee("hotcoco")
