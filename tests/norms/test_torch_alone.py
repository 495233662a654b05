"""One layer needs torch and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Everything besides torch that any part of the project imports.
OTHERS = (
    *("PIL", "hydra", "matplotlib", "nvidia.dali", "numpy", "omegaconf", "rich", "safetensors"),
    *("scipy", "sklearn", "tensorboard", "timm", "torchvision", "triton", "yaml"),
)

SCRIPT = f'''
import sys

OTHERS = {OTHERS!r}

class Without:
    """A finder that does not see the others."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if any(name == other or name.startswith(other + ".") for other in OTHERS):
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

import torch
import attnorm

layer = attnorm.AttentiveNorm2d(8)
layer(torch.randn(2, 8, 4, 4, requires_grad=True)).sum().backward()
assert layer.weight.grad.isfinite().all()
attnorm.SwitchNorm2d(8)(torch.randn(2, 8, 4, 4))
'''


def test_a_layer_runs_where_torch_alone_is_installed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
