"""Functions that are given to VFIO for as long as a sandbox lives, and to their drivers after it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hawse.sandbox.state import Store
from hawse.sandbox.steps import DEVICES, Steps


@contextmanager
def bound(addresses: Sequence[str], store: Store, steps: Steps) -> Iterator[None]:
    """Bind before the block, give back after it. Raises what :func:`hawse.vfio.binding.bind` and give_back raise.

    The record of what the functions were is on disk before they change: when this process is killed, whoever deletes
    the sandbox gives them back.
    """
    if not addresses:
        yield
        return
    from hawse.vfio import binding, bindings

    directory = bindings.directory_of(store.root)
    with steps.span(DEVICES, "bound"):
        binding.bind(
            addresses,
            directory=directory,
            owner=store.name,
            with_group=True,
            owner_lives=lambda owner: os.path.isdir(f"{store.root}/{owner}"),
        )
    try:
        yield
    finally:
        with steps.span(DEVICES, "given back"):
            binding.give_back(bindings.of_owner(directory, store.name), directory=directory)
