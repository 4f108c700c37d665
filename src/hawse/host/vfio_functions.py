"""Functions that are given to VFIO for as long as a sandbox lives, and to their drivers after it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hawse.state.steps import DEVICES, Steps
from hawse.state.store import Store


@contextmanager
def bound(addresses: Sequence[str], store: Store, steps: Steps) -> Iterator[None]:
    """Bind before the block; give back after it what was bound for the sandbox, then and by attachments since.

    Raises what :func:`hawse.vfio.bind.bind.bind` and give_back raise.
    """
    if addresses:
        with steps.span(DEVICES, "bound"):
            take(addresses, store)
    try:
        yield
    finally:
        with steps.span(DEVICES, "given back"):
            give_back(store)


def take(addresses: Sequence[str], store: Store) -> list[str]:
    """Bind functions, and the rest of their groups, for a container; those that were changed. Raises HawseError.

    The record of what the functions were is on disk before they change: when this process is killed, whoever deletes
    the container gives them back.
    """
    from hawse.vfio.bind import bind as binding
    from hawse.vfio.bind import records as bindings

    records = binding.bind(
        addresses,
        directory=bindings.directory_of(store.root),
        owner=store.name,
        with_group=True,
        owner_lives=lambda owner: os.path.isdir(f"{store.root}/{owner}"),
    )
    return [record.address for record in records]


def give_back(store: Store, addresses: Sequence[str] | None = None) -> None:
    """Give functions that were bound for a container to their drivers: these, else all that are on record for it.

    Raises :class:`HawseError` for those that cannot be given back; they stay on record.
    """
    directory = f"{store.root.rstrip('/')}.bindings"
    if not os.path.isdir(directory):
        return
    # Here, since it takes libraries that a delete does without.
    from hawse.vfio.bind import bind as binding
    from hawse.vfio.bind import records as bindings

    records = bindings.of_owner(directory, store.name)
    chosen = [record for record in records if addresses is None or record.address in addresses]
    if chosen:
        binding.give_back(chosen, directory=directory)
