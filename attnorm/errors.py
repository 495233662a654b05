"""The one exception for a person's mistakes: its message is all they see, so it says what to do."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS_FOR_RANK_0 = 3
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class UserError(ValueError):
    """Something the user asked for that cannot be done.

    The message (one to three lines) names the key, the value and the way out. The entry points
    print it on rank 0 without a traceback and exit with status 2; anything else is a bug.
    """


def is_unwritable(error: OSError) -> bool:
    """Return True if the disk is full, the quota used up, or the file system read-only."""
    return error.errno in _UNWRITABLE


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a :class:`UserError` into its message, on rank 0 alone, and exit status 2.

    A full or read-only disk is reported in the same way. An unhandled Ctrl-C prints one word and
    exits with status 130.
    """
    _hear_interrupts()
    try:
        yield
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and not is_unwritable(error):
            raise
        _say(f"error: {error}")
        if not _speaks():
            # torchrun ends all processes with the first that ends: rank 0 has to speak before.
            time.sleep(_SECONDS_FOR_RANK_0)
        sys.exit(2)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(128 + signal.SIGINT)


def _hear_interrupts() -> None:
    """As an exception, which lets what is open be closed, from the end of the imports on."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say(line: str) -> None:
    if _speaks():
        sys.stderr.write(f"{line}\n")
