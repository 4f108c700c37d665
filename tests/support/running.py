"""A container that runs for all tests of a module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.host import prove_unchanged, snapshot
from tests.support.runtime import Runtime


@contextmanager
def running_container(directory: str, bundle: str, name: str, *, configuration: str = "") -> Iterator[Runtime]:
    """Create and start a container of this bundle, in a runtime whose files are in ``directory``.

    At the end it is deleted, and nothing of any container of this runtime may be left on the host.
    """
    before = snapshot()
    runtime = Runtime(directory)
    runtime.configure(configuration)
    runtime.run_detached(bundle, name)
    yield runtime
    assert runtime("delete", "--force", name).code == 0
    prove_unchanged(before)
    assert os.listdir(runtime.root) == []
