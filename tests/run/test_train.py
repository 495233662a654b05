"""Whole runs through the composed config: train, continue, evaluate, on real JPEGs."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from attnorm import config as schema
from attnorm.errors import UserError
from attnorm.run.evaluate import evaluate_checkpoint
from attnorm.run.train import run
from attnorm.training import checkpoint
from attnorm.training.interrupts import RunInterrupted
from attnorm.training.step import TrainingStep
from attnorm.training.task import Metrics
from tests.conftest import SHORT, TINY_RESNET, compose_config, write_photos
from tests.forked import Forked, ranks

Start = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of three colours: 3 × 12 training and 3 × 5 validation JPEGs of 40 × 36."""
    return write_photos(tmp_path_factory.mktemp("photos"), val_images=5)


def _folder_config(photos: Path, *overrides: str) -> schema.Config:
    data = ["data=folder", f"data.root={photos}", "data.image_size=32", "data.resize_size=32"]
    settings = [*SHORT, *TINY_RESNET, *data, "batch_size=6", "optim.lr=0.05"]
    return compose_config(*settings, *overrides)


def _run(config: schema.Config, folder: Path) -> tuple[dict[str, Any], str]:
    output = io.StringIO()
    result = run(config, folder, Console(file=output, width=120))
    return result, output.getvalue()


def _evaluated(path: Path, overrides: list[str], **options: Any) -> Metrics:
    return evaluate_checkpoint(path, overrides, **options).metrics


def _lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize(
    ("norm", "batch_size", "falls_to"),
    [
        ("bn", 16, 0.7),
        ("sn", 16, 0.7),
        ("an", 16, 0.7),
        pytest.param("se", 16, 0.7, marks=pytest.mark.slow),
        pytest.param("gn", 8, 0.95, marks=pytest.mark.slow),  # slower than those of the batch
    ],
)
def test_each_normalizer_trains_on_digits_and_its_checkpoint_evaluates(
    norm: str, batch_size: int, falls_to: float, tmp_path: Path
) -> None:
    settings = [*SHORT, *TINY_RESNET, f"norm={norm}", "epochs=1", "optim.lr=0.6"]
    squeeze = [r"arch.squeeze_sites='layer\d\.\d+\.bn2'"] if norm == "se" else []
    config = compose_config(*settings, f"batch_size={batch_size}", *squeeze)
    result, _ = _run(config, tmp_path / "run")
    losses = [line["loss"] for line in _lines(tmp_path / "run", "train")]
    assert len(losses) == 1437 // batch_size
    assert sum(losses[-5:]) < falls_to * sum(losses[:5])
    evaluated = _evaluated(tmp_path / "run" / "best.pt", ["loader=torch", "data.workers=0"])
    assert evaluated["images"] == 360
    assert evaluated["top1_error"] == pytest.approx(result["best"]["top1_error"])
    assert evaluated["loss"] == pytest.approx(result["best"]["loss"], rel=1e-5)
    if norm == "an":
        with_dali = _evaluated(tmp_path / "run" / "best.pt", ["loader=dali"])
        assert with_dali["images"] == 360
        assert with_dali["top1_error"] == pytest.approx(evaluated["top1_error"], abs=0.3)


def test_a_run_folder_holds_what_the_contract_says(photos: Path, tmp_path: Path) -> None:
    config = _folder_config(photos, "tracking.tensorboard=true")
    result, printed = _run(config, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        *("config.yaml", "metrics.jsonl", "last.pt", "best.pt", "result.json"),
        *("tensorboard", "log", "checkpoints"),
    }
    assert [path.name for path in (tmp_path / "run" / "log").iterdir()] == ["rank0.log"]
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["data"]["num_classes"] == 3, "counted from the folder"
    assert stored["precision"] == "fp32", "resolved from auto"
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["hardware"]["threads"] == torch.get_num_threads()
    files = {half: len(list((photos / half).rglob("*.jpg"))) for half in ("train", "val")}
    assert {half: written["data"][half]["images"] for half in files} == files
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["config"] == stored
    assert state["class_names"] == ["blue", "green", "red"]
    assert {
        "model",
        "optimizer",
        "scaler",
        "epoch",
        "scores",
        "processes",
        "versions",
    } <= state.keys()
    assert result["final"]["top5_error"] is None, "three classes"
    assert "n/a" in printed
    assert "tensorboard --logdir" in printed
    assert [line["step"] for line in _lines(tmp_path / "run", "train")] == list(range(1, 13))


def test_tensorboard_gets_every_scalar_and_the_config(photos: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _run(_folder_config(photos, "tracking.tensorboard=true"), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars == {
        *("train/loss", "train/top1_error", "train/lr", "train/grad_norm"),
        *("speed/images_per_second", "speed/data_wait", "speed/slowest_data_wait"),
        *("speed/forward", "speed/backward", "speed/communication", "speed/optimizer"),
        "speed/peak_memory_mib",
        *("val/loss", "val/top1_error"),  # top-5 says nothing of three classes
    }
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx([line["loss"] for line in _lines(tmp_path, "train")])
    assert "config/text_summary" in events.Tags()["tensors"]


# All that is drawn at random: for images, for batches, for the size of an epoch, in the network.
EVERYTHING = [
    *("augment.policy=rand-m7-n2-mstd0.5-inc1", "augment.erasing=0.3", "augment.repeats=2"),
    *("augment.mixup=0.2", "augment.cutmix=1.0", "train.loss=binary_cross_entropy"),
    *("data.train_size=24", "data.final_train_size=32", "data.train_size_ramp=[0.4,0.6]"),
    *("data.interpolation=bicubic", "ema.decay=0.9", "ema.every=3", "ema.warmup=true"),
    *("+arch.timm_options.drop_path_rate=0.2", "optim=lamb", "optim.lr=0.01"),
]


@pytest.mark.parametrize(
    ("stop_after", "settings"),
    [
        (2, ["precision=fp32"]),
        (6, ["precision=fp32"]),
        (10, ["precision=fp32"]),
        (10, ["precision=bf16"]),
        (10, EVERYTHING),
        (10, [*EVERYTHING, "loader=dali"]),
    ],
)
def test_a_stopped_run_continues_at_its_step_and_ends_bitwise_the_same(
    stop_after: int,
    settings: list[str],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six steps an epoch: stopped within the first, at its end, and within the second."""
    common = ["epochs=3", "norm=an", "tracking.log_every=4"]
    config = _folder_config(photos, *common, *settings)
    _run(config, tmp_path / "whole")

    train_step = TrainingStep.__call__

    def step_then_signal(self: TrainingStep, *arguments: Any, **options: Any) -> Any:
        result = train_step(self, *arguments, **options)
        if self.state.step + 1 == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", step_then_signal)
        with pytest.raises(RunInterrupted, match="SIGTERM"):
            _run(config, tmp_path / "parts")
    assert checkpoint.load_checkpoint(tmp_path / "parts" / "last.pt")["step"] == stop_after
    result, printed = _run(config, tmp_path / "parts")
    assert f"step {stop_after if stop_after <= 6 else stop_after - 6} of 6" in printed

    ends = [checkpoint.load_checkpoint(tmp_path / run / "last.pt") for run in ("whole", "parts")]
    for name, value in ends[0]["model"].items():
        assert torch.equal(value, ends[1]["model"][name]), name
    for key, slots in ends[0]["optimizer"]["state"].items():
        others = ends[1]["optimizer"]["state"][key]
        for name, slot in slots.items():
            assert torch.equal(torch.as_tensor(slot), torch.as_tensor(others[name])), name
    assert ends[0]["scores"] == ends[1]["scores"]
    assert result["restarts"] == 1
    for kind, keys in (
        ("train", ("step", "loss", "top1_error", "lr", "grad_norm")),
        ("eval", ("step", "epoch", "loss", "top1_error", "images")),
    ):
        whole, parts = (
            [[line[key] for key in keys] for line in _lines(tmp_path / run, kind)]
            for run in ("whole", "parts")
        )
        assert whole == parts, "no line twice, none missing, none different"


def test_bfloat16_on_a_cpu_without_it_is_warned_of(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _folder_config(photos, "epochs=1", "norm=bn", "precision=bf16")
    monkeypatch.setattr("attnorm.run.train.has_fast_bfloat16", lambda device: True)
    _, printed = _run(config, tmp_path / "fast")
    assert "slower" not in printed
    monkeypatch.setattr("attnorm.run.train.has_fast_bfloat16", lambda device: False)
    _, printed = _run(config, tmp_path / "slow")
    assert "neither AVX512_BF16 nor AMX" in printed


def test_bfloat16_on_a_cpu_that_has_it_is_told_of_but_not_taken(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "This CPU computes in bfloat16"
    for fast, precision in ((True, "auto"), (True, "fp32"), (False, "auto")):
        monkeypatch.setattr("attnorm.run.train.has_fast_bfloat16", lambda device, is_=fast: is_)
        config = _folder_config(photos, "epochs=1", "norm=bn", f"precision={precision}")
        folder = tmp_path / f"{precision}_{fast}"
        _, printed = _run(config, folder)
        assert (told in printed) == (fast and precision == "auto")
        assert yaml.safe_load((folder / "config.yaml").read_text())["precision"] == "fp32"


def test_averaged_weights_are_evaluated_as_in_training(photos: Path, tmp_path: Path) -> None:
    config = _folder_config(photos, "ema.decay=0.5", "epochs=1", "norm=an")
    _run(config, tmp_path)
    recorded = _lines(tmp_path, "eval")[-1]
    arguments = ["loader=torch", "data.workers=0"]
    averaged = _evaluated(tmp_path / "last.pt", arguments, weights="ema")
    assert averaged["loss"] == pytest.approx(recorded["ema_loss"], rel=1e-5)
    assert averaged["top1_error"] == pytest.approx(recorded["ema_top1_error"])
    own = _evaluated(tmp_path / "last.pt", arguments)
    assert own["loss"] == pytest.approx(recorded["loss"], rel=1e-5)
    assert own["loss"] != pytest.approx(averaged["loss"], rel=1e-3)
    _run(_folder_config(photos, "epochs=1"), tmp_path / "none")
    with pytest.raises(UserError, match=r"weights=ema, but checkpoint=.* has no averaged weights"):
        _evaluated(tmp_path / "none" / "last.pt", arguments, weights="ema")


def test_a_finished_run_says_so_and_trains_no_more(photos: Path, tmp_path: Path) -> None:
    config = _folder_config(photos, "epochs=1")
    result, _ = _run(config, tmp_path)
    modified = (tmp_path / "last.pt").stat().st_mtime_ns
    again, printed = _run(config, tmp_path)
    assert "already finished" in printed
    assert again == result
    assert (tmp_path / "last.pt").stat().st_mtime_ns == modified


def test_a_folder_with_another_run_is_refused_by_field_and_values(
    photos: Path, tmp_path: Path
) -> None:
    _run(_folder_config(photos, "epochs=1"), tmp_path)
    with pytest.raises(UserError, match=r"epochs: 1 -> 2; optim.lr: 0.05 -> 0.1"):
        _run(_folder_config(photos, "epochs=2", "optim.lr=0.1"), tmp_path)
    with pytest.raises(UserError, match=r"resume=never: .* holds a run already"):
        _run(_folder_config(photos, "epochs=1", "resume=never"), tmp_path)
    _run(_folder_config(photos, "epochs=1", "tracking.log_every=3"), tmp_path)


def test_a_damaged_checkpoint_in_the_run_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    config = _folder_config(photos, "epochs=1")
    _run(config, tmp_path)
    content = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="no checkpoint that can be read"):
        _run(config, tmp_path)


def test_a_changed_bit_is_noticed_and_the_previous_checkpoint_used(
    photos: Path, tmp_path: Path
) -> None:
    config = _folder_config(photos, "epochs=2", "norm=bn")
    _run(config, tmp_path)
    whole = checkpoint.load_checkpoint(tmp_path / "last.pt")
    content = bytearray((tmp_path / "last.pt").read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "last.pt").write_bytes(content)
    assert torch.load(tmp_path / "last.pt", weights_only=True), "torch alone does not notice"
    result, printed = _run(config, tmp_path)
    assert "last.pt cannot be read" in printed
    assert "epoch 2, step 0 of 6" in printed
    assert result["status"] == "finished"
    again = checkpoint.load_checkpoint(tmp_path / "last.pt")
    for name, value in whole["model"].items():
        assert torch.equal(value, again["model"][name]), name


def test_two_processes_train_and_evaluate_every_image_once(start: Start, tmp_path: Path) -> None:
    arguments = [*SHORT, *TINY_RESNET, "epochs=1", "batch_size=32", "name=pair", "norm=an"]
    done = start("train.py", *arguments, processes=2)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "pair"
    assert sorted(path.name for path in (run / "log").iterdir()) == ["rank0.log", "rank1.log"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["pair"]
    assert _lines(run, "eval")[0]["images"] == 360
    assert len(_lines(run, "train")) == 1437 // 64
    assert _lines(run, "train")[0]["lr"] == pytest.approx(0.2 * 64 / 512)
    for line in _lines(run, "train"):
        shares = [line[phase] for phase in ("forward", "backward", "communication", "optimizer")]
        assert min(shares) > 0
        assert line["data_wait"] + sum(shares) <= 1.0
        assert line["slowest_data_wait"] >= line["data_wait"]

    options = ["checkpoint=runs/pair/best.pt", "loader=torch", "data.workers=0"]
    _evaluate(tmp_path, [*options, "output=alone.json"], [{}])
    _evaluate(tmp_path, [*options, "output=together.json", "batch_size=7"], ranks(2))
    alone, pair = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("alone", "together"))
    assert alone["images"] == pair["images"] == 360
    assert alone["top1_error"] == pair["top1_error"] == _lines(run, "eval")[0]["top1_error"]
    assert alone["top5_error"] == pair["top5_error"]
    assert alone["loss"] == pytest.approx(pair["loss"], rel=1e-5)


def _evaluate(folder: Path, arguments: list[str], group: list[dict[str, str]]) -> None:
    output = folder / "output.txt"
    processes = [Forked(folder, output, ["eval", *arguments], rank) for rank in group]
    assert [process.wait(120) for process in processes] == [0] * len(group), output.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "normalizer",
    [
        pytest.param(["norm=gn"], id="gn"),
        pytest.param(["norm=an", "train.sync_bn=true"], id="an with sync_bn"),
    ],
)
def test_two_processes_follow_the_loss_curve_of_one(
    normalizer: list[str], photos: Path, start: Start, tmp_path: Path
) -> None:
    """The same images a step; what remains is the order of float32 sums, which grows with steps.

    Without train.sync_bn, BN and AN see the statistics of half a batch: another curve.
    """
    settings = [*SHORT, "arch=resnet50", *normalizer, "optim.lr=0.5", "data=folder"]
    settings += [f"data.root={photos}", "data.image_size=64", "data.resize_size=64"]
    one = start("train.py", *settings, "batch_size=12", "name=one")
    two = start("train.py", *settings, "batch_size=6", "name=two", processes=2)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    curves = [
        [(line["loss"], line["grad_norm"]) for line in _lines(tmp_path / "runs" / name, "train")]
        for name in ("one", "two")
    ]
    assert len(curves[0]) == 6
    (first_loss, first_norm), (loss, norm) = curves[0][0], curves[1][0]
    assert loss == pytest.approx(first_loss, rel=1e-5)
    # The number of threads alone moves the first gradient norm of one process by 2e-4.
    assert norm == pytest.approx(first_norm, rel=1e-3)
    # Later steps drift apart, as those of one process on one and on two threads do; statistics of
    # half a batch would be 10 % off at the second step.
    for (one_loss, _), (two_loss, _) in list(zip(*curves, strict=True))[1:3]:
        assert two_loss == pytest.approx(one_loss, rel=2e-2)
