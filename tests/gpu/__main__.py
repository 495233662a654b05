"""The acceptance run: what no machine without a GPU can say about the GPU paths.

  python -m tests.gpu [CHECK ...] [--device cuda|cpu] [--small] [--photos FOLDER] [--out runs/gpu]

Every check has a process of its own, because a fault of the GPU poisons all that follows in one,
and leaves OUT/NAME.json even where that process dies. ``--device cpu`` walks the code of all of
them with tiny shapes. Exit status: 0 nothing failed, 1 something did, 2 there is no GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from attnorm.files import write_json
from tests.gpu.check import CHECKS, parse
from tests.gpu.report import Setting

ROOT = Path(__file__).parents[2]
NO_GPU = 2
GRACE_SECONDS = 20


def main(arguments: Sequence[str]) -> int:
    names, setting, folder = parse(arguments)
    if setting.on_gpu and not torch.cuda.is_available():
        print("make gpu: torch sees no GPU here; make gpu DEVICE=cpu walks the checks without one.")
        return NO_GPU
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for name in names:
        results.append(run_isolated(name, setting, folder / f"{name}.json"))
        print(_line(results[-1]), flush=True)
    print("\n" + table(results))
    return int(any(result["status"] in ("failed", "broken") for result in results))


def run_isolated(name: str, setting: Setting, path: Path) -> dict[str, Any]:
    """What a check in a process of its own wrote, or how that process died."""
    path.unlink(missing_ok=True)
    started, output = time.monotonic(), path.with_suffix(".log")
    with output.open("w") as log:
        process = subprocess.Popen(
            _command(name, setting, path.parent), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            death = f"ended with status {process.wait(CHECKS[name].seconds)}"
        except subprocess.TimeoutExpired:
            death = f"was stopped after {CHECKS[name].seconds} seconds"
            _stop(process)
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"name": name}
    if result.get("status", "running") == "running":
        last = " ".join(output.read_text(errors="replace").strip().splitlines()[-3:])
        result |= {"status": "broken", "reason": f"{death}: {last}"}
    result["wall_seconds"] = round(time.monotonic() - started, 1)
    write_json(path, result)
    return result


def _command(name: str, setting: Setting, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "tests.gpu.check", name, "--device", setting.device.type]
    command += ["--out", str(folder.absolute())]
    command += ["--small"] if setting.small else []
    command += ["--photos", str(setting.photos.absolute())] if setting.photos else []
    return command


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it with all that it has started; without mercy if it does not hear."""
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def table(results: Sequence[dict[str, Any]]) -> str:
    """One line per check, and below it what is wrong or what nobody has measured before."""
    rows = ["| check | | seconds | |", "|---|---|--:|---|"]
    for result in results:
        what = CHECKS[result["name"]].what
        row = (result["name"], result["status"], f"{result['wall_seconds']:.0f}", what)
        rows.append(f"| {' | '.join(row)} |")
    notes = []
    for result in results:
        notes += [f"{result['name']}: {problem}" for problem in result.get("problems", [])]
        if result["status"] in ("skipped", "broken"):
            notes.append(f"{result['name']}: {_last_line(result['reason'])}")
        if unbarred := result.get("unbarred"):
            notes.append(f"{result['name']}: no bar yet for {', '.join(unbarred)}")
    return "\n".join([*rows, "", *notes])


def _line(result: dict[str, Any]) -> str:
    numbers = {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in result.get("figures", {}).items()
    }
    found = ", ".join(f"{name} = {value}" for name, value in numbers.items())
    return f"{result['name']}: {result['status']}. {found}"


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
