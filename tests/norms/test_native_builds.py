"""The passes in C as every compiler makes them for every kind of x86-64: the same oracles."""

from __future__ import annotations

import ctypes
import itertools
import platform
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attnorm.norms import fused, native
from attnorm.norms.native import NativePasses, instruction_flags
from attnorm.norms.passes import Activation
from attnorm.processor import Processor, processor
from tests.norms.test_batch import assert_no_sum_depends_on_threads, layers, outcome
from tests.norms.test_fused import LAYOUTS, compare
from tests.norms.test_fused import arguments as attentive_arguments

on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the passes are for x86-64")
# Those of other machines. AVX512 cannot be tried without it: where it is, the other tests run it.
FLAGS = ("-march=x86-64-v3", "-march=x86-64")
SHAPES = [(3, 83, 9, 9), (17, 40, 1, 1), (2, 16, 12, 70)]
Builds = dict[torch.dtype, NativePasses]


# Each compiler and each instruction set in make test, every pair in make slow.
FAST = {("gcc", "-march=x86-64"), ("clang", "-march=x86-64-v3")}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(pair, id=" ".join(pair), marks=() if pair in FAST else (pytest.mark.slow,))
        for pair in itertools.product(("gcc", "clang"), FLAGS)
    ],
)
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Builds:
    compiler, flags = request.param
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    if "v3" in flags and processor().instructions not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    # The OpenMP of clang is not torch's: one thread, as load() falls back to.
    openmp = "-fopenmp" if compiler == "gcc" else "-fopenmp-simd"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", compiler)
        patch.setenv("ATTNORM_CACHE", str(tmp_path_factory.mktemp("builds")))
        return {
            dtype: NativePasses(ctypes.CDLL(str(native.build((flags, openmp), dtype))))
            for dtype in (torch.float32, torch.bfloat16)
        }


@pytest.fixture
def _built(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda dtype=torch.float32: builds[dtype])


@on_x86
@pytest.mark.usefixtures("_built")
@pytest.mark.parametrize(
    ("activation", "separate"),
    [(Activation.NONE, False), (Activation.RELU, True), (Activation.RELU6, False)],
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attentive_norm_follows_the_equations(
    shape: tuple[int, ...], layout: str, activation: Activation, separate: bool
) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        variables = attentive_arguments(shape, torch.float32, separate=separate)
        x = variables[0].detach().to(dtype).to(memory_format=LAYOUTS[layout])
        variables[0] = x.requires_grad_()
        kink = 1e-4 if dtype == torch.float32 else 0.05
        compare(variables, tolerance, activation=activation, kink=kink)


@on_x86
@pytest.mark.usefixtures("_built")
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(8, 70, 7, 7), (2, 4100, 6, 6), (16, 24, 1, 1)], ids=str)
def test_batch_norm_is_torchs(shape: tuple[int, ...], layout: str, activation: str | None) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        ours, theirs = layers(shape[1], activation)
        x = (torch.randn(shape) * 2 + 5).to(dtype).to(memory_format=LAYOUTS[layout])
        dy = torch.randn(shape).to(dtype).to(memory_format=LAYOUTS[layout])
        pairs = zip(outcome(ours, x, dy), outcome(theirs, x.double(), dy.double()), strict=True)
        for which, (found, exact) in enumerate(pairs):
            rounded = 2.0**-7 if dtype == torch.bfloat16 and which < 2 else 2e-6
            assert (found.double() - exact).abs().max() <= rounded * exact.abs().max(), which


@on_x86
@pytest.mark.usefixtures("_built")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_sum_depends_on_the_number_of_threads(layout: str) -> None:
    assert_no_sum_depends_on_threads(LAYOUTS[layout])


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        (Processor("x86_64", "AVX512", True, True), ("-march=native",)),
        (Processor("x86_64", "AVX2", False, False), ("-mavx2", "-mfma")),
        (Processor("x86_64", "DEFAULT", False, False), ()),
    ],
)
def test_flags_follow_the_instructions_of_torch(cpu: Processor, expected: tuple[str, ...]) -> None:
    assert instruction_flags(cpu) == expected


@pytest.mark.usefixtures("forget_library")
@pytest.mark.parametrize(
    "cpu",
    [
        Processor("aarch64", "DEFAULT", True, False),
        Processor("aarch64", "SVE256", True, False),
        Processor("arm64", "DEFAULT", False, False),
        Processor("ppc64le", "VSX", False, False),
        Processor("x86_64", "AVX1024", True, True),
    ],
)
def test_on_other_processors_nothing_is_compiled_and_the_log_says_why(
    cpu: Processor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("ATTNORM_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "processor", lambda: cpu)
    with caplog.at_level("INFO"):
        assert native.load() is None
    assert f"x86-64, not {cpu.architecture} ({cpu.instructions})" in caplog.text
    assert list(tmp_path.iterdir()) == []


@on_x86
@pytest.mark.usefixtures("forget_library")
def test_clang_alone_is_enough(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clang = shutil.which("clang")
    if clang is None:
        pytest.skip("clang is not installed")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("clang", "ld", "as"):
        if path := shutil.which(name):
            (tools / name).symlink_to(path)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("ATTNORM_CACHE", str(tmp_path / "cache"))
    with caplog.at_level("INFO"):
        passes = native.load()
    assert passes is not None
    # GNU's OpenMP, which torch brings, is not clang's; a torch with LLVM's runs it in parallel.
    assert "in one thread" in caplog.text or caplog.text == ""
    monkeypatch.setattr(fused, "passes_for", lambda x: passes)
    compare(attentive_arguments((4, 24, 5, 7), torch.float32), 1e-5)


@on_x86
@pytest.mark.usefixtures("forget_library")
def test_a_damaged_file_in_the_cache_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    monkeypatch.setenv("CC", "gcc -O0")
    monkeypatch.setenv("ATTNORM_CACHE", str(tmp_path))
    built = native.build((*instruction_flags(processor()), "-fopenmp"), torch.float32)
    size = built.stat().st_size
    built.write_bytes(b"")
    with caplog.at_level("INFO"):
        assert native.load() is not None
    assert caplog.text == ""
    assert built.stat().st_size == size


@pytest.mark.usefixtures("forget_library")
def test_a_compiler_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "gcc '")
    monkeypatch.setenv("ATTNORM_CACHE", str(tmp_path))
    with caplog.at_level("INFO"):
        assert native.load() is None
    assert "CC=gcc '" in caplog.text or "x86-64" in caplog.text


@on_x86
@pytest.mark.usefixtures("forget_library")
def test_cc_may_have_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    monkeypatch.setenv("CC", "gcc -O0 '-DTWO WORDS'")
    monkeypatch.setenv("ATTNORM_CACHE", str(tmp_path))
    assert native.load() is not None


def test_the_oracles_above_run_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a mistake in choosing them would let plain torch operations pass all the tests."""
    taken: list[torch.dtype] = []

    def load(dtype: torch.dtype = torch.float32) -> None:
        taken.append(dtype)

    monkeypatch.setattr(native, "load", load)
    x: Tensor = torch.randn(2, 3, 4, 4)
    fused.passes_for(x)
    fused.passes_for(x.bfloat16())
    assert taken == [torch.float32, torch.bfloat16]
