"""The page on a fixed set of run folders: table, curves, classes, pictures; no network."""

from __future__ import annotations

import html.parser
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnorm.detection.average_precision import evaluate
from attnorm.reporting.detection_tables import details
from attnorm.reporting.detection_tables.report import write_report
from attnorm.reporting.detection_tables.table import Table, build_table
from attnorm.reporting.runs import read_runs
from tests.detection.ground_truth import CATEGORY_IDS, near_predictions, write_truth
from tests.reporting.detection_tables.runs import write_details, write_detector

BN, AN = "table4/mobilenetv2_bn", "table4/mobilenetv2_an"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    runs = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        an = write_detector(runs, AN, [10.0, 30.0 + seed, 20.0], seed=seed)
        write_details(an, {"a<b": 40.0 + seed, "c": 20.0, "d": None}, 60.0, pictures=2)
        bn = write_detector(runs, BN, [10.0, 20.0, 25.0 + seed], seed=seed)
        write_details(bn, {"a<b": 38.0, "c": 23.0, "d": 1.0})
    return build_table(4, runs, "digit_scenes")


@pytest.fixture(scope="module")
def report(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(table, folder)
    return folder


def test_class_differences_are_means_over_seeds_of_classes_with_objects(table: Table) -> None:
    bn, an = (row.results[0] for row in table.rows)
    found = details.class_differences("row", "box", an, bn)
    assert found is not None
    assert found.ranked() == [("a<b", 2.5), ("c", -3.0)]
    assert details.curve(an, "box", "AP") == [60.0] * 101
    assert details.class_differences("row", "keypoints", an, bn) is None


def test_details_of_an_earlier_best_are_not_used(tmp_path: Path) -> None:
    run = write_detector(tmp_path, AN, [10.0, 30.0, 20.0])
    write_details(run, {"a": 1.0}, pictures=1)
    (found,) = read_runs(tmp_path)
    assert details.read(found) is not None
    assert len(details.pictures(found)) == 1
    result = json.loads((run / "result.json").read_text())
    result["best"]["step"] += 1
    (run / "result.json").write_text(json.dumps(result))
    (found,) = read_runs(tmp_path)
    assert details.read(found) is None
    assert details.pictures(found) == []


def test_a_summary_holds_classes_and_curves_of_what_was_evaluated(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json")
    numbers = evaluate(tmp_path / "truth.json", near_predictions(truth), CATEGORY_IDS)
    found = details.summary(numbers, ["x", "y", "z"], CATEGORY_IDS)
    assert list(found["classes"]) == ["box", "mask"]
    assert found["classes"]["mask"]["y"] == numbers.per_category["segm"][7]
    assert found["classes"]["mask"]["z"] is None
    assert np.mean(found["curves"]["box"]["AP50"]) == pytest.approx(
        numbers.statistics["bbox"]["AP50"]
    )
    assert json.loads(json.dumps(found)) == found


class _Page(html.parser.HTMLParser):
    """Collects what the page holds and which addresses it names."""

    def __init__(self) -> None:
        super().__init__()
        self.figures = self.images = 0
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.figures += tag == "figure"
        self.images += tag == "img"
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")


def test_the_page_holds_everything_and_needs_no_network(report: Path) -> None:
    text = (report / "index.html").read_text()
    found = _Page()
    found.feed(text)
    # Curves of loss, mask loss, rate and two APs; precision and classes twice, AP and size; images.
    assert found.figures == 5 + 2 + 2 + 1 + 2
    assert found.images == 2
    assert all(address.startswith(("#", "data:")) for address in found.addresses)
    assert "<script" not in text
    assert "a&lt;b" in text
    assert "a<b" not in text
    assert "30.5 ± 0.7" in text
    # Two seeds in each of five curves; of precision the mean, at all overlaps and at 0.5.
    assert text.count('class="row-mobilenetv2_an"') == 2 * 5 + 2 * 2
    assert "show-mobilenetv2_an" in found.ids
    assert len(set(found.ids)) == len(found.ids)
    assert "Not shown" not in text


def test_figures_for_a_paper_are_drawn_in_both_formats(report: Path) -> None:
    names = {path.stem for path in (report / "figures").iterdir()}
    assert names == {
        *("train_loss", "loss_mask", "val_box", "val_mask", "lr", "parameters"),
        *("precision_box", "precision_mask"),
        *("classes_box_mobilenetv2_an", "classes_mask_mobilenetv2_an"),
    }
    for name in names:
        pixels = np.asarray(Image.open(report / "figures" / f"{name}.png").convert("L"))
        assert pixels.shape[0] > 500, "200 dpi"
        assert pixels.std() > 5, f"{name} is blank"
    for suffix in ("md", "csv", "json"):
        assert (report / f"table4.{suffix}").stat().st_size > 1000


def test_a_page_without_runs_says_what_is_missing(tmp_path: Path) -> None:
    write_report(build_table(4), tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "Not shown: mobilenetv2_an" in text
    assert "None yet: --per-class draws them." in text
    assert not list((tmp_path / "figures").iterdir())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_it_without_complaint(report: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,1500"]
    screenshot = tmp_path / "page.png"
    log = ["--enable-logging=stderr", "--log-level=0", f"--screenshot={screenshot}"]
    done = subprocess.run(
        [CHROMIUM, *options, *log, (report / "index.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(screenshot).convert("L"))
    assert pixels.shape == (1500, 1200)
    for part in np.array_split(pixels, 3):
        assert part.std() > 5
