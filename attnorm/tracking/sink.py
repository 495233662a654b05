"""What every place that a run's numbers go to can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# By kind of record, the names whose values become scalars, each with its tag.
Tags = Mapping[str, Mapping[str, str]]


class Sink:
    """Takes nothing; a place overrides what it can show."""

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Values by name, of one kind: "train", "eval" or "event"."""

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """The distribution of ``values``: of any shape, on any device, all finite."""

    def picture(self, tag: str, pixels: Tensor, step: int) -> None:
        """A picture: uint8 (H, W, 3), on the CPU."""

    def text(self, tag: str, text: str) -> None:
        """A page of YAML."""

    def rewind(self, step: int, epoch: int) -> None:
        """Training goes on after ``step``, with ``epoch`` epochs completed."""

    def close(self) -> None:
        """Write or send what is left."""


def tagged_scalars(tags: Tags, kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The values of a record that have a tag and are not None, by their tags."""
    named = tags.get(kind, {})
    return {tag: values[name] for name, tag in named.items() if values.get(name) is not None}
