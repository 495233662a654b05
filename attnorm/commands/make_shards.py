"""Pack an ImageFolder into shards, for file systems that dislike millions of small files.

attnorm make-shards --source DATA --target SHARDS --format webdataset
attnorm train data=imagenet data.root=SHARDS data.format=webdataset
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from attnorm.data.prepare.parallel import available_workers
from attnorm.data.prepare.shards import write_shards
from attnorm.data.shards import FORMATS
from attnorm.errors import UserError, exit_on_user_error


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after a mistake."""
    parser = argparse.ArgumentParser(
        prog="attnorm make-shards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", type=Path, required=True, help="holds train/ and val/")
    parser.add_argument("--target", type=Path, required=True, help="gets train/ and val/")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--images-per-shard", type=int, default=1024, help="about 110 MB")
    parser.add_argument("--workers", type=int, default=available_workers())
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with exit_on_user_error():
        for key in ("images_per_shard", "workers"):
            if getattr(args, key) < 1:
                raise UserError(f"--{key.replace('_', '-')} must be at least 1.")
        write_shards(args.source, args.target, args.format, args.images_per_shard, args.workers)
    command = ["python", "train.py", "data=imagenet"]
    command += [f"data.root={args.target.absolute()}", f"data.format={args.format}"]
    print(f"ready: {shlex.join(command)}")
    return 0
