"""ImageNet (ILSVRC 2012) as an ImageFolder: extract the archives, verify, or rehearse without them.

python scripts/prepare_imagenet.py --archives DOWNLOADS --root DATA    extract; go on if interrupted
python scripts/prepare_imagenet.py --root DATA --verify                decode every image
python scripts/prepare_imagenet.py --root DATA --synthetic 5000        a fake one of 5,000 images
"""

import sys

from attnorm.commands.prepare_imagenet import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
