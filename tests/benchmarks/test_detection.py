"""Mask R-CNN against torchvision's: both commands train and evaluate the same pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from attnorm.config import CocoConfig
from attnorm.detection.scenes import make_digit_scenes
from benchmarks import command, detection, detection_rival


def test_both_train_networks_of_one_shape(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    detection.add_arguments(parser)
    root = tmp_path / "scenes"
    scenes = CocoConfig(name="digit_scenes", source="digit_scenes", root=str(root))
    scenes.num_train_scenes, scenes.num_val_scenes = 4, 1
    make_digit_scenes(root, scenes)
    args = parser.parse_args(["--root", str(root), "--side", "64", "--workers", "0"])

    lines = detection._training(args, tmp_path / "trained")
    results = {name: [command.time_command(line, tmp_path)] for name, line in lines.items()}
    ours, rival = (
        {name: value.shape for name, value in state.items() if value.ndim == 4}
        for state in (
            torch.load(tmp_path / "trained" / "last.pt", weights_only=True)["model"],
            torch.load(tmp_path / "trained.torchvision.pt", weights_only=True),
        )
    )
    mask = "mask_predictor"  # whose last convolution has as many outputs as there are classes
    assert sorted(v for k, v in ours.items() if mask not in k) == sorted(
        v for k, v in rival.items() if mask not in k
    )
    rows = command.compare(results, detection.OURS, 1)
    assert rows[0]["ours ÷ it"].startswith("1.000")


def test_a_rivals_results_are_in_cocos_format() -> None:
    masks = torch.zeros(2, 1, 6, 8)
    masks[0, 0, 1:4, 2:7] = 0.9
    output = {
        "boxes": torch.tensor([[2.0, 1.0, 7.0, 4.0], [0.0, 0.0, 1.0, 1.0]]),
        "scores": torch.tensor([0.75, 0.5]),
        "labels": torch.tensor([3, 90]),
        "masks": masks,
    }
    first, second = detection_rival.as_results(7, output)
    assert (first["image_id"], first["category_id"], first["bbox"]) == (7, 3, [2, 1, 5, 3])
    assert detection_rival.coco_mask.area(
        [first["segmentation"], second["segmentation"]]
    ).tolist() == [15, 0]
