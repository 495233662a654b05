"""scripts/responses.py as a person calls it: AN beside BN on digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.reporting.models import write_checkpoint
from tests.script import run_script

# The last units of two of the seven stages, so that little is drawn.
FEW = [r"sites=blocks\.[46]\.[02]", "images=2", "loader=torch", "data.workers=0"]


def test_two_checkpoints_are_compared_on_one_page(tmp_path: Path) -> None:
    an, bn = (write_checkpoint(tmp_path / norm, norm) for norm in ("an", "bn"))
    done = run_script(
        "responses", f"checkpoint={an}", f"checkpoint={bn}", "limit=64", "classes=0,1,2", *FEW
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "an" / "responses"
    content = json.loads((folder / "spread.json").read_text())
    assert list(content) == ["mobilenetv2 an", "mobilenetv2 bn"]
    for units in content.values():
        assert list(units) == ["stage-5-unit-1", "stage-5-unit-3", "stage-7-unit-1"]
        for found in units.values():
            assert found["ratio"] == pytest.approx(found["within"] / found["between"])
            assert found["within"] > 0
    page = (folder / "index.html").read_text()
    assert page.count("<figure") == 1 + 3 * 7, "Figure 2, and three for an AN layer of each stage"
    assert "<script" not in page
    assert "stage-5-unit-3" in page
    mixtures = (folder / "mixtures_mobilenetv2_an.md").read_text().splitlines()
    assert sum(line.startswith("| blocks.") for line in mixtures) == 17
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {"figure2.png", "figure2.svg"} <= names
    assert len(names) == 2 * (1 + 3 * 7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["images=2"], ["0 checkpoints given"]),
        (["checkpoint=gone.pt"], ["gone.pt does not exist"]),
        (["checkpoint=best.pt", "classes=1"], ["classes needs at least 2"]),
        (["checkpoint=best.pt", "images=1"], ["images=1", "at least 2"]),
        (["checkpoint=best.pt", "sites=nowhere"], ["sites=nowhere"]),
        (["checkpoint=best.pt", "norm=bn"], ["norm is not a key"]),
        (["best.pt"], ["'best.pt' is not key=value"]),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path, "bn")
    loader = [] if arguments == ["best.pt"] else ["loader=torch", "data.workers=0"]
    done = run_script("responses", *arguments, *loader)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr
