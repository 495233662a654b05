"""Running a file of ``scripts/`` in this process: the same code without a second start of torch."""

import io
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from attnorm import interpreter
from tests.conftest import ROOT

# Before a program: a package of the same files that does not import torch, as attnorm itself does.
WITHOUT_TORCH = f"""
import sys, types
sys.modules["attnorm"] = package = types.ModuleType("attnorm")
package.__path__ = [{str(ROOT / "attnorm")!r}]
"""


@dataclass(frozen=True)
class Finished:
    returncode: int
    stdout: str
    stderr: str


def run_script(name: str, *arguments: str) -> Finished:
    """``python scripts/NAME.py ARGUMENTS``, up to its exit."""
    path = str(ROOT / "scripts" / f"{name}.py")
    code, out, err = 0, io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [path, *arguments])
        patch.setattr(interpreter, "execute", lambda command: sys.exit(command()))
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Finished(code, out.getvalue(), err.getvalue())
