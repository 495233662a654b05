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
    # By these names: torch's exporter and compiler read them, and refuse to where the newer
    # fp32_precision was set.
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
