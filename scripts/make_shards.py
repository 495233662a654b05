"""Pack an ImageFolder into shards, for file systems that dislike millions of small files.

python scripts/make_shards.py --source DATA --target SHARDS --format webdataset
python train.py data=imagenet data.root=SHARDS data.format=webdataset
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from attnorm.data import shards
from attnorm.data.forking import available_workers
from attnorm.errors import UserError, exit_on_user_error


def main() -> None:
    """Exit status 2 after a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="holds train/ and val/")
    parser.add_argument("--target", type=Path, required=True, help="gets train/ and val/")
    parser.add_argument("--format", choices=shards.FORMATS, required=True)
    parser.add_argument("--images-per-shard", type=int, default=1024, help="about 110 MB")
    parser.add_argument("--workers", type=int, default=available_workers())
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with exit_on_user_error():
        for key in ("images_per_shard", "workers"):
            if getattr(args, key) < 1:
                raise UserError(f"--{key.replace('_', '-')} must be at least 1.")
        shards.write_shards(
            args.source, args.target, args.format, args.images_per_shard, args.workers
        )
        print(
            f"ready: python train.py data=imagenet data.root={args.target.absolute()}"
            f" data.format={args.format}"
        )


if __name__ == "__main__":
    main()
