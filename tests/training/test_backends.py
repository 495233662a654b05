"""What torch is told before a model runs, in a process that has told it nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import torch
from attnorm.training.backends import set_backends
set_backends({precision!r})
print(torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
model = torch.nn.Conv2d(3, 4, 3)
exported = torch.export.export(model, (torch.ones(1, 3, 5, 5),)).module()
compiled = torch.compile(model, backend="aot_eager")
x = torch.ones(1, 3, 5, 5)
assert torch.equal(exported(x), model(x)) and torch.equal(compiled(x), model(x))
"""


@pytest.mark.parametrize(
    ("precision", "rounds"), [("fp32", False), ("fp16", False), ("tf32", True)]
)
def test_float32_is_ieee_unless_asked_otherwise_and_torch_still_exports_and_compiles(
    precision: str, rounds: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(precision=precision)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(rounds)] * 2
