"""The passes in C on a CPU, compiled at first use where there is a compiler.

The shared object is kept in the user's cache under a name that stands for the source, the compiler
and the processor. Where anything is missing, :func:`load` logs the reason and returns None.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnorm.files import cache_folder
from attnorm.norms.passes import Collected
from attnorm.processor import Processor, processor

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = ("-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_COMPILERS = ("gcc", "cc", "clang")
_COMPILE_SECONDS = 300  # seconds on an idle machine, but some machines are not idle

# For the instructions of torch's own kernels. Spelled one by one where -march=native could mean
# more of them, and since -march=x86-64-v3 needs gcc 11.
_INSTRUCTION_FLAGS = {
    "AVX512": ("-march=native",),
    "AVX2": ("-mavx2", "-mfma"),
    "DEFAULT": (),
    "NO AVX": (),
}

# Numbers of pointers, of sizes (N, C, P; K, R), of switches (and the thread count), and of floats.
_SIGNATURES = {
    "attnorm_prepare": (11, 5, 2, 1),
    "attnorm_apply": (5, 3, 3, 0),
    "attnorm_collect": (16, 5, 3, 0),
    "attnorm_gradient": (8, 3, 3, 0),
    "attnorm_train_forward": (11, 5, 3, 2),
    "attnorm_train_backward": (12, 5, 3, 0),
    "attnorm_batch_forward": (9, 3, 3, 2),
    "attnorm_batch_backward": (9, 3, 3, 0),
}


class StepOptions(NamedTuple):
    """What a training step is told besides tensors that have a gradient.

    Attributes:
        running: mean and variance (C), float32, contiguous, which move; None to leave them.
        batches: how many there were, int64; one more after forward.
        momentum: by how much the running ones move.
        eps: added to the variance.
        activation: of :class:`~attnorm.norms.passes.Activation`.
    """

    running: tuple[Tensor, Tensor] | None
    batches: Tensor | None
    momentum: float
    eps: float
    activation: int


class NativePasses:
    """float32 or bfloat16 activations on a CPU, contiguous or channels_last; small ones float32."""

    ignores_autocast = False

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, (pointers, sizes, switches, floats) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype = None
            arguments: list[Any] = [ctypes.c_void_p] * pointers
            arguments += [ctypes.c_ssize_t] * sizes + [ctypes.c_int] * switches
            function.argtypes = arguments + [ctypes.c_float] * floats
        self._library = library

    def prepare(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        head_weight: Tensor,
        head_bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        n, c, pixels = _sizes(x)
        k, rows = weight.shape[0], head_bias.shape[0]
        mixture, affine = _floats(n, rows), _floats(2, n, c)
        centre, unbiased, rstd = _floats(c), _floats(c), _floats(c)
        scratch = _floats(2 * n * c)
        inputs, results = (x, weight, bias, head_weight, head_bias), (mixture, affine, centre)
        self._library.attnorm_prepare(
            *_pointers(*inputs, *results, unbiased, rstd, scratch),
            *(n, c, pixels, k, rows),
            _channels_last(x),
            torch.get_num_threads(),
            eps,
        )
        return mixture, affine, centre, unbiased, rstd

    def apply(
        self, x: Tensor, affine: Tensor, centre: Tensor, rstd: Tensor, activation: int
    ) -> Tensor:
        y = torch.empty_like(x)
        self._library.attnorm_apply(
            *_pointers(x, affine, centre, rstd, y),
            *_sizes(x),
            *_switches(x, activation),
        )
        return y

    def collect(
        self,
        dy: Tensor,
        x: Tensor,
        mixture: Tensor,
        weight: Tensor,
        bias: Tensor,
        head_weight: Tensor,
        centre: Tensor,
        rstd: Tensor,
        activation: int,
    ) -> Collected:
        n, c, pixels = _sizes(x)
        k, rows = weight.shape[0], head_weight.shape[0]
        found = Collected(
            weight_grad=torch.empty_like(weight),
            bias_grad=torch.empty_like(bias),
            head_weight_grad=torch.empty_like(head_weight),
            head_bias_grad=_floats(rows),
            affine=_floats(2, n, c),
            mean_grad=_floats(n, c),
            folded=_floats(2, c),
        )
        scratch = _floats(3 * n * c + n * rows)
        inputs = (dy, x, mixture, weight, bias, head_weight, centre, rstd)
        self._library.attnorm_collect(
            *_pointers(*inputs, *found, scratch),
            *(n, c, pixels, k, rows),
            _channels_last(x),
            torch.get_num_threads(),
            activation,
        )
        return found

    def gradient(
        self,
        dy: Tensor,
        x: Tensor,
        affine: Tensor,
        centre: Tensor,
        rstd: Tensor,
        mean_grad: Tensor,
        folded: Tensor,
        activation: int,
    ) -> Tensor:
        dx = torch.empty_like(x)
        self._library.attnorm_gradient(
            *_pointers(dy, x, affine, centre, rstd, mean_grad, folded, dx),
            *_sizes(x),
            *_switches(x, activation),
        )
        return dx

    def train_forward(
        self,
        x: Tensor,
        parameters: tuple[Tensor, Tensor, Tensor, Tensor],
        options: StepOptions,
    ) -> tuple[Tensor, Tensor]:
        """y, and what :meth:`train_backward` takes: λ, centre and rstd in one tensor.

        Args:
            x: dense.
            parameters: γ, β, and weight and bias of the head; float32, contiguous.
        """
        n, c, h, w = x.shape
        rows = parameters[3].shape[0]
        small, scratch = _floats(n * rows + 2 * c), _floats(4 * n * c + c)
        y = torch.empty_like(x)
        self._library.attnorm_train_forward(
            *_pointers(x, *parameters, small, scratch),
            *_moved(options),
            y.data_ptr(),
            *(n, c, h * w, parameters[0].shape[0], rows),
            *_switches(x, options.activation),
            options.eps,
            options.momentum,
        )
        return y, small

    def train_backward(
        self,
        dy: Tensor,
        x: Tensor,
        parameters: tuple[Tensor, Tensor, Tensor, Tensor],
        small: Tensor,
        activation: int,
        needs_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x (None unless needed) and of the parameters. dy lies as x does."""
        n, c, h, w = x.shape
        weight, bias, head_weight, _ = parameters
        rows = head_weight.shape[0]
        found = (
            torch.empty_like(weight),
            torch.empty_like(bias),
            torch.empty_like(head_weight),
            _floats(rows),
        )
        scratch = _floats(6 * n * c + 2 * c + n * rows)
        dx = torch.empty_like(x) if needs_dx else None
        self._library.attnorm_train_backward(
            *_pointers(dy, x, weight, bias, head_weight, small, *found, scratch),
            None if dx is None else dx.data_ptr(),
            *(n, c, h * w, weight.shape[0], rows),
            *_switches(x, activation),
        )
        return (dx, *found)

    def batch_forward(
        self,
        x: Tensor,
        parameters: tuple[Tensor, Tensor],
        options: StepOptions,
    ) -> tuple[Tensor, Tensor]:
        """y of batch normalization, and what :meth:`batch_backward` takes: centre and rstd.

        Args:
            x: dense.
            parameters: γ and β (C); float32, contiguous.
        """
        n, c, pixels = _sizes(x)
        small, scratch = _floats(2 * c), _floats(2 * n * c + c)
        y = torch.empty_like(x)
        self._library.attnorm_batch_forward(
            *_pointers(x, *parameters, small, scratch),
            *_moved(options),
            y.data_ptr(),
            *(n, c, pixels),
            *_switches(x, options.activation),
            options.eps,
            options.momentum,
        )
        return y, small

    def batch_backward(
        self,
        dy: Tensor,
        x: Tensor,
        parameters: tuple[Tensor, Tensor],
        small: Tensor,
        activation: int,
        needs_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Gradients of x (None unless needed), γ and β. dy lies as x does."""
        n, c, pixels = _sizes(x)
        found, scratch = (_floats(c), _floats(c)), _floats(3 * n * c + 3 * c)
        dx = torch.empty_like(x) if needs_dx else None
        self._library.attnorm_batch_backward(
            *_pointers(dy, x, *parameters, small, *found, scratch),
            None if dx is None else dx.data_ptr(),
            *(n, c, pixels),
            *_switches(x, activation),
        )
        return (dx, *found)


_FLOATS = torch.empty(0, dtype=torch.float32, device="cpu")


def _floats(*sizes: int) -> Tensor:
    """Not ``torch.empty``, which takes four times as long to read a format and a device."""
    return _FLOATS.new_empty(sizes)


def _pointers(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _moved(options: StepOptions) -> list[int | None]:
    """Pointers to the running statistics and the number of batches."""
    tensors = (*(options.running or (None, None)), options.batches)
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _switches(x: Tensor, activation: int) -> tuple[bool, int, int]:
    return _channels_last(x), activation, torch.get_num_threads()


def _channels_last(x: Tensor) -> bool:
    """One pixel is both, and torch calls it contiguous; its channels are what lies side by side."""
    return not x.is_contiguous() or x.shape[2] * x.shape[3] == 1


def _sizes(x: Tensor) -> tuple[int, int, int]:
    n, c, h, w = x.shape
    return n, c, h * w


@cache
def load(dtype: torch.dtype = torch.float32) -> NativePasses | None:
    """Return the passes for activations of ``dtype``, float32 or bfloat16.

    None if they are unavailable; the log says why, once a dtype. They run in one thread if the
    compiler's OpenMP is not the one that torch has loaded (clang's beside GNU's), which is still
    faster than plain torch operations on a few cores.
    """
    reasons: list[object] = []
    for openmp in ("-fopenmp", "-fopenmp-simd"):
        try:
            flags = (*instruction_flags(processor()), openmp)
            passes = NativePasses(_loaded(flags, dtype))
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(getattr(error, "stderr", None) or error)
            continue
        if reasons:
            log.info("Attentive Normalization runs in one thread: %s", reasons[0])
        return passes
    log.info("Attentive Normalization runs on plain torch operations: %s", reasons[0])
    return None


def _loaded(flags: Sequence[str], dtype: torch.dtype) -> ctypes.CDLL:
    """Load the shared object; a damaged one is built again."""
    path = build(flags, dtype)
    try:
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    except OSError as error:
        if "undefined symbol" in str(error):  # whole, but for another OpenMP
            raise
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(build(flags, dtype)), mode=os.RTLD_NOW)


def instruction_flags(cpu: Processor) -> tuple[str, ...]:
    """Return the compiler flags for the instructions that torch's kernels use on ``cpu``.

    Raises:
        OSError: not x86-64, where the passes were never run.
    """
    if cpu.architecture != "x86_64" or cpu.instructions not in _INSTRUCTION_FLAGS:
        raise OSError(
            f"the passes in C are for x86-64, not {cpu.architecture} ({cpu.instructions})"
        )
    return _INSTRUCTION_FLAGS[cpu.instructions]


def build(flags: Sequence[str], dtype: torch.dtype) -> Path:
    """Compile the passes unless the cache holds them, and return the path of the shared object.

    Any number of processes may do this at the same time.

    Raises:
        OSError: there is no compiler, or the cache folder cannot be written.
        subprocess.SubprocessError: the compiler failed.
    """
    compiler = _compiler()
    flags = (*_FLAGS, *flags, *(("-DBFLOAT16",) if dtype == torch.bfloat16 else ()))
    target = cache_folder() / f"native-{_fingerprint(compiler, flags)}.so"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built, objects = Path(folder) / target.name, Path(folder) / "native.o"
        _execute(*compiler, *flags, "-c", str(_SOURCE), "-o", str(objects))
        # Linked without OpenMP: its functions are then those of the runtime torch has loaded, so
        # both share one pool of threads. A torch without that runtime makes loading fail.
        _execute(*compiler, "-shared", str(objects), "-o", str(built))
        built.replace(target)
    return target


def _compiler() -> list[str]:
    """The command of ``CC``, else of the first compiler on PATH: gcc, whose OpenMP is torch's."""
    try:
        command = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise OSError(f"invalid CC={os.environ['CC']}: {error}") from error
    if command:
        return command
    for name in _COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise OSError(f"no C compiler found ({', '.join(_COMPILERS)} on PATH, or CC)")


def _fingerprint(compiler: Sequence[str], flags: Sequence[str]) -> str:
    """A home folder may be shared by machines with other processors."""
    parts = [_SOURCE.read_text(), _execute(*compiler, "--version"), *flags, platform.machine()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        parts += sorted({line for line in lines if line.startswith(("flags", "Features", "model"))})
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _execute(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=_COMPILE_SECONDS
    ).stdout
