"""Class names that a person can read: ImageNet's folders are called n01440764."""

from __future__ import annotations

import re
from functools import cache

from timm.data import ImageNetInfo

_WNID = re.compile(r"n\d{8}")


@cache
def _descriptions() -> dict[str, str]:
    info = ImageNetInfo("imagenet-1k")
    return {name: info.label_name_to_description(name) for name in info.label_names()}


def readable(name: str) -> str:
    """The description of one of ImageNet's 1,000 identifiers; any other name as it is."""
    return _descriptions().get(name, name) if _WNID.fullmatch(name) else name
