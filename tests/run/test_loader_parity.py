"""One checkpoint through several loaders: the errors that each of them alone would give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from attnorm.commands.evaluate import main
from attnorm.commands.train import main as train
from attnorm.config import LabelledImagesConfig, LoaderConfig
from attnorm.data.build import build_eval_loader, build_train_loader
from attnorm.distributed import Placement
from attnorm.errors import UserError
from attnorm.run.loader_parity import chosen_loaders
from tests.conftest import SHORT, TINY_RESNET, write_photos

TIMM = "attnorm.data.timm_loader.TimmLoader"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", val_images=7)


def test_errors_are_those_of_each_loader_alone(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    data = ["data=folder", f"data.root={photos}", "data.image_size=32", "data.resize_size=35"]
    arguments = [*SHORT, *TINY_RESNET, *data, "norm=an", f"hydra.run.dir={folder}"]
    assert train([*arguments, "batch_size=8"]) == 0
    checkpoint = f"checkpoint={folder / 'last.pt'}"

    assert main([checkpoint, "loaders=all"]) == 0
    (record,) = json.loads((folder / "loaders.json").read_text())["checkpoints"]
    assert (record["images"], record["trained_with"]) == (21, "torch")
    rows = {row["loader"]: row for row in record["loaders"]}
    assert list(rows)[-2:] == ["torch", "timm"]
    for name, row in rows.items():
        output = tmp_path / f"{name}.json"
        assert main([checkpoint, f"loader={name}", f"output={output}"]) == 0
        alone = json.loads(output.read_text())
        assert alone["top1_error"] == pytest.approx(row["top1_error"])
        assert row["top5_error"] is None, "three classes"
    first = next(iter(rows.values()))
    assert (first["other_predictions"], first["pixel_difference"]) == (0, 0)
    assert rows["torch"]["pixel_difference"] < 1
    # On noise a pixel wide, which no photograph has, ways of resizing differ most.
    assert 0.05 < rows["timm"]["pixel_difference"] < 20


def test_what_one_loader_trained_is_evaluated_by_all(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["data=folder", f"data.root={photos}", "data.image_size=32", "data.resize_size=35"]
    checkpoints = []
    for loader, seed in (("dali", 1), ("torch", 2)):
        folder = tmp_path / loader
        arguments = [*SHORT, *TINY_RESNET, *data, f"loader={loader}", f"seed={seed}"]
        assert train([*arguments, "batch_size=8", f"hydra.run.dir={folder}"]) == 0
        checkpoints.append(f"checkpoint={folder / 'last.pt'}")

    output = tmp_path / "both.json"
    assert main([*checkpoints, "loaders=all", f"output={output}"]) == 0
    of_dali, of_torch = json.loads(output.read_text())["checkpoints"]
    assert (of_dali["trained_with"], of_torch["trained_with"]) == ("dali", "torch")
    shown = capsys.readouterr().out.splitlines()
    for record in (of_dali, of_torch):
        errors = [f"{row['top1_error']:.2f}" for row in record["loaders"]]
        found = [line for line in shown if line.split()[1:2] == [record["trained_with"]]]
        assert any(line.split()[3::2] == ["21", *errors] for line in found), shown
    mean = (of_dali["loaders"][1]["top1_error"] + of_torch["loaders"][1]["top1_error"]) / 2
    (together,) = (line for line in shown if "together" in line)
    assert together.split()[3] == "42"
    assert together.split()[7] == f"{mean:.3f}"

    with pytest.raises(SystemExit, match="2"):
        main(checkpoints)
    assert "evaluate one at a time" in capsys.readouterr().err


def test_timms_pixels_are_those_of_the_torch_loader_where_nothing_is_resized(
    photos: Path,
) -> None:
    config = LabelledImagesConfig(
        name="folder", root=str(photos), image_size=36, resize_size=36, workers=0
    )
    placement = Placement(torch.device("cpu"), 5)
    pixels = []
    for loader in (LoaderConfig("torch"), LoaderConfig("timm", loader_class=TIMM)):
        batches = list(build_eval_loader(config, loader, placement).epoch(0))
        pixels.append(torch.cat([images for images, _ in batches]))
        labels = torch.cat([labels for _, labels in batches])
    assert np.bincount(labels).tolist() == [7, 7, 7]
    # Decoders may round otherwise.
    assert (pixels[0] - pixels[1]).abs().max() < 3 / 255 / 0.22
    assert (pixels[0] - pixels[1]).abs().mean() < 0.3 / 255 / 0.22


def test_timms_transform_does_not_train(photos: Path) -> None:
    config = LabelledImagesConfig(name="folder", root=str(photos), image_size=32, resize_size=32)
    loader = LoaderConfig("timm", loader_class=TIMM)
    with pytest.raises(UserError, match="loader=timm evaluates only"):
        build_train_loader(config, loader, Placement(torch.device("cpu"), 4), seed=0)


def test_one_loader_is_no_comparison() -> None:
    with pytest.raises(UserError, match="give all, or a list of two or more"):
        chosen_loaders(["torch", "torch"])
    with pytest.raises(UserError, match="loaders=dali: give all"):
        chosen_loaders("dali")
    assert chosen_loaders(["torch", "timm", "torch"]) == (["torch", "timm"], [])
