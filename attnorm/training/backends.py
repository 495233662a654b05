"""What torch and its libraries are told once before a model runs, by train.py and benchmarks alike.

Nothing here changes a CPU's results; ``deterministic`` holds everywhere.
"""

from __future__ import annotations

import torch


def set_backends(precision: str, deterministic: bool = False) -> None:
    """Choose cuDNN's algorithms and the format of float32 products on a GPU.

    Args:
        precision: with ``tf32``, float32 products and convolutions round their factors to 10 bits
            (torch's own default for convolutions); with any other they are IEEE float32.
        deterministic: only algorithms that repeat themselves, instead of the fastest that cuDNN
            finds by trying.
    """
    if deterministic:
        torch.use_deterministic_algorithms(True)
        # Otherwise every fresh tensor is filled with NaN, one more pass over each activation.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    format = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cudnn.conv.fp32_precision = format  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = format
