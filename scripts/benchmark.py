"""How fast it is, as tables: layers, networks, loaders, the training loop, a start.

  python scripts/benchmark.py SUBJECT [options] [--json FILE]

SUBJECT is layer, model, loader, memory, train, start or checkpoint.

Everything runs on the GPU where there is one. Contestants take turns, and medians are shown.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from attnorm.errors import exit_on_user_error
from attnorm.reporting.benchmarks import (
    checkpoint,
    layer,
    loader,
    measure,
    memory,
    model,
    start,
    train,
)

SUBJECTS = {
    "layer": layer,
    "model": model,
    "loader": loader,
    "memory": memory,
    "train": train,
    "start": start,
    "checkpoint": checkpoint,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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


def as_markdown(result: dict[str, Any], machine: str, command: str) -> str:
    parts = [f"`{command}`", machine]
    for title, values in result.items():
        rows = measure.as_rows(values) if isinstance(values, dict) else values
        parts += [title.replace("_", " ").capitalize() + ":", measure.markdown_table(rows)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    args = parse(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = measure.describe_machine()
    command = shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]])
    result = SUBJECTS[args.subject].run(args)
    text = as_markdown(result, machine, command)
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    if args.json:
        record = {"command": command, "machine": machine, **result}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
