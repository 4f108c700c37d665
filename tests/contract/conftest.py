"""Network namespaces for tests that need the host kernel and no VM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.netns import Namespace


@pytest.fixture
def inside() -> Iterator[Namespace]:
    """The namespace of a sandbox."""
    with Namespace() as namespace:
        yield namespace


@pytest.fixture
def outside() -> Iterator[Namespace]:
    """The namespace at the other end of its cable."""
    with Namespace() as namespace:
        yield namespace
