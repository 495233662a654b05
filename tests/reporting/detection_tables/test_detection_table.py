"""Tables 2 to 4 beside ours: the paper's figures, our counts, and AP from run folders."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from attnorm.config import Config
from attnorm.reporting.detection_tables import table as tables
from attnorm.reporting.detection_tables.formats import (
    cells,
    columns,
    remarks,
    to_csv,
    to_json,
    to_markdown,
)
from attnorm.reporting.detection_tables.paper import METRICS, NOTES, ROWS, rows_of
from attnorm.reporting.detection_tables.table import Row, Table, build_table
from tests.conftest import ROOT, composed
from tests.reporting.detection_tables.runs import write_detector
from tests.reporting.runs import write_run
from tests.script import run_script

BN, AN, HEAD = (f"table2/resnet50_{name}" for name in ("bn", "an", "an_an_head"))
PARAMETERS = {
    BN: 44_400_693,
    AN: 45_909_551,
    HEAD: 45_957_739,
    "table2/resnet50_gn": 45_715_509,
    "table3/cascade_resnet101_bn": 96_317_505,
    "table3/htc_resnet101_bn": 99_251_192,
    "table4/mobilenetv2_bn": 21_842_165,
}


@pytest.fixture(scope="module", autouse=True)
def _each_experiment_is_composed_once() -> Iterator[None]:
    def compose(overrides: Sequence[str]) -> Config:
        return composed(*overrides)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "compose", compose)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed, value in enumerate((30.0, 32.0)):
        write_detector(folder, AN, [10.0, value, 20.0], seed=seed)
    for seed, value in enumerate((27.0, 28.0)):
        write_detector(folder, BN, [10.0, 20.0, value], "detector.box_head=4conv1fc", seed=seed)
    write_detector(folder, BN, [10.0, 20.0, 25.0])
    write_detector(folder, HEAD, [10.0])
    # None of these is a run of a row.
    write_detector(folder, AN, [1.0, 2.0, 3.0], "norm.num_components=5")
    write_detector(folder, AN, [1.0, 2.0, 3.0], data="coco")
    write_detector(folder, BN, [1.0, 2.0, 3.0], "detector.fpn_norm=gn")
    write_run(folder, "resnet50", "an", [4.0, 3.0, 2.0])
    return folder


@pytest.fixture(scope="module")
def table(runs: Path) -> Table:
    return build_table(2, runs, "digit_scenes")


def row_of(table: Table, experiment: str) -> Row:
    return next(row for row in table.rows if row.paper.experiment == experiment)


def cell(table: Table, experiment: str, head: str, after: int = 0) -> str:
    """Under a heading, or ``after`` columns to its right."""
    return cells(row_of(table, experiment))[columns(table).index(head) + after]


def test_every_row_is_an_experiment_and_every_experiment_a_row() -> None:
    assert [len(rows_of(number)) for number in (2, 3, 4)] == [9, 4, 2]
    folder = ROOT / "configs" / "experiment"
    files = [path for number in (2, 3, 4) for path in (folder / f"table{number}").iterdir()]
    assert {f"{path.parent.name}/{path.stem}" for path in files} == {r.experiment for r in ROWS}
    for row in ROWS:
        assert row.experiment.startswith(f"table{row.table}/")
        text = (folder / f"{row.experiment}.yaml").read_text()
        assert f"box AP {row.printed['box_AP']}" in text
        assert f"mask AP {row.printed['mask_AP']}" in text
        released = row.released
        if released and released.box_AP:
            assert f"{released.box_AP} / {released.mask_AP}" in text


def test_what_is_printed_is_what_the_papers_claims_rest_on() -> None:
    printed = {row.experiment: {k: float(v) for k, v in row.printed.items()} for row in ROWS}
    for figures in printed.values():
        assert set(figures) in (set(METRICS), {"box_AP", "mask_AP"})
        for kind in ("box", "mask"):
            if f"{kind}_AP50" in figures:
                assert figures[f"{kind}_AP50"] > figures[f"{kind}_AP75"] > figures[f"{kind}_AP"]
        assert figures["box_AP"] > figures["mask_AP"]
    assert printed[HEAD]["box_AP"] - printed[BN]["box_AP"] == pytest.approx(2.9)
    assert {note for row in ROWS for note in row.notes} < set(NOTES)


@pytest.mark.slow  # the same networks as in tests/detection/test_parameters.py
def test_rows_have_our_exact_parameters(table: Table) -> None:
    rows = [*table.rows, *build_table(3).rows, *build_table(4).rows]
    assert len(rows) == 15
    counts = {row.paper.experiment: row.parameters for row in rows}
    assert {name: counts[name] for name in PARAMETERS} == PARAMETERS
    for row in rows:  # published to two digits, of the released networks
        if row.paper.released and not row.is_baseline:
            assert f"{row.parameters / 1e6:.2f}" == row.paper.released.parameters_m


def test_seeds_of_one_recipe_are_averaged_and_box_heads_kept_apart(table: Table) -> None:
    (an,) = row_of(table, AN).results
    assert (an.seeds, an.mean("box_AP"), an.mean("mask_AP50")) == ((0, 1), 31.0, 49.0)
    assert an.std("box_AP") == pytest.approx(2**0.5)
    assert (an.images_per_second, an.process_hours) == (10.0, 8.0)
    four, two = sorted(row_of(table, BN).results, key=lambda result: result.box_head)[::-1]
    assert (four.box_head, four.mean("box_AP")) == ("4conv1fc", 27.5)
    assert (two.box_head, two.mean("box_AP"), two.std("box_AP")) == ("2fc", 25.0, None)


def test_an_is_compared_with_bn_of_the_same_box_head(table: Table) -> None:
    (compared,) = row_of(table, AN).to_bn
    assert compared is not None
    assert compared.same_head
    found = compared.differences["box_AP"]
    assert found.value == 31.0 - 27.5
    # s² = 2 and 0.5, n = 2: standard error √1.25, 25/17 degrees of freedom, t(0.975) = 6.168…
    assert found.margin == pytest.approx(6.168 * 1.25**0.5, rel=0.01)
    assert row_of(table, BN).to_bn == (None, None)


def test_without_such_a_bn_the_other_box_head_serves_and_is_marked(tmp_path: Path) -> None:
    write_detector(tmp_path, AN, [10.0, 30.0, 20.0])
    write_detector(tmp_path, BN, [10.0, 20.0, 25.0])
    write_detector(tmp_path, "table2/resnet50_gn", [10.0, 20.0, 26.0])
    table = build_table(2, tmp_path, "digit_scenes")
    assert cell(table, AN, "box AP − BN") == "+5.0 ‡"
    assert cell(table, "table2/resnet50_gn", "mask AP − BN") == "+1.0 ‡"
    assert cell(table, BN, "box AP − BN") == "–"
    write_detector(tmp_path, BN, [10.0, 20.0, 25.0], "schedule.warmup_steps=7")
    write_detector(tmp_path, AN, [10.0, 30.0, 20.0], "schedule.warmup_steps=9")
    table = build_table(2, tmp_path, "digit_scenes")
    both = cell(table, AN, "box AP − BN").split("; ")
    assert sorted(both) == ["+5.0 ‡", "–"], "no BN under the other recipe"


def test_ours_stand_beside_the_papers_and_the_releases(table: Table) -> None:
    assert cell(table, AN, "box AP") == "31.0 ± 1.4"
    assert cell(table, AN, "box AP", 1) == "40.5"
    assert cell(table, AN, "box AP", 2) == "40.8"
    assert cell(table, AN, "mask AP75", 1) == "38.5"
    assert cell(table, AN, "params (M)") == "45.91"
    assert cell(table, AN, "params (M)", 1) == "45.91"
    assert cell(table, AN, "box AP − BN", 1) == "+1.9"
    assert cell(table, HEAD, "mask AP − BN", 1) == "+2.6"
    assert cell(table, HEAD, "runs") == "seed 0 unfinished, 1 of 3 epochs"
    assert cell(table, "table2/resnet101_gn", "box AP − BN", 1) == "+1.5", "to ResNet-101's BN"
    assert "2 seeds, 3 epochs, lr 0.02, 4conv1fc" in cell(table, BN, "runs")
    htc = build_table(3)
    assert cell(htc, "table3/htc_resnet101_an", "box AP − BN", 1) == "+2.0", "to HTC's BN"
    assert cell(htc, "table3/htc_resnet101_bn", "box AP50", 1) == "–", "it is not printed"


def test_runs_of_no_row_are_named(table: Table) -> None:
    assert remarks(table) == [
        "1 run of another task, classification, on digits.",
        "1 run on coco: --data coco shows them.",
        "2 runs on digit_scenes with settings of no row of Table 2.",
    ]


def test_all_formats_tell_the_same(table: Table) -> None:
    markdown = to_markdown(table)
    line = next(line for line in markdown.splitlines() if line.startswith("| ResNet-50, AN"))
    assert [text.strip() for text in line.strip("|").split("|")] == [
        text.strip() for text in cells(row_of(table, AN))
    ]
    assert "trained on digit_scenes" in markdown
    assert "[mobilenet]" not in markdown
    assert f"[two-codes] {NOTES['two-codes']}" in markdown

    lines = list(csv.reader(io.StringIO(to_csv(table))))
    assert lines[1 + 3] == cells(row_of(table, AN))
    assert len(set(lines[0])) == len(lines[0])
    assert "mask AP, release" in lines[0]

    content = json.loads(to_json(table))
    row = next(row for row in content["rows"] if row["experiment"] == AN)
    assert row["results"][0]["minus_bn"]["box_AP"]["value"] == 3.5
    assert row["released"] == {"parameters_m": "45.91", "box_AP": "40.8", "mask_AP": "36.4"}


@pytest.mark.parametrize("number", ["2", "3", "4"])
def test_the_command_prints_each_table(number: str, tmp_path: Path) -> None:
    done = run_script("table1", "--table", number, "--runs", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"The paper's Table {number} beside ours, on COCO." in done.stdout
    assert all(row.label in done.stdout for row in rows_of(int(number)))


def test_the_command_refuses_what_is_no_table(tmp_path: Path) -> None:
    assert run_script("table1", "--table", "5").returncode == 2
    missing = run_script("table1", "--table", "2", "--runs", str(tmp_path / "none"))
    assert missing.returncode == 2
    assert "give a folder of runs" in missing.stderr


def test_the_experiments_compose() -> None:
    for row in ROWS:
        config = composed(f"+experiment={row.experiment}")
        assert config.task.name == "detection"
        assert config.data.name == "coco"
