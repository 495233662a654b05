"""Where batches go, and which share of them is this process's."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
