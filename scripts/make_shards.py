"""Pack an ImageFolder into shards, for file systems that dislike millions of small files.

python scripts/make_shards.py --source DATA --target SHARDS --format webdataset
python train.py data=imagenet data.root=SHARDS data.format=webdataset
"""

import sys

from attnorm.__main__ import run

if __name__ == "__main__":
    run("make-shards", *sys.argv[1:])
