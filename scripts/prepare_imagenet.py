"""ImageNet (ILSVRC 2012) as an ImageFolder: extract the archives, verify, or rehearse without them.

python scripts/prepare_imagenet.py --archives DOWNLOADS --root DATA    extract; go on if interrupted
python scripts/prepare_imagenet.py --root DATA --verify                decode every image
python scripts/prepare_imagenet.py --root DATA --synthetic 5000        a fake one of 5,000 images
"""

import sys

from attnorm.__main__ import run

if __name__ == "__main__":
    run("prepare-imagenet", *sys.argv[1:])
