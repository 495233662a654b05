"""The report on a fixed set of run folders, its figures recomputed by hand, and in a browser."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnorm.files import write_json
from attnorm.reporting import per_class
from attnorm.reporting.runs import read_runs
from attnorm.reporting.table1.formats import remarks, to_markdown
from attnorm.reporting.table1.report import write_report
from attnorm.reporting.table1.table import Row, Table, build_table
from tests.reporting.runs import write_run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CLASSES = ["ant", "bee", "cat"]


def _write_classes(run: Path, errors: Sequence[float | None]) -> None:
    result = json.loads((run / "result.json").read_text())
    best = {key: result["best"][key] for key in ("step", "top1_error")}
    content = {"class_names": CLASSES, "images": [9, 9, 9], "top1_error": errors}
    write_json(
        run / per_class.FILES["best"][1], {"best": {**best, "seed": result["seed"]}, **content}
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished, half-finished, failed and missing rows."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, error in enumerate((4.0, 6.0)):
        an = write_run(folder, "resnet50", "an", [50.0, error, 9.0], seed=seed, speed=90 + seed)
        _write_classes(an, [1.0 + seed, 5.0, None])
    for seed, error in enumerate((8.0, 7.0)):
        bn = write_run(
            folder, "resnet50", "bn", [60.0, 20.0, error], seed=seed, hours=3.0, world_size=4
        )
        _write_classes(bn, [4.0, 3.0, None])
    write_run(folder, "mobilenetv2", "bn", [30.0, 10.0, 11.0])
    write_run(folder, "mobilenetv2", "an", [70.0])
    write_run(folder, "densenet161", "bn", [])
    (folder / "queue").mkdir()
    for name, status, message in (
        ("resnet50_an_seed0", "finished", None),
        ("densenet161_bn_seed0", "failed", "error: <disk> is full"),
        ("resnet101_an_seed0", "failed", "no folder was made"),
    ):
        write_json(folder / "queue" / f"{name}.json", {"status": status, "message": message})
    return folder


@pytest.fixture(scope="module")
def table(runs: Path) -> Table:
    return build_table(runs, "digits")


@pytest.fixture(scope="module")
def report(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(table, folder)
    return folder


def _row(table: Table, label: str) -> Row:
    return next(row for row in table.rows if row.paper.label == label)


def test_errors_speed_and_hours_are_those_of_the_runs(table: Table) -> None:
    (an,) = _row(table, "ResNet-50-AN").results
    assert (an.top1_error, an.top5_error) == (5.0, 1.0), "the mean of each run's best epoch"
    assert an.top1_std == pytest.approx(2**0.5)
    # Six intervals a run: 90 four times, 100 and 110 once; 91 likewise.
    assert an.images_per_second == 90.5
    assert an.process_hours == 2.0
    (bn,) = _row(table, "ResNet-50-BN").results
    assert bn.process_hours == 12.0, "3 hours × 4 processes"


def test_the_difference_to_bn_has_welchs_interval(table: Table) -> None:
    (found,) = _row(table, "ResNet-50-AN").to_bn
    assert found is not None
    assert found.value == 5.0 - 7.5
    # s² = 2 and 0.5, n = 2: standard error √1.25, 25/17 degrees of freedom, t(0.975) = 6.168…
    assert found.margin == pytest.approx(6.168 * 1.25**0.5, rel=0.01)
    assert _row(table, "ResNet-50-BN").to_bn == (None,)


def test_half_finished_failed_and_missing_runs_are_told_apart(table: Table) -> None:
    markdown = to_markdown(table)
    lines = {line.split(" | ")[0][2:]: line for line in markdown.splitlines() if "| " in line}
    assert "seed 0 unfinished, 1 of 3 epochs" in lines["MobileNet-v2-AN"]
    assert "seed 0 failed, 0 of 3 epochs" in lines["DenseNet-161-BN"]
    assert re.search(r"\| – \|\s+\[", lines["ResNet-101-AN"]), "nothing to say but its notes"
    assert "densenet161_bn_seed0 failed: error: <disk> is full" in remarks(table)
    assert "resnet101_an_seed0 failed: no folder was made" in remarks(table)
    assert len(remarks(table)) == 2
    assert not _row(table, "MobileNet-v2-AN").results, "70 % after one epoch is no result"


def test_a_line_that_a_kill_cut_short_is_left_out(runs: Path) -> None:
    (run,) = [run for run in read_runs(runs) if run.folder.name == "mobilenetv2_an_seed0"]
    assert [line["step"] for line in run.lines("train")] == [1, 2]


def test_other_data_sets_are_named_and_left_out(runs: Path) -> None:
    imagenet = build_table(runs, "imagenet")
    assert not any(row.results for row in imagenet.rows)
    assert "6 runs on digits: --data digits shows them." in remarks(imagenet)


def test_class_differences_are_means_over_seeds_of_classes_with_images(table: Table) -> None:
    an, bn = (_row(table, f"ResNet-50-{norm}").results[0] for norm in ("AN", "BN"))
    found = per_class.class_differences("resnet50", an.members, bn.members)
    assert found is not None
    assert found.class_names == ("ant", "bee")
    assert found.ranked() == [("ant", -2.5), ("bee", 2.0)]


def test_class_errors_of_an_earlier_best_are_not_used(tmp_path: Path) -> None:
    run = write_run(tmp_path, "resnet50", "an", [50.0, 4.0, 9.0])
    _write_classes(run, [1.0, 5.0, None])
    (found,) = read_runs(tmp_path)
    assert per_class.read(found) is not None
    result = json.loads((run / "result.json").read_text())
    result["best"]["step"] += 1
    (run / "result.json").write_text(json.dumps(result))
    (found,) = read_runs(tmp_path)
    assert per_class.read(found) is None


class _Page(html.parser.HTMLParser):
    """Collects what the page holds and which addresses it names."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.figures = 0
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.rows += tag == "tr"
        self.figures += tag == "figure"
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")


def test_the_page_holds_table_and_figures_and_needs_no_network(report: Path) -> None:
    text = (report / "index.html").read_text()
    found = _Page()
    found.feed(text)
    assert found.rows == 1 + 11
    # Six curves, error against size and against speed, classes of ResNet-50.
    assert found.figures == 9
    assert all(address.startswith(("#", "data:")) for address in found.addresses)
    assert "<script" not in text
    assert "@import" not in text
    assert "&lt;disk&gt; is full" in text
    assert "5.00 ± 1.41" in text
    assert text.count('class="row-resnet50_an"') == 2 * 6, "a line a run in every curve"
    assert "show-resnet50_an" in found.ids
    assert len(set(found.ids)) == len(found.ids)
    assert "Not shown: resnet101, densenet161, mobilenetv2" in text


def test_figures_for_a_paper_are_drawn_in_both_formats(report: Path) -> None:
    names = {path.stem for path in (report / "figures").iterdir()}
    assert names == {
        *("train_loss", "val_loss", "val_top1", "val_top5", "train_top1", "lr"),
        *("error_parameters", "error_throughput", "classes_resnet50"),
    }
    for name in names:
        pixels = np.asarray(Image.open(report / "figures" / f"{name}.png").convert("L"))
        assert pixels.shape[0] > 500, "200 dpi"
        assert pixels.std() > 5, f"{name} is blank"
        assert (report / "figures" / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    for suffix in ("md", "csv", "json"):
        assert (report / f"table1.{suffix}").stat().st_size > 1000


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_complaint(report: Path, tmp_path: Path, width: int) -> None:
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1500"]
    page = (report / "index.html").as_uri()
    screenshot = tmp_path / "page.png"
    log = ["--enable-logging=stderr", "--log-level=0", f"--screenshot={screenshot}"]
    done = subprocess.run(
        [CHROMIUM, *options, *log, page],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(screenshot).convert("L"))
    assert pixels.shape == (1500, width)
    for part in np.array_split(pixels, 3):  # the table, the curves, the figures below
        assert part.std() > 5
