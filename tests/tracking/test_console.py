"""The bar on a terminal, and where log lines go."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from attnorm.tracking import Tracker, setup_logging


@pytest.fixture
def _own_logging() -> Iterator[None]:
    """The root logger as it was, afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)


def test_the_bar_has_epoch_steps_and_status_on_one_line_and_goes_away() -> None:
    output = io.StringIO()
    tracker = Tracker([], Console(file=output, force_terminal=True, width=80))
    tracker.start(120)
    tracker.train(10, {}, status="loss 1.234 lr 0.1 1,234 img/s eta 1:02:03", line="unused")
    tracker.progress(3, 120, 10, 2502)
    tracker.close()
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", printed) if "loss" in line]
    assert re.search(r"3/120 .* 10/2502 loss 1\.234 lr 0\.1 1,234 img/s eta 1:02:03", lines[-1])
    assert output.getvalue().endswith("\x1b[2K"), "the bar's line is erased"


@pytest.mark.usefixtures("_own_logging")
@pytest.mark.parametrize("terminal", [False, True])
def test_rank_0_logs_to_console_and_file_and_others_to_files_alone(
    terminal: bool, tmp_path: Path
) -> None:
    for rank, expected in ((0, "epoch 1 [2/5]"), (1, "")):
        output = io.StringIO()
        setup_logging(tmp_path, rank, Console(file=output, force_terminal=terminal, width=80))
        logging.getLogger("some.module").info("epoch %d [2/5]", 1)
        assert output.getvalue().strip() == expected
        (line,) = (tmp_path / "log" / f"rank{rank}.log").read_text().splitlines()
        assert line.endswith("INFO some.module: epoch 1 [2/5]")
