"""The checks that every config group is made of; each names key, value and way out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from attnorm.errors import UserError


def require(condition: bool, key: str, value: object, wanted: str) -> None:
    if not condition:
        raise UserError(f"{key}={value} is not possible: it must be {wanted}.")


def require_choice(key: str, value: str, choices: Sequence[str]) -> None:
    require(value in choices, key, value, "one of " + ", ".join(choices))


def check_num_components(key: str, value: Any) -> None:
    """Refuse anything but a positive integer or a non-empty list of them (one per stage)."""
    counts = value if isinstance(value, list) else [value]
    valid = bool(counts) and all(type(count) is int and count >= 1 for count in counts)
    require(valid, key, value, "an integer of at least 1, or a list of them, one per stage")


def is_finite(value: float) -> bool:
    return math.isfinite(value)


def own_fields(config: Any, base: type[Any]) -> dict[str, Any]:
    """The typed fields that ``config``'s class adds to those of ``base``, with their values."""
    common = {spec.name for spec in fields(base)}
    return {key: value for key, value in asdict(config).items() if key not in common}
