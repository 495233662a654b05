"""What torch is told before a model runs, in a process that has told it nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

# torch is imported once, and every precision has a process that has heard of no other one.
PROGRAM = """
import os
import torch
from attnorm.training.backends import set_backends

def run(precision):
    set_backends(precision)
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    model = torch.nn.Conv2d(3, 4, 3)
    exported = torch.export.export(model, (torch.ones(1, 3, 5, 5),)).module()
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.ones(1, 3, 5, 5)
    assert torch.equal(exported(x), model(x)) and torch.equal(compiled(x), model(x))
    print(precision, *tf32, flush=True)

for precision in ("fp32", "fp16", "tf32"):
    child = os.fork()
    if child == 0:
        run(precision)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, precision
"""


@pytest.mark.slow
def test_float32_is_ieee_unless_asked_otherwise_and_torch_still_exports_and_compiles() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = ["fp32 False False", "fp16 False False", "tf32 True True"]
    assert done.stdout.splitlines() == lines
