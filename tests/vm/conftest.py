"""A runtime and network namespaces for a test, which proves at its end that the host is unchanged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.host import prove_unchanged, snapshot
from tests.support.netns import Namespace
from tests.support.runtime import Runtime


@pytest.fixture
def runtime(tmp_path: os.PathLike[str]) -> Iterator[Runtime]:
    """hawse with a private root. After the test its containers are deleted, and nothing of them may remain."""
    before = snapshot()
    runtime = Runtime(str(tmp_path))
    yield runtime
    for name in os.listdir(runtime.root) if os.path.isdir(runtime.root) else ():
        runtime("delete", "--force", name)
    # PID 1 collects orphaned proxies with a delay, for which prove_unchanged() waits.
    prove_unchanged(before)
    assert not os.path.isdir(runtime.root) or os.listdir(runtime.root) == []


@pytest.fixture
def new_namespace() -> Iterator[Callable[[], Namespace]]:
    """A function that creates a network namespace, which is removed after the test."""
    with ExitStack() as undo:
        yield lambda: undo.enter_context(Namespace())


@pytest.fixture
def inside(new_namespace: Callable[[], Namespace]) -> Namespace:
    """The network namespace of a sandbox."""
    return new_namespace()


@pytest.fixture
def outside(new_namespace: Callable[[], Namespace]) -> Namespace:
    """The network namespace at the other ends of its cables."""
    return new_namespace()
