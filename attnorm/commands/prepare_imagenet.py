"""ImageNet (ILSVRC 2012) as an ImageFolder: extract the archives, verify, or rehearse without them.

attnorm prepare-imagenet --archives DOWNLOADS --root DATA    extract; go on if interrupted
attnorm prepare-imagenet --root DATA --verify                decode every image
attnorm prepare-imagenet --root DATA --synthetic 5000        a fake one of 5,000 images
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from attnorm.data.prepare import imagenet
from attnorm.data.prepare.parallel import available_workers
from attnorm.errors import UserError, exit_on_user_error


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, 1 where --verify found broken images, 2 after a mistake."""
    parser = argparse.ArgumentParser(
        prog="attnorm prepare-imagenet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="gets train/ and val/")
    parser.add_argument("--archives", type=Path, help="folder of the three official archives")
    parser.add_argument(
        "--verify", action="store_true", help="decode every image, list broken ones"
    )
    parser.add_argument("--synthetic", type=int, metavar="N", help="draw N images to train on")
    parser.add_argument("--classes", type=int, default=10, help="classes of --synthetic")
    parser.add_argument("--workers", type=int, default=available_workers())
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with exit_on_user_error():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    """What the arguments ask for, one after the other."""
    if not (args.archives or args.verify or args.synthetic):
        raise UserError("Nothing to do: give --archives FOLDER, --synthetic N or --verify.")
    if args.archives and args.synthetic:
        raise UserError(
            "--archives and --synthetic exclude each other: a data set is one or the other."
        )
    if args.workers < 1:
        raise UserError(f"--workers {args.workers} is not possible: at least 1.")
    if args.archives:
        imagenet.prepare(args.archives, args.root, args.workers)
    if args.synthetic:
        imagenet.synthesize(args.root, args.synthetic, args.classes, args.workers)
    if not args.verify:
        command = ["python", "train.py", "data=imagenet", f"data.root={args.root.absolute()}"]
        print(f"ready: {shlex.join(command)}")
        return 0
    broken = imagenet.broken_images(args.root, args.workers)
    for path, problem in broken:
        print(f"{path}: {problem}")
    print(f"{len(broken)} broken images")
    return int(bool(broken))
