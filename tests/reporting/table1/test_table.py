"""The paper's table beside ours: counts, footnotes, and errors from run folders."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode

import attnorm
from attnorm import config as schema
from attnorm.models.complexity import count_parameters
from attnorm.reporting.table1.formats import to_csv, to_json, to_markdown
from attnorm.reporting.table1.paper import NOTES, ROWS
from attnorm.reporting.table1.table import Row, Table, build_table
from tests.conftest import ROOT, composed
from tests.reporting.runs import with_seed
from tests.script import run_script

EXPECTED = json.loads((ROOT / "tests" / "models" / "expected.json").read_text())


def add_run(
    folder: Path, name: str, top1: float, *overrides: str, seed: int = 0, status: str = "finished"
) -> None:
    """A run folder as train.py leaves it."""
    config = with_seed(composed(*overrides, "data.root=/data/imagenet"), seed)
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(schema.to_container(config)))
    best = {"epoch": 117, "top1_error": top1, "top5_error": top1 / 4, "loss": 1.0}
    result = {
        "status": status,
        "best": best,
        "final": {**best, "top1_error": top1 + 1},
        "parameters": 1,
        "epochs": config.epochs,
        "seed": seed,
    }
    (run / "result.json").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    runs = tmp_path_factory.mktemp("runs")
    an = "+experiment=table1/resnet50_an"
    for seed, error in enumerate((21.0, 22.0, 23.0)):
        add_run(runs, f"an{seed}", error, an, seed=seed)
    add_run(runs, "sub/an-short", 30.0, an, "epochs=30")
    add_run(runs, "bn", 23.5, "+experiment=table1/resnet50_bn")
    # None of these is a run of a row.
    add_run(runs, "an-running", 1.0, an, seed=7, status="running")
    add_run(runs, "an-other-k", 1.0, an, "norm.num_components=5")
    add_run(runs, "an-pretrained", 1.0, an, "arch.pretrained=true")
    add_run(runs, "an-synthetic", 1.0, an, "loader=synthetic")
    add_run(runs, "an-digits", 1.0, "arch=resnet50", "norm=an", "data=digits")
    return build_table(runs)


@pytest.fixture(scope="module")
def rows(table: Table) -> tuple[Row, ...]:
    return table.rows


def by_label(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.paper.label: row for row in rows}


def test_the_eleven_rows_have_our_counts(rows: tuple[Row, ...]) -> None:
    assert len(rows) == 11
    for row in rows:
        expected = EXPECTED[row.paper.arch][row.paper.norm]
        assert (row.ours.parameters, row.ours.macs) == (expected["parameters"], expected["macs"])


def test_every_count_that_differs_from_the_paper_has_its_footnote(rows: tuple[Row, ...]) -> None:
    for row in rows:
        printed = row.paper.printed
        same_parameters = f"{row.ours.parameters / 1e6:.2f}" == printed.paper_parameters_m
        assert ("params" in row.paper.notes) == (not same_parameters)
        if printed.paper_flops_g is not None:
            digits = len(printed.paper_flops_g.partition(".")[2])
            same_flops = f"{row.ours.macs / 1e9:.{digits}f}" == printed.paper_flops_g
            assert ("flops" in row.paper.notes) == (not same_flops)


def test_the_papers_an_counts_are_what_their_footnote_says() -> None:
    def counts(arch: str, **options: Any) -> tuple[int, int]:
        """All parameters, and all but those that an AN layer, no leaf, holds itself: γ and β."""
        with FakeTensorMode():
            model = attnorm.create_model(arch, norm="an", **options)
        layers = [m for m in model.modules() if isinstance(m, attnorm.AttentiveNorm2d)]
        own = sum(p.numel() for m in layers for p in m.parameters(recurse=False))
        return count_parameters(model), count_parameters(model) - own

    released = {"attention": "released"}
    norm1 = r"features\.denseblock(\d)\.denselayer\d+\.norm1"
    assert counts("resnet50", num_components=12)[0] == 25_685_608
    assert f"{counts('resnet101', **released)[1] / 1e6:.2f}" == "44.71"
    assert f"{counts('densenet161', attentive_sites=norm1, **released)[1] / 1e6:.2f}" == "30.28"
    assert f"{counts('mobilenetv2', num_components=10, **released)[1] / 1e6:.2f}" == "3.56"


def test_rows_that_the_authors_did_not_train_say_so() -> None:
    notes = {row.label: row.notes for row in ROWS}
    assert "se" in notes["ResNet-50-SE"]
    assert "sn" in notes["ResNet-50-SN (8,32)"]
    assert "not retrained" in NOTES["se"]
    assert "not retrained" in NOTES["sn"]
    assert {note for row in ROWS for note in row.notes} | {"ours", "interval", "speed"} == set(
        NOTES
    )


def test_seeds_of_one_recipe_are_averaged_and_recipes_kept_apart(rows: tuple[Row, ...]) -> None:
    long, short = sorted(by_label(rows)["ResNet-50-AN"].results, key=lambda r: -r.epochs)
    assert long.seeds == (0, 1, 2)
    assert (long.top1_error, long.top1_std) == (22.0, 1.0)
    assert (long.top5_error, long.top5_std) == (5.5, 0.25)
    assert (short.epochs, short.top1_error, short.top1_std) == (30, 30.0, None)
    assert by_label(rows)["ResNet-50-BN"].results[0].top1_error == 23.5
    differences = by_label(rows)["ResNet-50-AN"].to_bn
    assert [d.value if d else None for d in differences] == [-1.5, None], "30 epochs of BN: none"
    assert not by_label(rows)["MobileNet-v2-AN"].results


def test_all_formats_tell_the_same(table: Table) -> None:
    markdown = to_markdown(table)
    line = next(line for line in markdown.splitlines() if line.startswith("| ResNet-50-AN"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:5] == ["ResNet-50-AN", "25.76", "25.69", "4.09", "4.09"]
    assert cells[5].split("; ")[0] == "22.00 ± 1.00"
    assert cells[6] == "22.00"
    assert cells[9].split("; ")[0] == "−1.50"
    assert cells[10] == "−1.01"
    assert cells[11].split("; ")[0] == "+0.00 [−2.48, +2.48]"
    assert cells[14].startswith("3 seeds, 120 epochs, lr 0.2; 1 seed, 30 epochs")
    assert "seed 7 unfinished, 120 of 120 epochs" in cells[14]
    assert all(f"[{note}] {text}" in markdown for note, text in NOTES.items())

    lines = list(csv.reader(io.StringIO(to_csv(table))))
    assert cells == next(row for row in lines if row[0] == "ResNet-50-AN")
    assert len(set(lines[0])) == len(lines[0])

    content = json.loads(to_json(table))
    row = next(row for row in content["rows"] if row["model"] == "ResNet-50-AN")
    assert row["parameters"] == 25_755_170
    assert row["paper_top1_error"] == "22.00"
    assert row["results"][0]["seeds"] == [0, 1, 2]
    assert content["notes"] == NOTES


def _rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values))


def test_a_run_of_the_version_before_has_the_same_row_and_recipe(tmp_path: Path) -> None:
    def as_version_0_1_stored_it(config: dict[str, Any]) -> None:
        del config["task"], config["norm"]["schema"], config["schedule"]["schema"]
        del config["schedule"]["curve"], config["schedule"]["options"]
        for key in ("schema", "factory", "reference_batch", "options"):
            del config["optim"][key]

    an = "+experiment=table1/resnet50_an"
    add_run(tmp_path, "new", 22.0, an)
    add_run(tmp_path, "old", 24.0, an, seed=1)
    _rewrite(tmp_path / "old" / "config.yaml", as_version_0_1_stored_it)
    (result,) = by_label(build_table(tmp_path).rows)["ResNet-50-AN"].results
    assert (result.seeds, result.top1_error) == ((0, 1), 23.0)


def test_runs_of_another_task_or_another_version_are_named_and_left_out(tmp_path: Path) -> None:
    def detect(config: dict[str, Any]) -> None:
        config["task"] |= {"name": "detection", "task_class": "detectors.Detection"}

    an = "+experiment=table1/resnet50_an"
    for name in ("boxes", "tomorrow", "regression"):
        add_run(tmp_path, name, 22.0, an)
    _rewrite(tmp_path / "boxes" / "config.yaml", detect)
    _rewrite(tmp_path / "tomorrow" / "config.yaml", lambda config: config.update(unheard_of=1))
    _rewrite(tmp_path / "tomorrow" / "config.yaml", lambda config: config.pop("task"))
    for name in ("boxes", "regression"):
        result = tmp_path / name / "result.json"
        best = {"epoch": 3, "step": 6, "average_precision": 30.0}
        result.write_text(json.dumps({"status": "finished", "best": best, "epochs": 3}))
    table = build_table(tmp_path)
    assert not any(row.results or row.unfinished for row in table.rows)
    assert len(table.others) == 3
    assert "1 run of another task, detection, on imagenet." in to_markdown(table)
    assert "2 runs on imagenet with settings of no row" in to_markdown(table)


def test_a_damaged_run_folder_is_named(tmp_path: Path) -> None:
    add_run(tmp_path, "an", 20.0, "+experiment=table1/resnet50_an")
    (tmp_path / "an" / "config.yaml").unlink()
    with pytest.raises(attnorm.UserError, match="an is not a whole run folder"):
        build_table(tmp_path)


def test_the_script_prints_the_table_and_refuses_a_folder_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_script("table1")
    assert done.returncode == 0
    assert "The paper's Table 1 beside ours, on ImageNet." in done.stdout
    assert done.stdout.count("\n| ResNet-") == 7
    assert "| – |" in done.stdout
    done = run_script("table1", "--runs", "gone")
    assert done.returncode == 2
    assert "--runs gone is not a folder" in done.stderr


def test_other_data_is_not_averaged_nor_the_speed_of_other_machines(tmp_path: Path) -> None:
    an = "+experiment=table1/resnet50_an"
    for seed, (device, data) in enumerate((("H100", "a"), ("A100", "a"), ("A100", "b"))):
        add_run(tmp_path, f"an{seed}", 22.0 + seed, an, seed=seed)
        path = tmp_path / f"an{seed}" / "result.json"
        result = json.loads(path.read_text())
        result |= {"data": {"train": {"sha256": data}}, "hardware": {"device": device}}
        path.write_text(json.dumps(result))
        line = {"kind": "train", "step": 1, "images_per_second": 1000.0}
        (tmp_path / f"an{seed}" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    table = build_table(tmp_path)
    mixed, other = sorted(table.results, key=lambda result: result.seeds)
    assert (mixed.seeds, other.seeds) == ((0, 1), (2,))
    assert (mixed.top1_error, other.top1_error) == (22.5, 24.0)
    assert (mixed.images_per_second, other.images_per_second) == (None, 1000.0)
    assert "No speed where runs of a result ran on different machines." in to_markdown(table)


def test_other_test_sets_have_columns(tmp_path: Path) -> None:
    an = "+experiment=table1/resnet50_an"
    for seed, error in enumerate((50.0, 52.0)):
        add_run(tmp_path, f"an{seed}", 22.0, an, seed=seed)
        evaluation = tmp_path / f"an{seed}" / "eval_imagenet_a.json"
        evaluation.write_text(json.dumps({"top1_error": error}))
    add_run(tmp_path, "bn", 23.0, "+experiment=table1/resnet50_bn")
    (tmp_path / "bn" / "eval_real.json").write_text(json.dumps({"top1_error": 17.0}))
    add_run(tmp_path, "bn1", 23.0, "+experiment=table1/resnet50_bn", seed=1)
    table = build_table(tmp_path)
    assert table.other_tests == ["imagenet_a"], "only one of two runs of BN has the other"
    heads, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in to_markdown(table).splitlines()
        if line.startswith("|")
    )
    column = heads.index("top-1 error, imagenet_a (%)")
    shown = {line[0]: line[column] for line in lines}
    assert shown["ResNet-50-AN"] == "51.00 ± 1.41"
    assert shown["ResNet-50-BN"] == "n/a"
    assert shown["MobileNet-v2-AN"] == "–"
    (an_row,) = (
        row for row in json.loads(to_json(table))["rows"] if row["norm"] == "an" and row["results"]
    )
    assert an_row["results"][0]["other_tests"] == {"imagenet_a": [50.0, 52.0]}
