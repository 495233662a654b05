"""Pack an ImageFolder into shards, for file systems that dislike millions of small files.

python scripts/make_shards.py --source DATA --target SHARDS --format webdataset
python train.py data=imagenet data.root=SHARDS data.format=webdataset
"""

import sys

from attnorm.commands.make_shards import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
