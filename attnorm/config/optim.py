"""The groups ``optim`` and ``schedule``: how weights are updated, and how fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from omegaconf import MISSING

from attnorm.config.checks import is_finite, own_fields, require, require_choice


@dataclass
class OptimConfig:
    """What every optimizer has; ``lr`` is for a global batch of ``reference_batch`` images."""

    schema: str = "base_optim"
    name: str = MISSING
    # Import path of what makes it, called as factory(groups, lr=lr, **options).
    factory: str = MISSING
    lr: float = 0.2
    # The paper's 4 GPUs × 128 images (§4.1); lr is scaled linearly from it to the global batch.
    reference_batch: int = 512
    weight_decay: float = 1e-4
    # Weight decay on scale and offset parameters of normalizers too, as the authors do.
    norm_weight_decay: bool = True
    # Weight decay on the biases of convolutions and linear layers.
    bias_weight_decay: bool = True
    # The longest that a step's gradient may be (its L2 norm over all weights); null for no limit.
    clip_norm: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(is_finite(self.lr) and self.lr > 0, "optim.lr", self.lr, "positive")
        require(
            self.reference_batch >= 1, "optim.reference_batch", self.reference_batch, "at least 1"
        )
        require(
            is_finite(self.weight_decay) and self.weight_decay >= 0,
            "optim.weight_decay",
            self.weight_decay,
            "0 or more",
        )
        require(
            self.clip_norm is None or self.clip_norm > 0,
            "optim.clip_norm",
            self.clip_norm,
            "positive, or null for no limit",
        )

    def factory_options(self) -> dict[str, Any]:
        """Keyword arguments for the factory: the typed fields of a subclass, and ``options``."""
        return {**own_fields(self, OptimConfig), **self.options}


@dataclass
class SGDConfig(OptimConfig):
    """Stochastic gradient descent with momentum."""

    schema: str = "sgd"
    name: str = "sgd"
    factory: str = "attnorm.training.optim.sgd"
    momentum: float = 0.9
    nesterov: bool = False
    # torch (one fused kernel), or apex: NVIDIA's FusedSGD, where apex is installed.
    implementation: str = "torch"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("optim.implementation", self.implementation, ("torch", "apex"))
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "in [0, 1)")
        require(
            not self.nesterov or self.momentum > 0,
            "optim.nesterov",
            self.nesterov,
            "false when optim.momentum=0",
        )


@dataclass
class TimmOptimConfig(OptimConfig):
    """An optimizer of ``timm.optim``; ``options`` are its own."""

    schema: str = "timm_optim"
    factory: str = "attnorm.training.optim.from_timm"
    # As timm.optim.list_optimizers() has it.
    timm_name: str = MISSING


@dataclass
class ScheduleConfig:
    """Learning rate by iteration: linear warmup, then ``curve`` from the base rate on."""

    schema: str = "base_schedule"
    name: str = "cosine"
    # Import path of a function (base, config, progress, epoch) -> learning rate.
    curve: str = "attnorm.training.schedule.cosine"
    warmup_epochs: float = 0.0
    # The warmup in steps, for recipes that state it so; null for warmup_epochs.
    warmup_steps: int | None = None
    # What the warmup begins with, as a share of the base rate.
    warmup_start: float = 0.0
    final_lr: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("warmup_epochs", "final_lr"):
            value = getattr(self, key)
            require(is_finite(value) and value >= 0, f"schedule.{key}", value, "0 or more")
        steps = self.warmup_steps
        valid = steps is None or (steps >= 0 and self.warmup_epochs == 0)
        wanted = "0 or more with schedule.warmup_epochs=0, or null"
        require(valid, "schedule.warmup_steps", steps, wanted)
        start = self.warmup_start
        require(0 <= start < 1, "schedule.warmup_start", start, "in [0, 1)")


@dataclass
class MultistepConfig(ScheduleConfig):
    """The base rate, multiplied by ``gamma`` after each epoch of ``milestones``."""

    schema: str = "multistep"
    name: str = "multistep"
    curve: str = "attnorm.training.schedule.multistep"
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in pairwise([0.0, *self.milestones]))
        require(rising, "schedule.milestones", self.milestones, "epochs, each after the last")
        require(0 < self.gamma < 1, "schedule.gamma", self.gamma, "between 0 and 1")


@dataclass
class PolynomialConfig(ScheduleConfig):
    """From the base rate to ``final_lr`` by a power of what is left; 1 is a straight line."""

    schema: str = "polynomial"
    name: str = "polynomial"
    curve: str = "attnorm.training.schedule.polynomial"
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.power > 0, "schedule.power", self.power, "positive")
