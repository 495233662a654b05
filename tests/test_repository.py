"""What stands beside the code: generated pages, the README's length, files for other programs."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from attnorm.config import choices
from tests.conftest import ROOT
from tests.script import run_script


@pytest.mark.parametrize("script", ["model_zoo", "docs_tables"])
def test_generated_pages_are_what_their_sources_say(script: str) -> None:
    done = run_script(script, "--check")
    assert done.returncode == 0, done.stdout


def test_loaders_are_compared_over_the_decisions_of_all_checkpoints() -> None:
    def entry(trained_with: str, images: int, *errors: float) -> dict[str, object]:
        results = [
            {"loader": name, "top1_error": error, "other_predictions": place, "pixel_difference": 0}
            for place, (name, error) in enumerate(zip(("dali", "torch"), errors, strict=True))
        ]
        return {"trained_with": trained_with, "images": images, "loaders": results}

    table = runpy.run_path(str(ROOT / "scripts" / "docs_tables.py"))["_loaders"](
        [
            entry("dali", 10, 40.0, 50.0),
            entry("torch", 5, 20.0, 20.0),
            entry("dali", 30, 20.0, 20.0),
        ]
    )
    assert [
        [cell.strip() for cell in line.split("|")[1:-2]] for line in table.splitlines()[2:]
    ] == [
        ["dali", "dali", "40", "25.00", "+0.00", "0.00"],
        ["", "torch", "40", "27.50", "+2.50", "1.00"],
        ["torch", "dali", "5", "20.00", "+0.00", "0.00"],
        ["", "torch", "5", "20.00", "+0.00", "1.00"],
    ]


def test_the_readme_fits_its_length() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


@pytest.mark.parametrize(
    "name",
    [
        ".github/workflows/ci.yaml",
        ".github/ISSUE_TEMPLATE/bug.yaml",
        ".github/ISSUE_TEMPLATE/result.yaml",
        ".pre-commit-config.yaml",
        "examples/pytorchjob.yaml",
        "mkdocs.yml",
    ],
)
def test_files_for_other_programs_are_yaml(name: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict)


def test_the_dev_container_and_the_slurm_script_are_well_formed() -> None:
    json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    script = ROOT / "scripts" / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_the_guide_lists_every_choice() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text()
    table = guide[guide.index("| group | choices |") :]
    for group in ("arch", "norm", "loader", "optim", "schedule", "augment", "task"):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{group}`"))
        named = set(re.findall(r"`(\w+)`", row))
        assert named >= set(choices(group)) - {"timm_attn"}, group


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "records").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout: nothing to list")
def test_no_file_is_large() -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    names = [name for name in listed.stdout.split("\0") if name]
    assert names
    assert all(Path(ROOT / name).stat().st_size < 2**20 for name in names)


# A Python that makes an environment of itself, and notes what it is asked to install.
_STAND_IN = """#!/bin/sh
case "$*" in
*venv*) mkdir -p .venv/bin; sleep 0.3; cp "$0" .venv/bin/python ;;
*"pip --version"*) ;;
*"pip install"*) echo begun >> installs; sleep 1; echo ended >> installs ;;
esac
"""


def test_two_installations_at_once_are_one_after_the_other(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "a python"
    python.write_text(_STAND_IN)
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": "./a python"}
    command = ["make", "install"]
    makes = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [make.communicate(timeout=60)[0] for make in makes]
    assert [make.returncode for make in makes] == [0, 0, 0], outputs
    assert (tmp_path / "installs").read_text().split() == ["begun", "ended"]
    assert sum("waiting for it" in output for output in outputs) == 2
