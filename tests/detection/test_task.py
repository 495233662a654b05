"""Detection through the commands that a person types: trained, killed, continued, evaluated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.multiprocessing.spawn import start_processes

from attnorm.commands import evaluate, train
from attnorm.data.workers import nothing_to_collect
from tests.conftest import ROOT, SMALL_RESNET
from tests.forked import ranks
from tests.script import run_script

SCENES = [
    *("task=detection", "data=digit_scenes", "data.num_train_scenes=20", "data.num_val_scenes=6"),
    *("data.train_sizes=[64]", "data.val_size=64", "data.max_size=96", "data.workers=0"),
]
DETECTOR = [
    *("detector=mask_rcnn", "detector.channels=16", "detector.fc_width=16", "detector.freeze=none"),
    *(
        "detector.box_samples=16",
        "detector.anchor_sizes=[8,16,32,64,128]",
        "detector.box_head=4conv1fc",
    ),
    *("detector.box_head_norm=an", "detector.head_components=[2,2,2,2]"),
    *("detector.train_proposals=[60,60]", "detector.test_proposals=[40,40]"),
    *("detector.score_threshold=0.0",),
]
SETTINGS = [
    *SCENES,
    *DETECTOR,
    *SMALL_RESNET,
    *("norm=an", "norm.num_components=2", "epochs=2", "batch_size=2", "optim.lr=0.02"),
    *(
        "optim.reference_batch=2",
        "optim.clip_norm=5",
        "tracking.log_every=1",
        "tracking.tensorboard=false",
    ),
]


def call(main: Callable[[Sequence[str]], int], *arguments: str) -> None:
    """A command in this process, up to its end."""
    assert main(arguments) == 0


def evaluate_on_two_processes(*arguments: str) -> None:
    """Both as torchrun would start them, forked from this one."""
    with nothing_to_collect():
        start_processes(_evaluate, (ranks(2), arguments), 2, start_method="fork")


def _evaluate(rank: int, environments: Sequence[dict[str, str]], arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    os.environ.update(environments[rank])
    call(evaluate.main, *arguments)


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for part in value.values() for t in tensors(part)]
    return [t for part in value for t in tensors(part)] if isinstance(value, list) else []


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread, like the killed process, so that sums have the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    call(train.main, *SETTINGS, f"hydra.run.dir={folder}")
    return folder


def test_a_run_that_is_killed_continues_to_the_same_bits(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    arguments = [*SETTINGS, "checkpoint.every_steps=3", f"hydra.run.dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen([sys.executable, "train.py", *arguments], cwd=ROOT, env=environment)
    deadline = time.monotonic() + 120
    while not (folder / "last.pt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    call(train.main, *arguments)
    once, twice = (torch.load(path / "last.pt", weights_only=True) for path in (run, folder))
    assert twice["restarts"] == 1
    for part in ("model", "optimizer"):
        pairs = zip(tensors(once[part]), tensors(twice[part]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), part
    assert once["scores"] == twice["scores"]


def test_an_evaluation_is_what_pycocotools_says_of_its_file_on_any_number_of_processes(
    run: Path, tmp_path: Path
) -> None:
    outputs = [tmp_path / processes / "eval.json" for processes in ("one", "two")]
    call(evaluate.main, f"checkpoint={run}/last.pt", f"output={outputs[0]}")
    evaluate_on_two_processes(f"checkpoint={run}/last.pt", f"output={outputs[1]}")
    one, two = results = [json.loads(output.read_text()) for output in outputs]
    files = [Path(result.pop("predictions")) for result in results]
    assert one == two
    assert files[0].read_bytes() == files[1].read_bytes()
    trained = json.loads((run / "result.json").read_text())["final"]
    assert {k: one[k] for k in trained if k in one} == {
        k: v for k, v in trained.items() if k in one
    }

    config = torch.load(run / "last.pt", weights_only=True)["config"]
    assert config["data"]["num_classes"] == 10
    truth = next(Path(os.environ["ATTNORM_CACHE"]).glob("digit-scenes-*-20-6"))
    coco = COCO(str(truth / "annotations" / "instances_val2017.json"))
    entries = json.loads(files[0].read_text())
    assert entries, "a threshold of 0 leaves something"
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        drop = "segmentation" if kind == "bbox" else "bbox"
        found = [{k: v for k, v in entry.items() if k != drop} for entry in entries]
        referee = COCOeval(coco, coco.loadRes(found), kind)
        referee.evaluate()
        referee.accumulate()
        referee.summarize()
        for key, value in zip(("AP", "AP50", "AP75"), referee.stats[:3], strict=True):
            assert one[f"{name}_{key}"] == pytest.approx(100 * value, abs=1e-9)

    again = tmp_path / "again.json"
    other = ["data.referee=hotcoco"] if find_spec("hotcoco") else []
    call(evaluate.main, f"predictions={files[0]}", *SCENES[1:4], *other, f"output={again}")
    repeated = json.loads(again.read_text())
    assert repeated["AP_by_class"] == one["AP_by_class"]
    assert repeated["mask_AR100"] == one["mask_AR100"]


def test_a_picture_is_drawn_of_what_was_found(run: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (90, 70), (200, 30, 30)).save(photo)
    options = [f"checkpoint={run}/last.pt", "score=0", f"output={tmp_path}"]
    done = run_script("predict", *options, str(photo))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "photo.objects.png" in done.stdout.replace("\n", "")
    drawn = Image.open(tmp_path / "photo.objects.png")
    assert drawn.width / drawn.height == pytest.approx(90 / 70, rel=0.02)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=7"], "task=detection needs a detector"),
        (["data=digits"], "data=digits has no boxes"),
        (["loader=dali"], "loader.name=dali is not for task=detection"),
        (["compile=true"], "compile=True is not for task=detection"),
        (["arch.pretrained=true"], "use weights=timm"),
        (["data.num_classes=3"], "data.num_classes=3, but the annotations have 10"),
        (["weights=/nowhere.pt"], "weights=/nowhere.pt: there is no such file"),
        (["detector=htc"], "data.semantic=things"),
        (["task=classification"], "detector=mask_rcnn needs task=detection"),
        (["data.referee=linesman"], "data.referee"),
        (["batch_size=64"], "lower it, or batch_size=64"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_ends_with_its_key_and_leaves_nothing(
    overrides: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = [a for a in SETTINGS if not (a.startswith("detector") and overrides == ["seed=7"])]
    if overrides == ["data=digits"]:
        kept = [a for a in kept if not a.startswith("data")]
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        train.main([*kept, *overrides, f"hydra.run.dir={folder}"])
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert message in " ".join(error.split()), error
    assert not folder.exists()
