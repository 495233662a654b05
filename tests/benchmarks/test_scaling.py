"""benchmarks/scaling.py: the division by hand, what it is fed with, and its page."""

import json
from pathlib import Path
from typing import Any

import pytest

from attnorm.reporting.table1.paper import ROWS
from benchmarks import measure
from benchmarks.scaling import TRAIN_IMAGES, bounds, hours, images_per_step
from tests.conftest import ROOT, compose_config
from tests.script import run_script

BY_LABEL = {row.label: row for row in ROWS}
MEMORY = 3.35e12  # bytes per second of an H100


def test_hours_are_images_over_speed() -> None:
    # 2 × 1,281,167 images at 1000 a second are 2562.334 seconds; 8 GPUs need an eighth of them.
    assert hours(1000.0, gpus=1, epochs=2) == pytest.approx(0.7117594)
    assert hours(1000.0, gpus=8, epochs=2) == pytest.approx(0.0889699)


def test_the_published_speed_is_42_percent_of_the_bandwidth_bound() -> None:
    bandwidth, published = bounds().values()
    for row in ROWS:
        key = (row.arch, row.norm)
        assert published[key] / bandwidth[key] == pytest.approx(0.4224, abs=1e-4)
    assert published["resnet50", "bn"] == pytest.approx(2790)


@pytest.mark.parametrize(("norm", "more_bytes"), [("se", 12 * 5.5e6 * 2), ("sn", 22 * 11.1e6 * 3)])
def test_more_passes_over_the_memory_take_more_time(norm: str, more_bytes: float) -> None:
    bandwidth = bounds()["bandwidth bound"]
    image = 1 / bandwidth["resnet50", "bn"] + more_bytes / MEMORY
    assert bandwidth["resnet50", norm] == pytest.approx(1 / image, rel=2e-3)


@pytest.mark.parametrize(
    ("label", "gpus", "expected"),
    [
        ("ResNet-50-BN", 1, (4, 128)),
        ("ResNet-50-BN", 4, (1, 128)),
        ("ResNet-50-BN", 64, (1, 8)),
        ("ResNet-50-SN (8,32)", 1, (8, 32)),
        ("ResNet-50-SN (8,32)", 64, (1, 4)),
    ],
)
def test_a_step_is_shared_evenly(label: str, gpus: int, expected: tuple[int, int]) -> None:
    assert images_per_step(BY_LABEL[label], gpus) == expected


def test_a_pass_on_the_papers_gpus_is_the_experiments_batch() -> None:
    for row in ROWS:
        config = compose_config(f"+experiment=table1/{row.arch}_{row.norm}", "data.root=/data")
        assert images_per_step(row, gpus=1)[1] == config.batch_size
        assert config.data.num_train_images == TRAIN_IMAGES


def printed(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """What ``--json`` writes, its rows by their label."""
    target = tmp_path / "scaling.json"
    done = run_script("benchmark", "scaling", *arguments, "--json", str(target))
    assert done.returncode == 0, done.stderr
    record = json.loads(target.read_text())
    (rows,) = [value for value in record.values() if isinstance(value, list)]
    assert measure.markdown_table(rows) in done.stdout
    return {**record, "table": measure.markdown_table(rows), **{row["row"]: row for row in rows}}


def test_the_page_shows_the_table_that_the_command_prints(tmp_path: Path) -> None:
    record = printed(tmp_path)
    assert "not measurements" in record["machine"]
    assert record["table"] in (ROOT / "docs" / "scaling.md").read_text()
    assert record["all eleven"]["1 GPU: hours, bandwidth bound"] == pytest.approx(101, rel=0.005)
    assert record["all eleven"]["1 GPU: hours, 42 % of it"] == pytest.approx(239, rel=0.005)


def write_speeds(path: Path, machine: str, **speeds: float) -> str:
    rows = [
        {"arch": key.split("_")[0], "norm": key.split("_")[1], "images per second": value}
        for key, value in speeds.items()
    ]
    record = {"command": "python -m benchmarks model", "machine": machine, "training": rows}
    path.write_text(json.dumps(record))
    return str(path)


def test_measured_rows_replace_the_bounds_and_the_others_are_not_guessed(tmp_path: Path) -> None:
    one = write_speeds(tmp_path / "one.json", "H100", resnet50_bn=3000.0, resnet50_an=2900.0)
    two = write_speeds(tmp_path / "two.json", "AMD EPYC", resnet101_bn=1500.0)
    record = printed(tmp_path, "--images-per-second", one, two, "--gpus", "8", "--epochs", "30")
    column = "8 GPUs: hours, measured"
    assert record["ResNet-50-BN"][column] == pytest.approx(hours(3000.0, 8, 30))
    assert record["ResNet-101-BN"][column] == pytest.approx(hours(1500.0, 8, 30))
    assert record["ResNet-50-GN"][column] is None
    assert record["all eleven"][column] is None
    assert "| ResNet-50-GN | not measured |" in record["table"]
    assert "H100: `python -m benchmarks model` · AMD EPYC: " in record["machine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus 0: ResNet-50-BN's 512 images per step are not divisible"),
        (["--gpus", "512"], "--gpus 512: ResNet-50-SN (8,32)'s 256 images per step"),
        (["--epochs", "0"], "--epochs 0: it must be at least 1."),
        (["--images-per-second", "nowhere.json"], "nowhere.json: No such file"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], message: str) -> None:
    finished = run_script("benchmark", "scaling", *arguments)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert message in finished.stderr


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "images per second",
        '{"each attentive layer": [{"arch": "resnet50"}], "machine": "H100", "command": "c"}',
        '{"training": [{"arch": "resnet50", "norm": "bn", "images per second": 0}],'
        ' "machine": "H100", "command": "c"}',
    ],
)
def test_a_file_of_another_kind_is_refused(content: str, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.json"
    foreign.write_text(content)
    finished = run_script("benchmark", "scaling", "--images-per-second", str(foreign))
    assert finished.returncode == 2
    assert f"--images-per-second {foreign}" in finished.stderr


def test_a_row_in_two_files_is_refused(tmp_path: Path) -> None:
    files = [write_speeds(tmp_path / f"{n}.json", "H100", resnet50_bn=3000.0) for n in range(2)]
    finished = run_script("benchmark", "scaling", "--images-per-second", *files)
    assert finished.returncode == 2
    assert "resnet50_bn is in two files" in finished.stderr
