"""The learning rate of every iteration, as a pure function of its number."""

from __future__ import annotations

import math
from collections.abc import Callable

from attnorm.config import MultistepConfig, PolynomialConfig, ScheduleConfig, locate

# (base, config, progress, epoch) -> learning rate, progress being the share of the way from the end
# of the warmup to the end of training, and epoch the epochs done, fractions included.
Curve = Callable[[float, ScheduleConfig, float, float], float]


def check_schedule(config: ScheduleConfig) -> None:
    """Refuse a curve that cannot be had before a run exists: warmup comes first, for hours perhaps.

    Raises:
        UserError: ``schedule.curve`` cannot be imported.
    """
    locate(config.curve, "schedule.curve")


def learning_rate(
    config: ScheduleConfig, base: float, step: int, total_steps: int, steps_per_epoch: int
) -> float:
    """The learning rate of iteration ``step`` (counted from 0).

    Linear warmup reaches ``base`` at its end; ``schedule.curve`` takes over there.

    Raises:
        UserError: ``schedule.curve`` cannot be imported.
    """
    warmup_steps = config.warmup_steps
    if warmup_steps is None:
        warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return base * _warmup(config.warmup_start, step, warmup_steps)
    curve: Curve = locate(config.curve, "schedule.curve")
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return curve(base, config, progress, step / steps_per_epoch)


def _warmup(start: float, step: int, steps: int) -> float:
    """Linear from ``start``; from 0 the first step is not lost."""
    if start == 0:
        return (step + 1) / steps
    return start + (1 - start) * step / steps


def cosine(base: float, config: ScheduleConfig, progress: float, epoch: float) -> float:
    """Half a cosine from ``base`` to ``final_lr``, which it would reach at the end (§4.1)."""
    return config.final_lr + (base - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def multistep(base: float, config: ScheduleConfig, progress: float, epoch: float) -> float:
    """``base``, times ``gamma`` for every milestone that has been passed."""
    assert isinstance(config, MultistepConfig)
    passed = sum(epoch >= milestone for milestone in config.milestones)
    return max(base * config.gamma**passed, config.final_lr)


def polynomial(base: float, config: ScheduleConfig, progress: float, epoch: float) -> float:
    """``base`` to ``final_lr`` by a power of the share that is left, as timm's PolyLRScheduler."""
    assert isinstance(config, PolynomialConfig)
    left: float = (1 - progress) ** config.power
    return config.final_lr + (base - config.final_lr) * left
