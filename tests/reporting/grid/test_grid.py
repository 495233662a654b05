"""A grid of real runs: planned, shared by two queues, reported with differences by seed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from attnorm.commands import evaluate, train
from attnorm.errors import UserError
from attnorm.reporting.grid.plan import Grid
from attnorm.reporting.grid.report import summary, write_report
from attnorm.reporting.grid.table import build_table
from tests.conftest import ROOT
from tests.reporting.runs import write_run
from tests.script import run_script

TINY = [
    *("arch=mobilenetv2", "epochs=1", "batch_size=32", "loader=synthetic", "loader.images=32"),
    *("tracking.tensorboard=false", "optim.lr=0.01", "tracking.log_every=1"),
]


def test_values_with_commas_are_axes_and_the_first_table_is_whole_early(tmp_path: Path) -> None:
    grid = Grid.read(
        ["norm=bn,an", "seed=0,1", "optim.lr=0.1,0.2", "data.crop_scale=[0.35,1]", "epochs=2"],
        tmp_path,
    )
    names = [run.name for run in grid.plan()]
    assert names == [
        *("bn_lr0.1_seed0", "an_lr0.1_seed0", "bn_lr0.2_seed0", "an_lr0.2_seed0"),
        *("bn_lr0.1_seed1", "an_lr0.1_seed1", "bn_lr0.2_seed1", "an_lr0.2_seed1"),
    ]
    (command, *_) = (run.command for run in grid.plan())
    assert {"norm=bn", "seed=0", "data.crop_scale=[0.35,1]", "epochs=2"} <= set(command)
    assert f"hydra.run.dir={tmp_path / 'bn_lr0.1_seed0'}" in command


def test_experiments_in_pairs_are_an_axis_and_name_their_runs(tmp_path: Path) -> None:
    pairs = "+experiment=[ablation/an_k1,photos_resnet50],[ablation/se_bn3,photos_resnet50]"
    grid = Grid.read([pairs, "seed=0"], tmp_path)
    assert [run.name for run in grid.plan()] == [
        "ablation-an_k1-photos_resnet50-_seed0",
        "ablation-se_bn3-photos_resnet50-_seed0",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["norm=bn,nonesuch"], "norm=nonesuch is not known"),
        (["norm"], "'norm' is not key=value"),
        (["norm=bn", "norm=an"], "norm= is there twice"),
        (["name=x"], "name= is the grid's own"),
        (["seed=0,x"], "seed"),
    ],
)
def test_a_grid_that_cannot_be_trained_is_refused_at_once(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Grid.read(overrides, tmp_path)


def test_two_queues_share_a_grid_and_its_report_compares_seed_by_seed(tmp_path: Path) -> None:
    arguments = ["--runs", str(tmp_path), "norm=bn,an", "seed=0", *TINY]
    command = [sys.executable, str(ROOT / "scripts" / "run_table.py"), *arguments]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    _wait_for_a_claim(tmp_path / "queue", other)
    ours = run_script("run_table", *arguments)
    outputs = [ours.stdout, other.communicate(timeout=300)[0]]
    assert [ours.returncode, other.returncode] == [0, 0], outputs
    trained = [re.findall(r"^\[\d/2\] (\w+)$", output, re.MULTILINE) for output in outputs]
    assert trained == [["an_mobilenetv2_seed0"], ["bn_mobilenetv2_seed0"]]
    assert all("| an | 1 |" in output for output in outputs)
    assert not list((tmp_path / "queue").glob("*.claim"))

    again = run_script("run_table", *arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before") == 2

    for norm in ("bn", "an"):
        folder = tmp_path / f"{norm}_mobilenetv2_seed1"
        assert train.main([f"norm={norm}", "seed=1", *TINY, f"hydra.run.dir={folder}"]) == 0
    _class_errors_are_those_of_the_last_checkpoints(tmp_path)
    records = json.loads((tmp_path / "report" / "grid.json").read_text())
    errors = {record["norm"]: record["top1_errors"] for record in records}
    an, bn = errors["an"], errors["bn"]
    expected = sum(a - b for a, b in zip(an, bn, strict=True)) / 2
    (to_bn,) = (record["to_bn"] for record in records if record["norm"] == "an")
    assert to_bn == pytest.approx(expected)


def _wait_for_a_claim(folder: Path, queue: subprocess.Popen[str]) -> None:
    while not list(folder.glob("*.claim")):
        assert queue.poll() is None, "it ended without a run"
        time.sleep(0.02)


def _class_errors_are_those_of_the_last_checkpoints(runs: Path) -> None:
    done = run_script("run_table", "--runs", str(runs), "--report", "--per-class")
    assert done.returncode == 0, done.stderr
    assert "| an | 2 |" in done.stdout
    (rows,) = json.loads((runs / "report" / "classes.json").read_text()).values()
    assert [row["class"] for row in rows] == [str(digit) for digit in range(10)]
    of_seeds = []
    for seed in (0, 1):
        folder = runs / f"an_mobilenetv2_seed{seed}"
        stored = json.loads((folder / "per_class_final.json").read_text())
        assert evaluate.main([f"checkpoint={folder / 'last.pt'}"]) == 0
        whole = json.loads((folder / "eval.json").read_text())["top1_error"]
        wrong = sum(n * e for n, e in zip(stored["images"], stored["top1_error"], strict=True))
        assert wrong / 360 == pytest.approx(whole)
        of_seeds.append(stored["top1_error"])
    for row, first, second in zip(rows, *of_seeds, strict=True):
        assert row["bn"] + row["an − bn"] == pytest.approx((first + second) / 2)
    assert "Class by class" in (runs / "report" / "index.html").read_text()


def test_seeds_are_paired_and_runs_of_other_data_or_machines_are_not_mixed(
    tmp_path: Path,
) -> None:
    for seed, (bn, an) in enumerate(((10.0, 9.0), (14.0, 12.5), (12.0, 11.5))):
        for norm, error in (("bn", bn), ("an", an)):
            write_run(tmp_path, "resnet50", norm, [50.0, error], seed=seed, epochs=2)
    table = build_table(tmp_path)
    (an,) = (cell for cell in table.cells if cell.norm == "an")
    assert an.to_bn is not None
    assert an.to_bn.value == pytest.approx(-1.0)
    # Differences −1, −1.5, −0.5: s = 0.5, t(0.975, 2) = 4.303.
    assert an.to_bn.margin == pytest.approx(4.303 * 0.5 / 3**0.5, rel=1e-3)
    assert an.margin is not None
    path = tmp_path / "resnet50_an_seed2" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "data": {"train": {"sha256": "another"}}}))
    table = build_table(tmp_path)
    assert sorted(len(cell.seeds) for cell in table.cells if cell.norm == "an") == [1, 2]
    path = tmp_path / "resnet50_bn_seed0" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "hardware": {"device": "another", "threads": 2}}))
    (bn,) = (cell for cell in build_table(tmp_path).cells if cell.norm == "bn")
    assert len(bn.seeds) == 3
    assert bn.images_per_second is None
    write_report(table, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "0: 9.00, 1: 12.50" in page
    assert summary(table).count("\n") == 1 + len(table.cells)


def test_an_empty_folder_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no runs"):
        build_table(tmp_path)


def test_recipes_that_come_to_the_same_stay_apart(tmp_path: Path) -> None:
    for recipe, error in (("paper", 20.0), ("released", 22.0)):
        run = write_run(tmp_path / recipe, "resnet50", "bn", [50.0, error], epochs=2)
        config = yaml.safe_load((run / "config.yaml").read_text()) | {"recipe_name": recipe}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    cells = build_table(tmp_path).cells
    found = {cell.label["recipe_name"]: cell.error for cell in cells}
    assert found == {"paper": 20.0, "released": 22.0}
