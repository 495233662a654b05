"""Where batches go, which share of them is this process's, and what its device cannot do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """What travels together from a run's config to its loaders and its model.

    Attributes:
        batch_size: images per process and step.
        dtype: of the images that a loader delivers.
    """

    device: torch.device
    batch_size: int
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    rank: int = 0
    world_size: int = 1

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def sum_dtype(device: torch.device) -> torch.dtype:
    """What sums over many images are kept in: float64, which counts exactly to 2**53.

    MPS has none: float32 there, which counts exactly to 16 million.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def has_fast_channels_last(device: torch.device) -> bool:
    """Whether convolutions gain by it. MPS computes in its own order, whatever the strides."""
    return device.type != "mps"


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on the device; a CUDA device fetches it while this thread goes on.

    MPS would read memory that may hold something else by then.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
