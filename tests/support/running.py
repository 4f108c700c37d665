"""A runtime, or a running container, for several tests; afterwards nothing of it may be left on the host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.host import prove_unchanged, snapshot
from tests.support.runtime import Runtime


@contextmanager
def private_runtime(directory: str, *, configuration: str = "") -> Iterator[Runtime]:
    """hawse with a private root in ``directory``. At the end nothing of any container may be left on the host."""
    before = snapshot()
    runtime = Runtime(directory)
    runtime.configure(configuration)
    yield runtime
    prove_unchanged(before)
    assert not os.path.isdir(runtime.root) or os.listdir(runtime.root) == []


@contextmanager
def running_container(directory: str, bundle: str, name: str, *, configuration: str = "") -> Iterator[Runtime]:
    """Create and start a container of this bundle in a :func:`private_runtime`; it is deleted at the end."""
    with private_runtime(directory, configuration=configuration) as runtime:
        runtime.run_detached(bundle, name)
        yield runtime
        assert runtime("delete", "--force", name).code == 0
