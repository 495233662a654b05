"""python -m benchmarks: real shapes, real timings, real runs, tables and JSON."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import SUBJECTS, main
from benchmarks.device_time import in_rotation, is_work, profile_kernels, rotated
from benchmarks.layer import attentive_shapes
from benchmarks.measure import markdown_table, seconds_between, take_turns
from benchmarks.scaling import read_speeds
from tests.conftest import ROOT, SMALL_RESNET, write_photos
from tests.script import run_script


def test_shapes_are_those_of_resnet50() -> None:
    expected = [(64, 56, 10, 3), (128, 28, 10, 4), (256, 14, 20, 6), (512, 7, 20, 3)]
    assert attentive_shapes("resnet50", 224) == expected


def test_the_slower_of_two_is_seen_to_be_slower() -> None:
    times = take_turns({"few": lambda: sum(range(2000)), "many": lambda: sum(range(40000))}, 5)
    assert 5 < times.ratio("many", to="few") < 80
    assert times.median("many") > times.median("few")


def test_what_runs_between_two_calls_is_not_counted() -> None:
    ran: list[str] = []

    def other() -> None:
        ran.append("other")
        time.sleep(0.05)

    def call() -> None:
        ran.append("call")
        time.sleep(0.005)

    assert 0.005 <= seconds_between(other)(call, 4) < 0.03
    assert ran == ["other", "call"] * 4


def test_tables_align_numbers_and_keep_three_digits() -> None:
    table = markdown_table([{"name": "a", "value": 0.12345}, {"name": "b", "value": 1234.5}])
    assert table.splitlines() == ["| name | value |", "|---|--:|", "| a | 0.123 |", "| b | 1234 |"]


@pytest.mark.parametrize(
    ("arguments", "table", "figure"),
    [
        (["layer", "--image-size", "32", "--layout", "channels_last"], "each attentive", "AN both"),
        (
            ["model", "--arch", "mobilenetv2", "--norm", "bn", "an", "--image-size", "32"],
            "training",
            "speed ÷ bn",
        ),
    ],
    ids=["layer", "model"],
)
def test_results_are_printed_and_written(
    arguments: list[str],
    table: str,
    figure: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target, tables = tmp_path / "result.json", tmp_path / "result.md"
    small = ["--batch-size", "2", "--repeats", "1", "--json", str(target)]
    assert main([*arguments, *small, f"--markdown={tables}"]) == 0
    printed = capsys.readouterr().out
    result = json.loads(target.read_text())
    assert "torch" in result["machine"]
    assert result["command"].startswith(f"python -m benchmarks {arguments[0]} ")
    assert str(tmp_path) not in result["command"], "not where it was written to"
    (title,) = [title for title in result if title.startswith(table)]
    assert all(float(str(row[figure]).split()[0]) > 0 for row in result[title])
    assert figure in printed
    assert tables.read_text().strip() == printed.strip()


def test_one_call_gives_eager_and_compiled_speeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode: modes.append(mode))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    target = tmp_path / "result.json"
    options = ["--arch", "mobilenetv2", "--norm", "bn", "an", "--image-size", "32"]
    options += ["--batch-size", "2", "--repeats", "1", "--compile"]
    assert main(["model", *options, "--json", str(target)]) == 0
    rows = json.loads(target.read_text())["training"]
    assert [(row["norm"], row["mode"]) for row in rows] == [
        (norm, mode) for norm in ("bn", "an") for mode in ("eager", "default")
    ]
    assert modes == ["default", "default"]
    assert rows[0]["speed ÷ eager"] == "1.000 (1.000 – 1.000)"
    assert torch.backends.cudnn.benchmark, "the backends are not set as in training"
    speeds, _ = read_speeds([target])
    assert speeds["mobilenetv2", "an"] == rows[2]["images per second"]


def test_the_devices_time_leaves_python_out() -> None:
    x = torch.ones(1000)

    def slow() -> None:
        time.sleep(0.05)
        x.relu()

    slow()
    kernels = profile_kernels(slow, 2)
    assert 0 < kernels.total < 0.02
    assert kernels.named("relu") <= kernels.total
    with pytest.raises(KeyError, match="no kernel is named like 'conv'"):
        kernels.named("conv")


def test_waiting_is_not_counted_as_a_gpus_work() -> None:
    events = [("moments_kernel", False), ("Memcpy DtoD (Device -> Device)", False)]
    idle = [
        ("Context Sync", False),
        ("Stream Wait Event", False),
        ("Optimizer.step#SGD.step", True),
    ]
    assert [is_work(*event) for event in events + idle] == [True, True, False, False, False]


def test_inputs_on_a_gpu_take_turns() -> None:
    numbers = iter(range(9))
    made = rotated(lambda: next(numbers), torch.device("cuda"))
    following = in_rotation(made)
    assert [following() for _ in range(4)] == [0, 1, 2, 0]
    assert len(rotated(lambda: next(numbers), torch.device("cpu"))) == 1


@pytest.mark.slow
def test_the_memory_of_each_loader_is_measured(tmp_path: Path) -> None:
    root, target = write_photos(tmp_path / "photos", val_images=1), tmp_path / "memory.json"
    options = ["--epochs", "4", "--image-size", "32", "--batch-size", "6", "--workers", "1"]
    done = run_script("benchmark", "memory", "--root", str(root), *options, "--json", str(target))
    assert done.returncode == 0, done.stderr
    rows = {row["loader"]: row for row in json.loads(target.read_text())["memory"]}
    assert set(rows) == {"dali", "torch"}
    for row in rows.values():
        second, last = row["after epoch 2, MiB"], row["after epoch 4, MiB"]
        assert 50 < second <= row["most since epoch 2, MiB"]
        assert row["growth, %"] == pytest.approx(100 * (last / second - 1))


@pytest.mark.slow
def test_the_time_to_the_first_step_is_that_of_a_real_run(tmp_path: Path) -> None:
    target = tmp_path / "start.json"
    overrides = [*SMALL_RESNET, "norm=bn", "data.image_size=32", "batch_size=8"]
    done = run_script("benchmark", "start", "--repeats", "1", *overrides, "--json", str(target))
    assert done.returncode == 0, done.stderr
    seconds = json.loads(target.read_text())["seconds to the first step"]
    assert all(1 < value < 120 for value in seconds.values())
    failed = run_script("benchmark", "start", "epochs=-1")
    assert failed.returncode == 2
    assert "epochs=-1 is not possible" in failed.stderr


@pytest.mark.parametrize("subject", ["train", "checkpoint"])
def test_the_trainer_is_measured_as_it_runs(subject: str, tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    small = ["--arch", "mobilenetv2", "--image-size", "32", "--batch-size", "4", "--steps", "2"]
    assert main([subject, *small, "--repeats", "2", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    if subject == "train":
        assert set(result["images_per_second"]) == {"trainer", "bare loop", "timm's parts"}
        assert all(value > 0 for value in result["images_per_second"].values())
        assert set(result["ratios"]) == {"trainer ÷ bare loop", "trainer ÷ timm's parts"}
    else:
        assert result["checkpoint"]["size in MiB"] > 20
        assert result["checkpoint"]["seconds that the step waits"] > 0


def test_our_loaders_and_the_others_read_the_same_photographs(tmp_path: Path) -> None:
    root, target = write_photos(tmp_path / "photos", val_images=1), tmp_path / "loader.json"
    sizes = ["--images", "16", "--image-size", "32", "--batch-size", "8", "--workers", "1", "0"]
    options = ["--root", str(root), *sizes, "--repeats", "1", "--json", str(target)]
    assert main(["loader", *options]) == 0
    (rows,) = (v for v in json.loads(target.read_text()).values() if isinstance(v, list))
    named = {(row["loader"], row["workers"]): row for row in rows}
    assert {"ours (auto)", "ours (torch)", "timm", "torchvision"} < {name for name, _ in named}
    assert ("ours (torch)", 1) in named
    assert all(row["processor, ms per image"] > 0 for row in rows)
    ours, timm = named["ours (auto)", 0], named["timm", 0]
    ratio = float(timm["first ÷ it"].split()[0])
    assert ratio == pytest.approx(ours["img/s"] / timm["img/s"], rel=1e-2)


def test_the_door_opens_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a process in another folder: the benchmarks are neither loaded nor on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p).resolve() != ROOT])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("benchmarks")
    done = run_script("benchmark", "--help")
    assert done.returncode == 0, done.stderr
    assert "{" + ",".join(SUBJECTS) + "}" in done.stdout
