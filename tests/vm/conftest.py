"""Stages of a container's life as fixtures. Each test proves at its end that the host is as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.host import prove_unchanged, snapshot
from tests.support.runtime import Runtime


@pytest.fixture
def runtime(tmp_path: os.PathLike[str]) -> Iterator[Runtime]:
    """hawse with a root of its own; afterwards its containers are deleted and nothing may be left of them."""
    before = snapshot()
    made = Runtime(str(tmp_path))
    yield made
    for name in os.listdir(made.root) if os.path.isdir(made.root) else ():
        made("delete", "--force", name)
    # Orphaned proxies are collected by PID 1 in its own time.
    prove_unchanged(before)
    assert not os.path.isdir(made.root) or os.listdir(made.root) == []
