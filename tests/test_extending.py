"""docs/extending.md and docs/use-an-in-your-model.md, followed to the letter."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(page: str) -> list[tuple[str, str]]:
    """(language, content) of every code block of a page of docs/."""
    return [(m[1], m[2]) for m in _BLOCK.finditer((ROOT / "docs" / page).read_text())]


# The page's commands up to their exits, in one process: torch is imported once.
_ONE_AFTER_ANOTHER = """
import runpy, sys
from pathlib import Path
import attnorm
from attnorm import interpreter
assert Path(attnorm.__file__).parent.parent == Path.cwd(), attnorm.__file__
interpreter.execute = lambda command: sys.exit(command())
done = []
for command in sys.argv[1:]:
    python, script, *arguments = command.split()
    assert python == "python"
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, (command, end.code)
    else:
        raise AssertionError(f"{command} does not exit")
    done.append(command)
print(len(done), "commands")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what runs, to add files to."""
    for name in ("attnorm", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "eval.py"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_the_page_adds_one_of_each(checkout: Path) -> None:
    added, commands = [], []
    for language, content in _blocks("extending.md"):
        if language == "sh":
            commands += content.strip().splitlines()
            continue
        path = checkout / content.splitlines()[0].removeprefix("# ")
        assert not path.exists(), "one more file, and no change to another"
        path.write_text(content)
        added.append(path)
    assert len(added) == 10
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", _ONE_AFTER_ANOTHER, *commands],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{len(commands)} commands"

    runs = checkout / "runs"
    attentive, rms, memory = (
        torch.load(runs / name / "last.pt", weights_only=True)["model"]
        for name in ("resnet10t_an_digits", "resnet10t_rms_digits", "in_memory")
    )
    assert attentive["layer1.0.bn1.weight"].shape == (5, 64)
    assert attentive["layer4.0.bn1.weight"].shape == (10, 512)
    assert attentive["layer1.0.bn2.weight"].shape == (64,)
    assert not any("running_mean" in name for name in rms), "no batch norm is left"
    assert rms.keys() == memory.keys()
    evaluated = json.loads((runs / "in_memory" / "eval.json").read_text())
    trained = json.loads((runs / "in_memory" / "result.json").read_text())
    assert evaluated["images"] == 360
    assert evaluated["top1_error"] == pytest.approx(trained["best"]["top1_error"])
    assert "memory loader" in (runs / "in_memory" / "log" / "rank0.log").read_text()

    nadam = torch.load(runs / "nadam" / "last.pt", weights_only=True)["optimizer"]
    assert "exp_avg_sq" in nadam["state"][0]
    assert [(g["name"], g["weight_decay"]) for g in nadam["param_groups"]] == [
        ("weights", 0.05),
        ("norm", 0.0),
    ]
    lines = (runs / "inverse_root" / "metrics.jsonl").read_text().splitlines()
    rates = [line["lr"] for line in map(json.loads, lines) if line["kind"] == "train"]
    base = 0.2 * 16 / 512
    assert rates == pytest.approx([base / (1 + step / 4 / 0.5) ** 0.5 for step in range(4)])

    ordinal = json.loads((runs / "ordinal" / "result.json").read_text())
    again = json.loads((runs / "ordinal" / "eval.json").read_text())
    assert again["r2"] == pytest.approx(ordinal["best"]["r2"], rel=1e-4)
    assert ordinal["best"]["r2"] == max(ordinal["best"]["r2"], ordinal["final"]["r2"])
    assert "R²" in (runs / "ordinal" / "log" / "rank0.log").read_text()


def test_the_examples_for_other_peoples_models_run() -> None:
    """One after another, as on the page; every claim there is an assert."""
    code = "\n".join(
        c for language, c in _blocks("use-an-in-your-model.md") if language == "python"
    )
    assert code.count("assert") >= 4
    exec(compile(code, "use-an-in-your-model.md", "exec"), {})
