"""Files that appear whole or not at all, and the folder for what can be made again."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attnorm.errors import UserError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to, renamed onto ``path`` at the end.

    After an error the temporary name is gone and ``path`` as it was. Processes may write the same
    ``path`` at the same time; the last one stays.

    Raises:
        OSError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of a killed process, whose number may come again
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_whole(folder: Path, fill: Callable[[Path], None], is_whole: Callable[[], bool]) -> None:
    """``fill`` a new folder beside ``folder``, and give it that name once it is complete.

    Several processes may do so at once: the first rename wins; the others find ``folder`` whole.

    Raises:
        OSError: the place cannot be written, or ``folder`` holds something else.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(building)
        building.chmod(0o755)  # mkdtemp keeps others out
        try:
            building.replace(folder)
        except OSError:
            if not is_whole():  # not another process that was first
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file whole or not at all.

    Raises:
        OSError: the place cannot be written.
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(values: Any) -> str:
    """Return ``values`` as indented JSON with a final newline."""
    return json.dumps(values, indent=2) + "\n"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        write_text(path, to_json(values))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def cache_folder() -> Path:
    """``ATTNORM_CACHE``, or ``attnorm`` in the user's cache folder; it need not exist yet."""
    if own := os.environ.get("ATTNORM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnorm"
