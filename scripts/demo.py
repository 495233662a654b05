"""Train and evaluate on built-in images, as ``make demo`` and ``make detection-demo`` do.

python scripts/demo.py              ResNet-50 with AN and with BN on digits, compared
python scripts/demo.py detection    Mask R-CNN on scenes of digits, from the first of these
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

# Ctrl-C while libraries are imported ends this without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from attnorm.reporting import drawing
from attnorm.reporting.runs import read_run
from attnorm.training.precision import has_fast_bfloat16

ROOT = Path(__file__).resolve().parent.parent
CONSOLE = Console(highlight=False, soft_wrap=True)
NORMS = ("an", "bn")


def run_dir(norm: str) -> Path:
    return Path("runs") / f"demo_resnet50_{norm}"


def precision() -> list[str]:
    """Return the fastest setting that reaches the same error: bf16 on a CPU that is fast at it."""
    cpu = torch.device("cpu")
    return ["precision=bf16"] if not torch.cuda.is_available() and has_fast_bfloat16(cpu) else []


def command(*arguments: str) -> None:
    """Run a command of the project as a person would, and show it."""
    CONSOLE.print(f"\n$ python {shlex.join(arguments)}", style="bold", markup=False)
    interrupted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    finished = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False)
    signal.signal(signal.SIGINT, before)
    if interrupted:  # and so was the command, which keeps what it has
        CONSOLE.print("stopped: make demo goes on from here")
        sys.exit(128 + signal.SIGINT)
    if finished.returncode:
        sys.exit(finished.returncode)


def curves() -> Figure:
    """Top-1 error by epoch."""
    figure = Figure(figsize=(5.2, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for norm in NORMS:
        lines = read_run(ROOT / run_dir(norm)).lines("eval")
        axes.plot(
            [line["epoch"] for line in lines],
            [line["top1_error"] for line in lines],
            label=f"ResNet-50-{norm.upper()}",
        )
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 error (%)")
    axes.legend(frameon=False)
    return figure


def show() -> None:
    """The table, and where to look next."""
    table = Table(title="ResNet-50 on digits, 32², trained from scratch", title_justify="left")
    for column in ("model", "parameters", "top-1 error", "top-5 error", "training img/s"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for norm in NORMS:
        folder = ROOT / run_dir(norm)
        evaluation = json.loads((folder / "eval.json").read_text())
        run = read_run(folder)
        table.add_row(
            f"ResNet-50-{norm.upper()}",
            f"{run.result['parameters']:,}",
            f"{evaluation['top1_error']:.2f} %",
            f"{evaluation['top5_error']:.2f} %",
            f"{run.images_per_second:.0f}",
        )
    CONSOLE.print()
    CONSOLE.print(table)
    CONSOLE.print("\nrun folders    runs/demo_resnet50_an  runs/demo_resnet50_bn")
    drawing.save(curves, ROOT / "runs", "demo_curves")
    CONSOLE.print("curves         runs/demo_curves.png, or .venv/bin/tensorboard --logdir runs")
    CONSOLE.print(
        "your images    .venv/bin/python train.py norm=an data=folder data.root=/path/to/photos"
        "    (train/CLASS/*.jpg, val/CLASS/*.jpg)"
    )
    CONSOLE.print(
        "on ImageNet    .venv/bin/torchrun --standalone --nproc-per-node=8 train.py arch=resnet50"
        " norm=an data=imagenet data.root=/path/to/imagenet batch_size=64"
    )


def train(norm: str) -> None:
    """Train the classifier with this normalizer; a finished one stays as it is."""
    command("train.py", "+experiment=demo", f"norm={norm}", *precision())


def classify() -> None:
    """Train, evaluate and compare both classifiers."""
    for norm in NORMS:
        train(norm)
        command("eval.py", f"checkpoint={run_dir(norm)}/best.pt")
    show()


def detect() -> None:
    """Train and evaluate a detector whose backbone is the classifier with AN."""
    if not (ROOT / run_dir("an") / "best.pt").exists():
        train("an")
    command("train.py", "+experiment=detection_demo", *precision())
    command("eval.py", "checkpoint=runs/detection_demo/best.pt")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", nargs="?", choices=["classification", "detection"])
    task = parser.parse_args().task
    os.chdir(ROOT)
    started = time.monotonic()
    detect() if task == "detection" else classify()
    CONSOLE.print(f"\ntook {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
