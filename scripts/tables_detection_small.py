"""``make tables-detection-small``: every row of Tables 2 to 4, from its own file, in miniature.

Each is built as it is, takes two steps on digit scenes and is evaluated; then the report. It says
that all rows work, nothing about what they reach.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs") / "detection_small"
EXPERIMENTS = ROOT / "configs" / "experiment"
# What a row keeps is its network; the schedule of its recipe does not fit two steps.
SMALL = (
    *("data=digit_scenes", "data.num_train_scenes=8", "data.num_val_scenes=8"),
    *("epochs=1", "batch_size=2", "schedule.milestones=[]", "schedule.warmup_steps=null"),
    *("tracking.log_every=1", "tracking.tensorboard=false", "checkpoint.keep_last=1"),
)


def rows() -> list[str]:
    """Their experiments, in the order of the tables."""
    folders = (EXPERIMENTS / f"table{number}" for number in (2, 3, 4))
    return [f"{folder.name}/{path.stem}" for folder in folders for path in sorted(folder.glob("*"))]


def command(console: Console, *arguments: str) -> None:
    console.print(f"\n$ python {' '.join(arguments)}", style="bold", markup=False)
    finished = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def main() -> None:
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    for row in rows():
        settings = list(SMALL)
        if "htc" in row:
            settings.append("data.semantic=things")
        folder = RUNS / row.replace("/", "_")
        command(console, "train.py", f"+experiment={row}", *settings, f"hydra.run.dir={folder}")
    for table in ("2", "3", "4"):
        report = ["--runs", str(RUNS), "--data", "digit_scenes", "--table", table]
        command(console, "scripts/table1.py", *report, "--report", str(RUNS / f"table{table}"))
    console.print(f"\ntook {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
