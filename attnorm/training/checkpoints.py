"""Which checkpoints a run keeps, and how they reach the disk while training goes on.

``checkpoints/STEP.pt`` are the files; ``last.pt`` and ``best.pt`` are further names of two of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from attnorm import distributed
from attnorm.errors import UserError
from attnorm.training.checkpoint import (
    link_checkpoint,
    parse_checkpoint,
    read_checkpoint,
    save_checkpoint,
)


def candidates(run_dir: Path) -> list[Path]:
    """Checkpoints that a run can go on from, the newest first."""
    numbered = sorted((run_dir / "checkpoints").glob("[0-9]*.pt"), reverse=True)
    last = run_dir / "last.pt"
    return [last, *(path for path in numbered if not _same_file(path, last))]


def _same_file(path: Path, other: Path) -> bool:
    return other.exists() and path.samefile(other)


def load_newest(run_dir: Path) -> tuple[tuple[Path, dict[str, Any]] | None, list[str]]:
    """The newest checkpoint of a run that is whole, or None, and what is wrong with newer ones.

    Collective: rank 0 reads the file, once, and the others get what it read. They may be on
    machines that cannot see it.

    Raises:
        UserError: there are checkpoints, but every one is damaged.
    """
    found = _Found()
    path, damage = distributed.from_main(lambda: found.search(run_dir))
    if path is None:
        return None, damage
    return (path, found.shared(path)), damage


def load_shared(path: Path) -> dict[str, Any]:
    """A checkpoint that rank 0 reads, on every process. Collective.

    Raises:
        UserError: no such file, or not a whole checkpoint of this project.
    """
    found = _Found()
    distributed.from_main(lambda: found.read(path))
    return found.shared(path)


class _Found:
    """A file's content and what it holds, on the process that has read it."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.state: dict[str, Any] | None = None

    def read(self, path: Path) -> None:
        content = read_checkpoint(path)
        self.state, self.content = parse_checkpoint(content, path), content

    def shared(self, path: Path) -> dict[str, Any]:
        """What rank 0 has read, on every process. Collective."""
        content = distributed.broadcast_bytes(self.content)
        return self.state or parse_checkpoint(content, path)

    def search(self, run_dir: Path) -> tuple[Path | None, list[str]]:
        damage: list[str] = []
        for path in candidates(run_dir):
            if not path.exists():
                continue
            try:
                self.read(path)
            except UserError as error:
                damage.append(f"{str(error).splitlines()[0]} The previous one is tried.")
            else:
                return path, damage
        if damage:
            raise UserError(
                f"{run_dir} has no checkpoint that can be read: {damage[0]}\n"
                "Remove the folder to start again, or choose another name=."
            )
        return None, damage


class CheckpointManager:
    """Writes snapshots in a thread of its own; only rank 0 has one that writes."""

    def __init__(self, run_dir: Path, *, enabled: bool, keep_last: int, keep_best: int) -> None:
        self.run_dir, self.enabled = run_dir, enabled
        self.keep_last, self.keep_best = keep_last, keep_best
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        if enabled:
            (run_dir / "checkpoints").mkdir(exist_ok=True)
            _remove_litter(run_dir)

    def save(
        self, state: Mapping[str, Any], step: int, scores: Sequence[tuple[float, int]]
    ) -> None:
        """Snapshot ``state`` now and write it beside the training that goes on.

        Args:
            scores: (rank, step) of every evaluated checkpoint so far, this one included; the
                lowest rank is the best.

        Raises:
            UserError: the previous checkpoint could not be written.
        """
        if not self.enabled:
            return
        self.finish()
        snapshot = {key: _on_host(value) for key, value in state.items()}
        self._pending = self._writer.submit(self._write, snapshot, step, list(scores))

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is on the disk.

        Raises:
            UserError: it could not be written; those before it are untouched.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except OSError as error:
            raise self.not_written(error) from error

    def not_written(self, error: OSError) -> UserError:
        """Return the error for a failed write into the run folder; it names the last checkpoint."""
        if self._pending is not None:
            wait([self._pending])  # it may still succeed and become the last one
        last = self.run_dir / "last.pt"
        left = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint"
        return UserError(
            f"{self.run_dir} cannot be written: {error.strerror}. Training has stopped; {left}.\n"
            "Make room or mount it again, then start the same command to continue."
        )

    def failed(self) -> bool:
        """Whether a write has already failed, without waiting for one that goes on."""
        pending = self._pending
        return pending is not None and pending.done() and pending.exception() is not None

    def _write(
        self, state: Mapping[str, Any], step: int, scores: Sequence[tuple[float, int]]
    ) -> None:
        path = self._path(step)
        save_checkpoint(state, path)
        link_checkpoint(path, self.run_dir / "last.pt")
        ranked = sorted(scores)
        if ranked and ranked[0][1] == step:
            link_checkpoint(path, self.run_dir / "best.pt")
        best = {self._path(kept) for _, kept in ranked[: self.keep_best]}
        numbered = sorted((self.run_dir / "checkpoints").glob("[0-9]*.pt"))
        for old in numbered[: -self.keep_last]:
            if old not in best:
                old.unlink()

    def _path(self, step: int) -> Path:
        return self.run_dir / "checkpoints" / f"{step:09d}.pt"


def _remove_litter(run_dir: Path) -> None:
    """Temporary files of a process that was killed while it wrote."""
    for folder in (run_dir, run_dir / "checkpoints"):
        for temporary in folder.glob(".*.tmp"):
            temporary.unlink()


def _on_host(value: Any) -> Any:
    """A copy in main memory that later training steps do not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_host(item) for item in value)
    return value
