"""Bind PCI functions to VFIO while a sandbox runs, and restore their drivers afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hawse.state.steps import DEVICES, Steps
from hawse.state.store import Store


@contextmanager
def functions_bound(addresses: Sequence[str], store: Store, steps: Steps) -> Iterator[None]:
    """Bind functions for the block. After it, restore all functions that were bound for the sandbox, also by
    attachments.

    Raises what :func:`hawse.vfio.bind.bind.bind` and restore_drivers raise.
    """
    if addresses:
        with steps.span(DEVICES, "bound"):
            bind_functions(addresses, store)
    try:
        yield
    finally:
        with steps.span(DEVICES, "restored"):
            restore_drivers(store)


def bind_functions(addresses: Sequence[str], store: Store) -> list[str]:
    """Bind functions, and the rest of their groups, for a container. Returns those that were changed.

    The previous state of the functions is written to disk before they change, so that `delete` can restore it if this
    process is killed. Raises HawseError.
    """
    from hawse.vfio.bind import bind as binding
    from hawse.vfio.bind import records as binding_records

    records = binding.bind(
        addresses,
        directory=binding_records.directory_of(store.root),
        owner=store.name,
        with_group=True,
        owner_lives=lambda owner: os.path.isdir(f"{store.root}/{owner}"),
    )
    return [record.address for record in records]


def restore_drivers(store: Store, addresses: Sequence[str] | None = None) -> None:
    """Restore the drivers of functions that were bound for a container: of ``addresses``, or of all if that is None.

    Raises :class:`HawseError` for functions that cannot be restored; they stay recorded.
    """
    # As records.directory_of(), whose module loads msgspec.
    directory = f"{store.root.rstrip('/')}.bindings"
    if not os.path.isdir(directory):
        return
    # Imported here, since it loads libraries that most deletes do not need.
    from hawse.vfio.bind import bind as binding
    from hawse.vfio.bind import records as binding_records

    records = binding_records.of_owner(directory, store.name)
    chosen = [record for record in records if addresses is None or record.address in addresses]
    if chosen:
        binding.restore_drivers(chosen, directory=directory)
