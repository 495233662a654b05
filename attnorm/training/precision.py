"""Which floating-point format a step computes in, and the loss scaling that goes with it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from attnorm.errors import UserError
from attnorm.processor import processor

AUTOCAST_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """fp32, tf32 on a GPU, or automatic mixed precision in fp16 or bf16.

    Mixed precision keeps weights and statistics in fp32. What tf32 means to the libraries is
    :func:`attnorm.training.backends.set_backends`'s business.
    """

    name: str
    device_type: str

    @property
    def input_dtype(self) -> torch.dtype:
        """The format in which a loader should deliver images."""
        return AUTOCAST_DTYPES.get(self.name, torch.float32)

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the forward pass and the loss run."""
        if self.name not in AUTOCAST_DTYPES:
            return nullcontext()
        return torch.autocast(self.device_type, AUTOCAST_DTYPES[self.name])

    def scaler(self) -> torch.amp.GradScaler:
        """A loss scaler; it does nothing unless the format is fp16."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return True if ``precision=bf16`` is fast: on a GPU, or a CPU with AVX512_BF16 or AMX."""
    return device.type == "cuda" or processor().has_fast_bfloat16


def resolve_precision(name: str, device: torch.device) -> Precision:
    """``auto`` is the paper's fp16 on a CUDA GPU, and fp32 elsewhere.

    On a CPU so that a run, and an evaluation, gives the same numbers on all of them: bfloat16 has
    to be asked for. It is faster where :func:`has_fast_bfloat16` says so, and ended at the same
    errors over five seeds (docs/benchmarks.md).

    Raises:
        UserError: fp16 or tf32 without a CUDA GPU.
    """
    if name == "auto":
        name = "fp16" if device.type == "cuda" else "fp32"
    if name in ("fp16", "tf32") and device.type != "cuda":
        raise UserError(
            f"precision={name} needs a CUDA GPU: use precision=fp32, bf16 or auto with"
            f" device={device.type}."
        )
    return Precision(name, device.type)
