"""The one exception for a person's mistakes: its message is all they see, so it says what to do."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user asked for that cannot be done.

    The message (one to three lines) names the key, the value and the way out. The entry points
    print it on rank 0 without a traceback and exit with status 2; anything else is a bug.
    """


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a :class:`UserError` into its message, on rank 0 alone, and exit status 2."""
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
