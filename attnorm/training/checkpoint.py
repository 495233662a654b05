"""Checkpoints: written whole or not at all, read without running any of their code.

A checkpoint is a dict of tensors and plain containers, so ``torch.load(..., weights_only=True)``
reads it.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from attnorm.errors import UserError
from attnorm.files import written_whole

FORMAT = "attnorm/1"
REQUIRED = ("format", "model", "config", "epoch", "step")

# Keys that may change between the parts of a run without changing its result: the last group of
# these, up to rounding, since other kernels add in another order.
FREE_KEYS = (
    "name",
    "recipe_name",
    "resume",
    "device",
    "profile",
    "tracking.",
    "checkpoint.",
    "on_nonfinite",
    "max_rewinds",
    "max_skipped_steps",
    "timeout_minutes",
    "loader.prefetch",
    "data.root",
    "data.workers",
    "data.referee",
    # Of new weights alone.
    "arch.pretrained",
    "arch.classifier_std",
    "arch.attentive_scale",
    "norm.initial_scale",
    # Up to rounding:
    "compile",  # and compile_mode
    "optim.implementation",
)


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write to a temporary name, flush to the disk, then rename: ``path`` is always whole.

    Raises:
        OSError: it cannot be written; what was at ``path`` is still there.
    """
    try:
        with written_whole(path) as temporary, temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        # torch's archive writer covers the reason, such as a full disk, with its own complaint.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def link_checkpoint(source: Path, target: Path) -> None:
    """Make ``target`` the same checkpoint as ``source``, without writing it a second time.

    ``source`` may be replaced later: a replaced name leaves the linked content alone.
    """
    with written_whole(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project.

    Raises:
        UserError: no such file, not readable, truncated, changed, or not one of this project's.
    """
    return parse_checkpoint(read_checkpoint(path), path, device)


def read_checkpoint(path: Path) -> bytes:
    """The file's content.

    Raises:
        UserError: no such file, or not readable.
    """
    if not path.is_file():
        raise UserError(f"checkpoint={path} does not exist: check the path.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"checkpoint={path} cannot be read: {error.strerror}.") from error


def parse_checkpoint(
    content: bytes, path: Path, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """A checkpoint from the content of its file; ``path`` is for messages.

    Raises:
        UserError: truncated, changed, or not one of this project's.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.load compares no checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"checkpoint={path} cannot be read: it is damaged or not a checkpoint ({reason[:120]})."
            "\nUse another checkpoint of the run, or start the run again under another name."
        ) from error
    missing = [key for key in REQUIRED if not isinstance(state, dict) or key not in state]
    if missing or state["format"] != FORMAT:
        raise UserError(
            f"checkpoint={path} was not written by attnorm's trainer (it has no {missing[0]!r})."
            if missing
            else f"checkpoint={path} has format {state['format']!r}, this version reads {FORMAT!r}."
        )
    return dict(state)


def load_weights(model: torch.nn.Module, stored: Mapping[str, Any], path: Path) -> None:
    """Put weights into ``model``, which must be exactly the model they came from.

    Args:
        stored: A ``state_dict``.
        path: The checkpoint it is from, for the message.

    Raises:
        UserError: another architecture, normalizer or number of classes.
    """
    own = model.state_dict()
    wrong = [key for key in own if key not in stored] + [key for key in stored if key not in own]
    wrong += [key for key in own if key in stored and own[key].shape != stored[key].shape]
    if wrong:
        raise UserError(
            f"checkpoint={path} holds another model: {len(wrong)} tensors do not fit, the first is"
            f" {wrong[0]}.\nBuild the model with the arch, norm and data.num_classes it was trained"
            " with."
        )
    model.load_state_dict(stored)


def config_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Fields that change a run's result and differ, as "key: stored -> wanted"."""
    old, new = _flatten(stored), _flatten(wanted)
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(FREE_KEYS)
    ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
