"""With what a run was made: versions, source commit, a fingerprint of its config."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from attnorm.distributed import Process


@cache
def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    packages = ("attnorm", "torch", "torchvision", "timm")
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}}


def hardware(process: Process) -> dict[str, Any]:
    """What a speed depends on: the device by its maker's name, threads, processes."""
    if process.device.type == "cuda":
        name = torch.cuda.get_device_name(process.device)
    else:
        name = _processor()
    return {"device": name, "threads": torch.get_num_threads(), "processes": process.world_size}


@cache
def _processor() -> str:
    about = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (about.read_text().splitlines() if about.exists() else ())
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def git_commit() -> str | None:
    """The commit of the source tree, with "-dirty" if it was changed; None outside of git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    described = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def config_hash(config: Mapping[str, Any]) -> str:
    """Equal for equal configs: the first 16 digits of the SHA-256 of their sorted JSON."""
    text = json.dumps(config, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
