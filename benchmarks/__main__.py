"""How fast it is, as tables: layers, networks, loaders, the training loop, whole commands, a start.

  python -m benchmarks SUBJECT [options] [--json FILE] [--markdown FILE]

Everything runs on the GPU where there is one. Contestants take turns, and medians are shown.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from attnorm.errors import UserError, exit_on_user_error
from attnorm.files import write_json, write_text
from benchmarks import (
    checkpoint,
    command,
    detection,
    layer,
    loader,
    measure,
    memory,
    model,
    scaling,
    start,
    train,
)

SUBJECTS = {
    "layer": layer,
    "model": model,
    "loader": loader,
    "memory": memory,
    "train": train,
    "command": command,
    "detection": detection,
    "start": start,
    "checkpoint": checkpoint,
    "scaling": scaling,
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The subject's own options, and those of all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, module in SUBJECTS.items():
        subject = subjects.add_parser(
            name,
            description=module.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.add_arguments(subject)
        subject.add_argument("--threads", type=int, help="of torch on the CPU")
        subject.add_argument("--json", type=Path, help="write the figures there")
        subject.add_argument("--markdown", type=Path, help="write the tables there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure one subject, print its tables, and keep them where the options say."""
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    command = shlex.join(["python", "-m", "benchmarks", *_what_is_measured(arguments)])
    with exit_on_user_error():
        # A subject that times nothing says so in place of the machine.
        record = {"command": command, "machine": measure.describe_machine()}
        record |= SUBJECTS[args.subject].run(args)
        text = measure.as_markdown(record)
        print(text)
        if args.markdown:
            _write_tables(args.markdown, text)
        if args.json:
            write_json(args.json, record)
    return 0


def _what_is_measured(arguments: Sequence[str]) -> list[str]:
    """Without where it is written to."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--json", "--markdown"):
        parser.add_argument(option)
    return parser.parse_known_args(list(arguments))[1]


def _write_tables(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--markdown {path}: {error.strerror}.") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
