"""The acceptance run itself: its judgement, and that no check's code is broken without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.conftest import ROOT
from tests.gpu import __main__ as acceptance
from tests.gpu import check as checks
from tests.gpu import report as reports
from tests.gpu.check import CHECKS, Check, make
from tests.gpu.report import Bars, Report, Setting

SMALL = Setting(torch.device("cpu"), small=True)
# Elsewhere the same is done to real processes on CPUs (tests/faults, tests/run): walked by
# make gpu DEVICE=cpu, as is what compiles for half a minute.
WALKED_ELSEWHERE = {"two_gpus_faults", "two_gpus", "compiling"}
# Three starts of train.py: tests/run/test_train.py stops and continues a run bit by bit in one.
SLOW = {"whole_runs"}


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(CHECKS))
def test_check(name: str, tmp_path: Path) -> None:
    """On a GPU: ``pytest -m gpu tests/gpu``, or all at once with a table by ``make gpu``."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    setting = Setting(torch.device("cuda"), small=False)
    result = acceptance.run_isolated(name, setting, tmp_path / f"{name}.json")
    if result["status"] == "skipped":
        pytest.skip(result["reason"])
    assert result["status"] == "passed", result


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=(pytest.mark.slow,) if name in SLOW else ())
        for name in CHECKS
        if name not in WALKED_ELSEWHERE
    ],
)
def test_the_code_of_a_check_runs_without_a_gpu(name: str, tmp_path: Path) -> None:
    if name == "group" and torch.distributed.is_initialized():
        pytest.skip("this process has a group already")
    found = make(name, SMALL, tmp_path / "result.json")
    assert found.status == "passed", (found.reason, found.problems)
    assert json.loads((tmp_path / "result.json").read_text()) == found.as_dict()
    assert len(found.figures) > 1


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A check named "own", whose ``run`` a test writes."""
    module = ModuleType("tests.gpu.checks.own")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(CHECKS, "own", Check("of this test", 5))
    return module


def test_a_check_that_breaks_keeps_what_it_found_before(own: ModuleType, tmp_path: Path) -> None:
    def run(setting: Setting, report: Report) -> None:
        report.figure("found", 3)
        raise ValueError("boom")

    own.run = run  # type: ignore[attr-defined]
    found = make("own", SMALL, tmp_path / "own.json")
    assert found.status == "broken"
    assert "boom" in found.reason
    assert json.loads((tmp_path / "own.json").read_text())["figures"]["found"] == 3


def test_a_missing_package_skips_a_check_by_name(
    own: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHECKS, "own", Check("of this test", 5, ("no_such_package.core",)))
    found = make("own", SMALL, tmp_path / "own.json")
    assert (found.status, found.reason) == ("skipped", "not installed: no_such_package.core")


def test_on_a_machine_with_torch_alone_the_kernels_are_checked_all_the_same(
    tmp_path: Path,
) -> None:
    code = f"""
import sys
from pathlib import Path
for name in ("omegaconf", "hydra", "timm", "rich", "yaml", "torchvision", "nvidia.dali"):
    sys.modules[name] = None
import torch
from tests.gpu.check import CHECKS, make
from tests.gpu.report import Setting
for name in CHECKS:
    found = make(name, Setting(torch.device("cpu"), True), Path({str(tmp_path)!r}) / "own.json")
    print(name, found.status)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ended = dict(line.split() for line in done.stdout.splitlines() if line.count(" ") == 1)
    bare = {"ceilings", "kernels", "kernel_times"}
    assert ended == {name: "passed" if name in bare else "skipped" for name in CHECKS}


def test_bars_are_kept_by_their_factor_and_missing_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = {"device": "CPU", "factor": 1.1, "figures": {"a, img/s": 100.0, "b, µs": 50.0}}
    (tmp_path / "cpu.json").write_text(json.dumps(bars))
    monkeypatch.setattr(reports, "EXPECTED", tmp_path)
    report = Report("own", Setting(torch.device("cpu"), small=False), tmp_path / "own.result")
    report.speed("a, img/s", 92.0)
    report.speed("b, µs", 54.0)
    assert not report.problems
    report.speed("a, img/s", 90.0)
    report.speed("b, µs", 56.0)
    report.speed("c, img/s", 1.0)
    assert [problem.partition(" =")[0] for problem in report.problems] == ["a, img/s", "b, µs"]
    assert report.unbarred == ["c, img/s"]
    report.aim("ratio", 0.5, least=0.6)
    assert report.problems[-1].startswith("ratio = 0.5, the aim is at least 0.6")


def test_the_bars_of_the_repository_can_be_read() -> None:
    bars = Bars.of("NVIDIA H100 80GB HBM3")
    assert bars is not None
    assert bars.factor > 1
    assert Bars.of("another card") is None


@pytest.mark.slow
def test_a_check_that_hangs_is_stopped_with_what_it_started_and_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""
import subprocess
from pathlib import Path
from tests.gpu import check
from tests.gpu.checks import ceilings

def run(setting, report):
    report.figure("found", 1)
    child = subprocess.Popen(["sleep", "600"])
    Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
    try:
        child.wait()
    finally:
        child.kill()
        child.wait()

ceilings.run = run
check.main(["ceilings", "--device", "cpu", "--out", {str(tmp_path)!r}])
"""
    monkeypatch.setattr(acceptance, "_command", lambda *_: [sys.executable, "-c", code])
    monkeypatch.setitem(CHECKS, "ceilings", Check("hangs", 12))
    result = acceptance.run_isolated("ceilings", SMALL, tmp_path / "ceilings.json")
    assert result["status"] == "broken"
    assert result["figures"] == {"found": 1}
    assert "stopped after 12 seconds" in acceptance.table([result])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == acceptance.NO_GPU
    assert done.stdout.count("\n") == 1
    assert "DEVICE=cpu" in done.stdout
    assert not (tmp_path / "out").exists()


def test_checks_and_modules_are_the_same() -> None:
    modules = {path.stem for path in Path(checks.__file__).parent.glob("checks/*.py")}
    assert modules - {"__init__"} == set(CHECKS)
