"""One check in this process: ``python -m tests.gpu.check NAME``. The acceptance run starts it."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from tests.gpu.report import Report, Setting, Skipped


@dataclass(frozen=True)
class Check:
    """A module of ``tests.gpu.checks`` with ``run(setting, report)``.

    Attributes:
        what: in a few words.
        seconds: after which it is stopped.
        needs: packages that it cannot do without, besides torch.
        gpus: how many it needs.
    """

    what: str
    seconds: int
    needs: tuple[str, ...] = ()
    gpus: int = 1


_TRAINER = ("omegaconf", "hydra", "timm", "rich", "yaml", "torchvision")

# In this order: what makes all later figures worthless comes first.
CHECKS = {
    "ceilings": Check("copy and product at the card's own rate", 60),
    "kernels": Check("AN's kernels against float64", 300, ("triton",)),
    "kernel_times": Check("AN's kernels beside a copy, AN beside BN", 120, ("triton",)),
    "waiting": Check("steps that wait for nothing; gradients in half", 150, _TRAINER),
    "compiling": Check("torch.compile and CUDA graphs end as eager does", 300, _TRAINER),
    "whole_runs": Check("train.py, stopped and continued, bit by bit", 240, _TRAINER),
    "speed": Check("networks, the trainer, what is left idle", 400, _TRAINER),
    "dali_loader": Check("DALI beside the torch loader", 150, (*_TRAINER, "nvidia.dali")),
    "group": Check("a process group of one GPU", 90, ("omegaconf", "timm")),
    "two_gpus": Check("contexts, statistics and losses of two", 240, _TRAINER, gpus=2),
    "two_gpus_faults": Check("one of two stalls, one of two is killed", 300, _TRAINER, gpus=2),
}


def make(name: str, setting: Setting, path: Path) -> Report:
    """Run one check here; whatever it does, the report says how it ended."""
    check, report = CHECKS[name], Report(name, setting, path)
    started = time.perf_counter()
    missing = [package for package in check.needs if not _is_installed(package)]
    try:
        if missing:
            raise Skipped(f"not installed: {', '.join(missing)}")
        if setting.on_gpu and torch.cuda.device_count() < check.gpus:
            raise Skipped(f"{torch.cuda.device_count()} GPU here, it takes {check.gpus}")
        importlib.import_module(f"tests.gpu.checks.{name}").run(setting, report)
    except Skipped as why:
        status, reason = "skipped", str(why)
    except Exception:  # noqa: BLE001 - whatever is wrong with one check belongs in the table
        status, reason = "broken", traceback.format_exc()
    else:
        status, reason = ("failed" if report.problems else "passed"), ""
    report.figure("seconds", round(time.perf_counter() - started, 1))
    report.end(status, reason)
    return report


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it would be part of
        return False


def parse(arguments: Sequence[str]) -> tuple[list[str], Setting, Path]:
    """What the acceptance run and a single check are told alike."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*CHECKS, []], help="default: all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny shapes; always on a CPU")
    parser.add_argument("--photos", type=Path, help="with train/CLASS/* and val/CLASS/*")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    small = args.small or device.type == "cpu"
    return args.names or list(CHECKS), Setting(device, small, args.photos), args.out


def main(arguments: Sequence[str]) -> int:
    names, setting, folder = parse(arguments)
    # Told to stop, it ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in names:
        make(name, setting, folder / f"{name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
