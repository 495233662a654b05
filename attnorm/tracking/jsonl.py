"""``metrics.jsonl``: a line of JSON for each record, in the run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnorm.files import write_text
from attnorm.tracking.sink import Sink


class JsonLines(Sink):
    """Appends records to a file, which is opened and closed for each.

    Histograms stay out: a bucket list for each layer would bury the few numbers of a line that
    people and scripts read. Texts stand in the run folder as files of their own.

    Lines beyond ``start_step`` and ``start_epoch`` (epochs completed) are dropped on opening:
    those steps happen again.
    """

    def __init__(self, path: Path, start_step: int = 0, start_epoch: int = 0) -> None:
        self._path = path
        self.rewind(start_step, start_epoch)

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, step: int, epoch: int) -> None:
        if self._path.exists():
            _drop_after(self._path, step, epoch)


def _drop_after(path: Path, step: int, epoch: int) -> None:
    """Keep events, and of the rest what a run that goes on from here will not record again.

    A line that a kill cut short goes too.
    """
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        position, start = (
            (entry["epoch"], epoch) if entry["kind"] == "eval" else (entry["step"], step)
        )
        if entry["kind"] == "event" or position <= start:
            kept.append(line + "\n")
    write_text(path, "".join(kept))
