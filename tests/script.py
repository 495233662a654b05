"""Running a file of ``scripts/`` in this process: the same code without a second start of torch."""

import io
import runpy
import sys
from collections.abc import Callable
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


def exit_code(run: Callable[[], object], *argv: str) -> str | int | None:
    """Run a program in this process with these arguments, and return what it exits with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(argv))
        patch.setattr(interpreter, "execute", lambda command: sys.exit(command()))
        try:
            run()
        except SystemExit as end:
            return end.code
    return 0


def run_script(name: str, *arguments: str) -> Finished:
    """``python scripts/NAME.py ARGUMENTS``, up to its exit."""
    path = str(ROOT / "scripts" / f"{name}.py")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        end = exit_code(lambda: runpy.run_path(path, run_name="__main__"), path, *arguments)
    code = end if isinstance(end, int) else int(end is not None)
    return Finished(code, out.getvalue(), err.getvalue())
