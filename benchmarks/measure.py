"""What all benchmarks share: the machine's description, fair timing, tables."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from attnorm.processor import processor
from attnorm.training.precision import AUTOCAST_DTYPES

PRECISIONS = ("fp32", *AUTOCAST_DTYPES)

# A block of calls is long enough for the clock, and short enough to take turns.
_BLOCK_SECONDS = 0.03
_MOST_CALLS = 200


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_machine() -> str:
    """Processor or GPU, threads and versions, on one line."""
    parts = [
        f"{_processor()} ({processor().instructions})",
        f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
    ]
    if torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name())
    parts += [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    return " · ".join(parts)


class Times(dict[str, list[float]]):
    """Seconds per call of each contestant, one value per round."""

    def median(self, name: str) -> float:
        """Median seconds per call."""
        return statistics.median(self[name])

    def ratio(self, name: str, to: str) -> float:
        """Median over the rounds of one contestant's time over another's in the same round.

        A machine that is busy for a while slows both alike.
        """
        return statistics.median(self._ratios(name, to))

    def spread(self, name: str, to: str) -> str:
        """The same ratio with the lowest and the highest round: median (lowest – highest)."""
        return spread(self._ratios(name, to))

    def _ratios(self, name: str, to: str) -> list[float]:
        return [own / other for own, other in zip(self[name], self[to], strict=True)]


def spread(ratios: Sequence[float]) -> str:
    """Median (lowest – highest)."""
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} – {max(ratios):.3f})"


def take_turns(
    contestants: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[Callable[[], object], int], float] | None = None,
    calls: int | None = None,
) -> Times:
    """Time all contestants block by block, in ``repeats`` rounds.

    ``clock`` gives the seconds per call of a block of calls; by default :func:`seconds`. A block
    has ``calls``, by default as many as its length needs.
    """
    clock = clock or seconds
    blocks = {name: calls or _calls_per_block(call) for name, call in contestants.items()}
    times = Times({name: [] for name in contestants})
    for _ in range(repeats):
        for name, call in contestants.items():
            times[name].append(clock(call, blocks[name]))
    return times


def seconds(call: Callable[[], object], calls: int = 1) -> float:
    """Seconds per call, the GPU's work included."""
    _wait()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    _wait()
    return (time.perf_counter() - started) / calls


def seconds_between(other: Callable[[], object]) -> Callable[[Callable[[], object], int], float]:
    """A clock like :func:`seconds` that runs ``other`` before each call, and does not count it."""

    def clock(call: Callable[[], object], calls: int = 1) -> float:
        total = 0.0
        for _ in range(calls):
            other()
            total += seconds(call)
        return total / calls

    return clock


def as_markdown(record: Mapping[str, Any]) -> str:
    """A record as text: its command, its machine, and a table of everything else in it."""
    parts = [f"`{record['command']}`", record["machine"]]
    for title, values in record.items():
        if title not in ("command", "machine"):
            title = title.replace("_", " ")
            parts += [f"{title[:1].upper()}{title[1:]}:", markdown_table(values)]
    return "\n\n".join(parts) + "\n"


def markdown_table(values: Sequence[Mapping[str, Any]] | Mapping[str, float]) -> str:
    """One line per row, or per named number, with three digits that count; None is not measured."""
    rows = values
    if isinstance(rows, Mapping):
        rows = [{"": name, "value": value} for name, value in rows.items()]
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |"]
    lines.append("|" + "|".join("--:" if _is_number(rows[0][n]) else "---" for n in names) + "|")
    lines += ["| " + " | ".join(_text(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _calls_per_block(call: Callable[[], object]) -> int:
    for _ in range(2):  # the first call compiles and allocates
        call()
    return max(1, min(_MOST_CALLS, round(_BLOCK_SECONDS / seconds(call))))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _text(value: object) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
