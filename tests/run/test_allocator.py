"""Freed memory stays: counted by the system, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnorm.run import allocator
from tests.script import WITHOUT_TORCH

# A step's worth of blocks, taken, filled and freed again and again; prints page faults of a step.
STEPS = f"""{WITHOUT_TORCH}
import ctypes, resource, sys
from attnorm.run.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def step():
    blocks = [libc.malloc(size << 20) for size in (40, 24, 24, 24, 16, 16)]
    for block, size in zip(blocks, (40, 24, 24, 24, 16, 16)):
        ctypes.memset(block, 1, size << 20)
    for block in blocks:
        libc.free(block)
step()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", STEPS, how],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not allocator._is_glibc(), reason="another C library keeps to its own rules")
def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    assert _faults("as it is") > 10_000, "144 MB in pages of 4 KiB, or most of it"
    assert _faults("kept") < 100


def test_what_a_person_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000000")
    assert not allocator.keep_freed_memory()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.cpu.hwcaps=x")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not allocator.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> str:
        raise ValueError(f"unrecognized configuration name {name}")

    monkeypatch.setattr(os, "confstr", refuse)
    assert not allocator.keep_freed_memory()
    monkeypatch.setattr(os, "confstr_names", {})
    assert not allocator.keep_freed_memory()


def test_trainer_and_evaluator_keep_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from attnorm.errors import UserError
    from attnorm.run import evaluate, train, trained
    from tests.conftest import compose_config

    called: list[str] = []
    monkeypatch.setattr(train, "keep_freed_memory", lambda: called.append("train"))
    monkeypatch.setattr(trained, "keep_freed_memory", lambda: called.append("trained"))
    with pytest.raises(UserError):
        train.run(compose_config("data=folder"), tmp_path / "run")
    with pytest.raises(UserError):
        evaluate.evaluate_checkpoint(tmp_path / "none.pt")
    assert called == ["train", "trained"]
