"""Shared by the tests of the passes in C."""

from collections.abc import Iterator

import pytest

from attnorm.norms import native


@pytest.fixture
def forget_library() -> Iterator[None]:
    """The passes are loaded anew by the test, and again after it."""
    native.load.cache_clear()
    yield
    native.load.cache_clear()
