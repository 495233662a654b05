"""Several processes as one: who they are, what they agree on, who is missing."""

from attnorm.distributed.group import (
    Process,
    agree,
    all_reduce_sum,
    barrier,
    broadcast_buffers,
    broadcast_bytes,
    cores_per_process,
    current_process,
    from_main,
    gather_objects,
    process_group,
    rank,
    together,
    world_size,
)
from attnorm.distributed.placement import (
    Placement,
    has_fast_channels_last,
    moved,
    sum_dtype,
)

__all__ = [
    "Placement",
    "Process",
    "agree",
    "all_reduce_sum",
    "barrier",
    "broadcast_buffers",
    "broadcast_bytes",
    "cores_per_process",
    "current_process",
    "from_main",
    "gather_objects",
    "has_fast_channels_last",
    "moved",
    "process_group",
    "rank",
    "sum_dtype",
    "together",
    "world_size",
]
