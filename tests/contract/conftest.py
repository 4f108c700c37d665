"""Network namespaces and files for tests that need the host kernel and no VM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with a file and with a directory, at which tests mount other file systems."""
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "file").write_text("content")
    return tmp_path / "tree"
