"""A data set seen by one, two and three processes: each image once, the same 24 numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from attnorm.data.workers import nothing_to_collect
from attnorm.detection.batch import DetectionBatch, Detections
from attnorm.detection.evaluation import collect, evaluate_predictions, predict, run_model
from attnorm.detection.predictions import write_predictions
from attnorm.training.precision import Precision
from tests.detection.ground_truth import CATEGORY_IDS, SIZE, near_predictions, write_truth

FP32 = Precision("fp32", "cpu")
INPUT = (100, 130)  # half of SIZE


class Finder(nn.Module):
    """Finds what the image, which holds its own number, is known to have."""

    def __init__(self, truth: dict[str, Any]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.known = {image.image_id: image for image in near_predictions(truth)}

    def forward(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        assert not self.training
        self.norm(images)
        found = []
        for image, size in zip(images, sizes, strict=True):
            assert size == INPUT
            known = self.known[round(float(image[0, 0, 0]))]
            boxes = torch.tensor(known.boxes / 2, dtype=torch.float32)
            boxes[:, 2:] += boxes[:, :2]
            generator = torch.Generator().manual_seed(known.image_id)
            masks = torch.rand(len(known), 28, 28, generator=generator)
            masks[:, 4:24, 4:24] = 1
            scores = torch.tensor(known.scores, dtype=torch.float32)
            found.append(Detections(boxes, scores, torch.tensor(known.labels), masks))
        return found


@dataclass
class Images:
    """Each process's share, an image a batch."""

    image_ids: Sequence[int]
    rank: int = 0
    world_size: int = 1
    name: str = "test"
    reason: str = ""
    skipped: int = 0
    num_images: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_images = len(self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids[self.rank :: self.world_size])

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[DetectionBatch]:
        for image_id in self.image_ids[self.rank :: self.world_size]:
            pixels = torch.full((1, 3, 128, 160), float(image_id))
            yield DetectionBatch(pixels, [INPUT], [SIZE], [image_id])

    def close(self) -> None: ...

    def remedies(self, cores: int) -> list[str]:
        return []


def ids_of(truth: dict[str, Any]) -> list[int]:
    return [image["id"] for image in truth["images"]]


def _evaluate(rank: int, world_size: int, folder: Path) -> None:
    truth = json.loads((folder / "truth.json").read_text())
    found = predict(Finder(truth), Images(ids_of(truth), rank, world_size), FP32)
    assert (found is None) == (rank != 0)
    if found is not None:
        numbers = evaluate_predictions(folder / "truth.json", found, CATEGORY_IDS)
        name = f"{world_size}"
        (folder / f"{name}.json").write_text(json.dumps(numbers.statistics))
        write_predictions(folder / f"{name}_predictions.json", found, CATEGORY_IDS)


def _process(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:  # what torchrun sets
        patch.setenv("RANK", str(rank))
        store = f"file://{folder}/store{world_size}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
        _evaluate(rank, world_size, Path(folder))
        dist.destroy_process_group()


def test_one_two_and_three_processes_give_the_same_numbers_and_files(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json")
    assert len(truth["images"]) % 3 != 0, "a share is smaller than another"
    _evaluate(0, 1, tmp_path)
    for processes in (2, 3):
        with nothing_to_collect():
            start_processes(_process, (processes, str(tmp_path)), processes, start_method="fork")
    alone = json.loads((tmp_path / "1.json").read_text())
    assert [len(alone[kind]) for kind in ("bbox", "segm")] == [12, 12]
    assert 5 < alone["segm"]["AP"] < alone["bbox"]["AP"] < 80
    for processes in (2, 3):
        assert json.loads((tmp_path / f"{processes}.json").read_text()) == alone
        written = (tmp_path / f"{processes}_predictions.json").read_bytes()
        assert written == (tmp_path / "1_predictions.json").read_bytes()


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json")
    model = Finder(truth).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run_model(model, Images(ids_of(truth)), FP32)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(KeyError):
        run_model(model, Images([11]), FP32)
    assert model.training, "after an error too"
    run_model(model.eval(), Images(ids_of(truth)), FP32)
    assert not model.training


def test_the_models_order_within_an_image_stays(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json")
    model = Finder(truth)
    reverse = ids_of(truth)[::-1]
    found = predict(model, Images(reverse), FP32)
    assert found is not None
    assert [image.image_id for image in found] == ids_of(truth)
    for image in found:
        known = model.known[image.image_id]
        assert image.labels.tolist() == known.labels.tolist()
        assert len(set(known.scores.tolist())) < len(known) or len(known) < 4, "scores tie"


def test_images_seen_twice_or_never_are_an_error(tmp_path: Path) -> None:
    predictions = near_predictions(write_truth(tmp_path / "truth.json"))
    with pytest.raises(RuntimeError, match="evaluated 8 images of a data set of 8, 1 of them more"):
        collect([*predictions, predictions[2]], 8)
    with pytest.raises(RuntimeError, match="evaluated 7 images of a data set of 8"):
        collect(predictions[1:], 8)


def test_a_detector_without_masks_is_evaluated_on_boxes(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json")

    class Boxes(Finder):
        def forward(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
            found = super().forward(images, sizes)
            return [Detections(each.boxes, each.scores, each.labels) for each in found]

    found = predict(Boxes(truth), Images(ids_of(truth)), FP32)
    assert found is not None
    numbers = evaluate_predictions(tmp_path / "truth.json", found, CATEGORY_IDS)
    assert set(numbers.statistics) == {"bbox"}
