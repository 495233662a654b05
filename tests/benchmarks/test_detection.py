"""Mask R-CNN against torchvision's: both commands train and evaluate the same pictures."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attnorm.config import CocoConfig, compose
from attnorm.detection.model import build_detector
from attnorm.detection.scenes import make_digit_scenes
from benchmarks import command, detection, detection_rival


@pytest.mark.slow
def test_both_train_networks_of_one_shape(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    detection.add_arguments(parser)
    root = tmp_path / "scenes"
    scenes = CocoConfig(name="digit_scenes", source="digit_scenes", root=str(root))
    scenes.num_train_scenes, scenes.num_val_scenes = 4, 1
    make_digit_scenes(root, scenes)
    args = parser.parse_args(["--root", str(root), "--side", "64", "--workers", "0"])

    detection._write_start(args, tmp_path / "start.pt")
    lines = detection._training(args, tmp_path / "trained")
    results = {name: [command.time_command(line, tmp_path)] for name, line in lines.items()}
    ours, rival = (
        {name: value.shape for name, value in state.items() if value.ndim == 4}
        for state in (
            torch.load(tmp_path / "trained" / "last.pt", weights_only=True)["model"],
            torch.load(tmp_path / "trained.torchvision.pt", weights_only=True),
        )
    )
    assert list(ours.values()) == list(rival.values())
    lines = detection._evaluation(args, tmp_path / "trained")
    evaluated = [command.time_command(line, tmp_path) for line in lines.values()]
    assert len(evaluated) == 2
    rows = command.compare(results, detection.OURS, 1)
    assert rows[0]["ours ÷ it"].startswith("1.000")


def test_both_find_the_same_with_the_same_weights() -> None:
    """What makes the comparison one of speed: the networks are the same function."""
    torch.manual_seed(0)
    config = compose(
        [
            "task=detection",
            "arch=resnet50",
            "norm=bn",
            "data=coco",
            "data.root=/x",
            "detector=mask_rcnn",
        ]
    )
    assert config.detector is not None
    detector = replace(config.detector, score_threshold=0.0)
    ours = build_detector(config.arch, config.norm, detector, 5).eval()
    theirs: Any = detection_rival.build(128, ours.state_dict()).eval()
    theirs.roi_heads.score_thresh = 0.0
    theirs.transform.image_mean, theirs.transform.image_std = [0.0] * 3, [1.0] * 3
    image = torch.randn(3, 128, 160)
    with torch.inference_mode():
        (found,) = ours(image[None], [(128, 160)])
        (expected,) = theirs([image])
    assert len(found) == len(expected["boxes"]) > 0
    torch.testing.assert_close(found.boxes, expected["boxes"], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found.scores, expected["scores"])


def test_a_rivals_results_are_in_cocos_format() -> None:
    masks = torch.zeros(2, 1, 6, 8)
    masks[0, 0, 1:4, 2:7] = 0.9
    output = {
        "boxes": torch.tensor([[2.0, 1.0, 7.0, 4.0], [0.0, 0.0, 1.0, 1.0]]),
        "scores": torch.tensor([0.75, 0.5]),
        "labels": torch.tensor([3, 90]),
        "masks": masks,
    }
    first, second = detection_rival.as_results(7, output, [0, *range(11, 120)])
    assert (first["image_id"], first["category_id"], first["bbox"]) == (7, 13, [2, 1, 5, 3])
    assert detection_rival.coco_mask.area(
        [first["segmentation"], second["segmentation"]]
    ).tolist() == [15, 0]
