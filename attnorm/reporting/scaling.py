"""How long the rows of Table 1 take on N GPUs, from their speed on one and what DDP sends.

The formula as pure functions, and what it assumes; docs/scaling.md writes it out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from attnorm.errors import UserError
from attnorm.models import create_model
from attnorm.models.complexity import count_parameters
from attnorm.reporting.table1_paper import ROWS, PaperRow

TRAIN_IMAGES, VAL_IMAGES = 1_281_167, 50_000
BYTES_PER_GRADIENT = 4  # float32, under mixed precision too
BUCKET_BYTES = 25 * 2**20  # DistributedDataParallel's default
BACKWARD_SHARE = 2 / 3  # of a pass: two products for the forward's one
EVALUATION_SPEEDUP = 3  # forward alone

# Images per second that the memory of one H100 (3.35 TB/s) allows, fp16, channels_last, 224².
# AN and GN need BN's passes over the activations; SE and SN more (see docs/scaling.md).
ROOFLINE = {
    ("resnet50", "bn"): 6605.0,
    ("resnet50", "gn"): 6605.0,
    ("resnet50", "sn"): 2702.0,
    ("resnet50", "se"): 5237.0,
    ("resnet50", "an"): 6605.0,
    ("resnet101", "bn"): 4285.0,
    ("resnet101", "an"): 4285.0,
    ("densenet161", "bn"): 2717.0,
    ("densenet161", "an"): 2717.0,
    ("mobilenetv2", "bn"): 13395.0,
    ("mobilenetv2", "an"): 13395.0,
}
PUBLISHED_SHARE = 2790 / 6605  # PyTorch's published ResNet-50 on an H100, of its roofline

# What torch dispatches in a forward and backward pass, views left out; AN's Triton passes as read
# in the code: 7 kernels, 17 allocations and 3 updates a layer where batch norm has 4 operations.
_AN_EXTRA = 23
OPERATIONS = {
    ("resnet50", "bn"): 461,
    ("resnet50", "gn"): 355,
    ("resnet50", "sn"): 6450,
    ("resnet50", "se"): 701,
    ("resnet50", "an"): 461 + 16 * _AN_EXTRA,
    ("resnet101", "bn"): 919,
    ("resnet101", "an"): 919 + 33 * _AN_EXTRA,
    ("densenet161", "bn"): 2468,
    ("densenet161", "an"): 2468 + 78 * _AN_EXTRA,
    ("mobilenetv2", "bn"): 448,
    ("mobilenetv2", "an"): 448 + 17 * _AN_EXTRA,
}

Speeds = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Machine:
    """What is assumed of the GPUs' surroundings.

    Attributes:
        nvlink_gbytes: 10⁹ bytes per second and GPU that an all-reduce moves inside a node.
        network_gbytes: the same between nodes: a GPU's share of its node's network.
        overlap: share of the last backward pass that hides communication.
        launch_us: the CPU's time per operation; with :data:`OPERATIONS` the floor of a pass.
        step_overhead_ms: that floor for every network, instead.
        timed_launching: speeds were timed at the paper's images per pass, launching included, so
            the floor cannot be above that pass.
    """

    nvlink_gbytes: float
    network_gbytes: float
    overlap: float
    launch_us: float
    step_overhead_ms: float | None = None
    timed_launching: bool = False

    def __post_init__(self) -> None:
        for option in ("nvlink_gbytes", "network_gbytes"):
            value = getattr(self, option)
            if not value > 0:
                raise UserError(f"--{option.replace('_', '-')} {value:g}: it must be above 0.")
        if self.step_overhead_ms is not None and not 0 <= self.step_overhead_ms < math.inf:
            raise UserError(f"--step-overhead-ms {self.step_overhead_ms:g}: it must be 0 or more.")

    def floor_seconds(self, row: PaperRow, images_per_second: float) -> float:
        """The least time of a forward and backward pass, however few the images."""
        if self.step_overhead_ms is not None:
            return self.step_overhead_ms / 1e3
        floor = OPERATIONS[row.arch, row.norm] * self.launch_us / 1e6
        if self.timed_launching:
            _, images = paper_batch(row.norm)
            return min(floor, images / images_per_second)
        return floor


FROM_BELOW = Machine(nvlink_gbytes=480, network_gbytes=50, overlap=1.0, launch_us=0)
FROM_ABOVE = Machine(nvlink_gbytes=240, network_gbytes=25, overlap=0.5, launch_us=10)
BESIDE_MEASURED = replace(FROM_ABOVE, timed_launching=True)


@dataclass(frozen=True)
class Case:
    """Speeds (images per second of one GPU, by arch and norm) and the machine they run in."""

    name: str
    speeds: Speeds
    machine: Machine


@dataclass(frozen=True)
class Plan:
    """How a row is trained; ``global_batch`` None is each row's own in the paper."""

    epochs: int = 120
    global_batch: int | None = None
    gpus_per_node: int = 8
    evaluate: bool = True

    def __post_init__(self) -> None:
        for option in ("epochs", "global_batch", "gpus_per_node"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UserError(f"--{option.replace('_', '-')} {value}: it must be at least 1.")
        if self.global_batch is not None and self.global_batch > TRAIN_IMAGES:
            raise UserError(
                f"--global-batch {self.global_batch} is more than ImageNet's {TRAIN_IMAGES} images."
            )


@dataclass(frozen=True)
class Pieces:
    """A step's images on one GPU: ``passes`` forward and backward passes of ``images`` each."""

    passes: int
    images: int


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step and of an evaluation, hours of a whole run."""

    compute_seconds: float
    exposed_seconds: float
    evaluation_seconds: float
    hours: float
    gpu_hours: float

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.exposed_seconds


def paper_batch(norm: str) -> tuple[int, int]:
    """Global batch, and most images that a GPU takes at once: 4 × 128; SN's row 8 × 32."""
    return (256, 32) if norm == "sn" else (512, 128)


def pieces(row: PaperRow, gpus: int, plan: Plan) -> Pieces:
    """What one of ``gpus`` does in a step; fewer GPUs than the paper's accumulate gradients.

    Raises:
        UserError: the GPUs fill no whole number of nodes, or cannot share the batch evenly.
    """
    own_batch, most = paper_batch(row.norm)
    batch = plan.global_batch or own_batch
    if gpus < 1:
        raise UserError(f"--gpus {gpus}: it must be at least 1.")
    if gpus > plan.gpus_per_node and gpus % plan.gpus_per_node:
        raise UserError(
            f"--gpus {gpus} does not fill nodes of --gpus-per-node {plan.gpus_per_node}: give a"
            " multiple of it."
        )
    if batch % gpus:
        raise UserError(
            f"--gpus {gpus}: {row.label}'s global batch of {batch} images is not divisible by it;"
            " use a divisor of it, or another --global-batch."
        )
    images = batch // gpus
    passes = next(n for n in range(math.ceil(images / most), images + 1) if images % n == 0)
    return Pieces(passes, images // passes)


def all_reduce_seconds(size: float, gpus: int, gpus_per_node: int, machine: Machine) -> float:
    """A hierarchical all-reduce of ``size`` bytes; its parts overlap, so the slower decides.

    A ring of n moves 2 (n − 1) / n of its bytes through each member: all of them inside a node,
    and between nodes the part of the gradients that is the GPU's own.
    """
    inside = min(gpus, gpus_per_node)
    nodes = gpus // inside
    within = 2 * (inside - 1) / inside * size / (machine.nvlink_gbytes * 1e9)
    between = 2 * (nodes - 1) / nodes * size / inside / (machine.network_gbytes * 1e9)
    return max(within, between)


def pass_seconds(images: int, images_per_second: float, floor_seconds: float) -> float:
    """A forward and backward pass: what the GPU needs, or what launching it takes."""
    return max(images / images_per_second, floor_seconds)


def exposed_seconds(
    gradient_bytes: float, backward_seconds: float, gpus: int, gpus_per_node: int, machine: Machine
) -> float:
    """The part of the all-reduce that a step waits for: at least that of the last bucket."""
    if gpus == 1:
        return 0.0
    everything = all_reduce_seconds(gradient_bytes, gpus, gpus_per_node, machine)
    last = all_reduce_seconds(min(gradient_bytes, BUCKET_BYTES), gpus, gpus_per_node, machine)
    return max(everything - machine.overlap * backward_seconds, last)


def evaluation_seconds(
    gpus: int, images_at_once: int, images_per_second: float, floor_seconds: float
) -> float:
    """All of ImageNet's validation set once, forward only, every image on one GPU."""
    share = math.ceil(VAL_IMAGES / gpus)
    launching = math.ceil(share / images_at_once) * floor_seconds
    return max(share / images_per_second, launching) / EVALUATION_SPEEDUP


def estimate(
    row: PaperRow, images_per_second: float, gpus: int, plan: Plan, machine: Machine
) -> Estimate:
    """One row on ``gpus`` GPUs, each of which trains ``images_per_second`` on its own.

    Raises:
        UserError: see :func:`pieces`.
    """
    split = pieces(row, gpus, plan)
    floor = machine.floor_seconds(row, images_per_second)
    one_pass = pass_seconds(split.images, images_per_second, floor)
    compute = split.passes * one_pass
    gradient_bytes = BYTES_PER_GRADIENT * parameters(row.arch, row.norm)
    backward = BACKWARD_SHARE * one_pass  # earlier passes of the step send nothing
    exposed = exposed_seconds(gradient_bytes, backward, gpus, plan.gpus_per_node, machine)
    evaluation = 0.0
    if plan.evaluate:
        evaluation = evaluation_seconds(gpus, split.images, images_per_second, floor)
    steps = TRAIN_IMAGES // (split.images * split.passes * gpus)
    hours = plan.epochs * (steps * (compute + exposed) + evaluation) / 3600
    return Estimate(compute, exposed, evaluation, hours, hours * gpus)


@cache
def parameters(arch: str, norm: str) -> int:
    """Every learnable number of a row's network."""
    with torch.device("meta"):
        return count_parameters(create_model(arch, norm=norm))


def bounds() -> tuple[Case, Case]:
    """The two ends between which a run is expected while nothing is measured."""
    published = {row: speed * PUBLISHED_SHARE for row, speed in ROOFLINE.items()}
    return Case("from below", ROOFLINE, FROM_BELOW), Case("from above", published, FROM_ABOVE)


@dataclass(frozen=True)
class Measurement:
    """Images per second by (arch, norm), with the machine and command that gave them."""

    speeds: Speeds
    machine: str
    command: str


def read_speeds(path: Path) -> Measurement:
    """What ``benchmark.py model --json`` wrote.

    Raises:
        UserError: the file cannot be read, is of another kind, or holds no row of Table 1.
    """
    speeds: dict[tuple[str, str], float] = {}
    try:
        record = json.loads(path.read_text())
        for line in record["training"]:
            speed = float(line["images per second"])
            if not 0 < speed < math.inf:
                raise ValueError(f"{speed:g} images per second")
            speeds[line["arch"], line["norm"]] = speed
        measurement = Measurement(speeds, str(record["machine"]), str(record["command"]))
    except OSError as error:
        raise UserError(f"--images-per-second {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--images-per-second {path} is not what benchmark.py model --json writes"
            f" ({type(error).__name__}: {error})."
        ) from error
    if not any((row.arch, row.norm) in speeds for row in ROWS):
        raise UserError(
            f"--images-per-second {path} holds no row of Table 1: measure some with"
            " benchmark.py model --arch … --norm … --json FILE."
        )
    return measurement


def measured(measurements: Sequence[Measurement]) -> Case:
    """The speeds of all files, with the cautious assumptions about the rest.

    Raises:
        UserError: a row is in two of them.
    """
    speeds: dict[tuple[str, str], float] = {}
    for measurement in measurements:
        for row in measurement.speeds:
            if row in speeds:
                raise UserError(
                    f"--images-per-second: {'_'.join(row)} is in two files; give each row once."
                )
        speeds |= measurement.speeds
    return Case("beside the measured speeds", speeds, BESIDE_MEASURED)
