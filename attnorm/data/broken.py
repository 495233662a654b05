"""Images that cannot be decoded: stop with their path, or name them in the log and go on."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from attnorm.data.source import ImageSource, printable
from attnorm.errors import UserError

logger = logging.getLogger(__name__)


class Skipping:
    """What happens at a broken image. Its replacement is the next whole one in folder order."""

    def __init__(self, source: ImageSource, allowed: bool) -> None:
        self._source = source
        self._allowed = allowed
        self._known: set[int] = set()

    def report(self, broken: Mapping[int, str]) -> None:
        """Name each of the ``broken`` images (number: what is wrong) in the log once.

        Raises:
            UserError: broken images are not to be skipped.
        """
        for index, problem in broken.items():
            path = printable(self._source.path(index))
            if not self._allowed:
                raise UserError(
                    f"{path} cannot be decoded ({problem}).\n"
                    "Replace or remove the file, or use data.skip_broken=true to put another image"
                    " in its place."
                )
            if index not in self._known:
                logger.warning("skipping %s: it cannot be decoded (%s)", path, problem)
            self._known.add(index)
        if len(self._known) == len(self._source):
            raise UserError("None of the images can be decoded.")
