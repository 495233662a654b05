"""What tells one data set from another: how many images, their names and sizes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

from attnorm.data.source import ImageSource


def fingerprint(images: ImageSource, root: Path) -> dict[str, Any]:
    """Count, and the first 16 digits of the SHA-256 of each image's name below root and file size.

    Images in shards have names without sizes.
    """
    digest = hashlib.sha256()
    for index in range(len(images)):
        path = images.path(index)
        size = Path(path).stat().st_size if images.shards is None else None
        digest.update(f"{os.path.relpath(path, root)}\0{size}\n".encode("utf-8", "surrogateescape"))
    return {"images": len(images), "sha256": digest.hexdigest()[:16]}


def in_background(work: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Begin ``work`` in a thread: a large data set takes a while. The result waits for its end."""
    found: list[dict[str, Any]] = []
    failed: list[OSError] = []

    def collect() -> None:
        try:
            found.append(work())
        except OSError as error:  # an image is gone: the loader says so when it gets there
            failed.append(error)

    thread = Thread(target=collect, daemon=True)
    thread.start()

    def result() -> dict[str, Any]:
        thread.join()
        return found[0] if found else {"unknown": str(failed[0])}

    return result
