"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], last_left: int = 0) -> str:
    """A table: its first column and the ``last_left`` are aligned left, all others right."""
    numbers = len(heads) - 1 - last_left
    rule = "|---" + "|---:" * numbers + "|---" * last_left + "|"
    return "\n".join([_line(heads), rule, *(_line(row) for row in rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
