"""Functions that hawse has bound for a sandbox: their owners on record, and which of them are restored."""

from __future__ import annotations

from pathlib import Path

import pytest

from hawse.errors import DeviceError
from hawse.host.vfio_functions import bind_functions, functions_bound, restore_drivers
from hawse.state.steps import DEVICES, Steps
from hawse.state.store import Store
from hawse.vfio.bind import records

#: Functions of a PCI segment that no host has, so that only their records can be restored.
FIRST, SECOND, OTHERS = "fffe:01:00.0", "fffe:02:00.0", "fffe:03:00.0"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A sandbox with two functions on record, and a function of another sandbox."""
    store = Store(str(tmp_path / "root"), "c1")
    store.make()
    for address, owner in ((FIRST, "c1"), (SECOND, "c1"), (OTHERS, "c2")):
        records.write(records.directory_of(store.root), records.Record(address, "e1000e", "", "vfio-pci", owner))
    return store


def on_record(store: Store) -> list[str]:
    return [record.address for record in records.read_all(records.directory_of(store.root))[0]]


@pytest.mark.parametrize(
    ("addresses", "left"),
    [
        (None, [OTHERS]),
        ([SECOND], [FIRST, OTHERS]),
        ([FIRST, SECOND, OTHERS], [OTHERS]),
        ([OTHERS], [FIRST, SECOND, OTHERS]),
        ([], [FIRST, SECOND, OTHERS]),
    ],
)
def test_functions_of_the_sandbox_are_restored(store: Store, addresses: list[str] | None, left: list[str]) -> None:
    restore_drivers(store, addresses)
    assert on_record(store) == left


def test_sandbox_without_records_restores_nothing(tmp_path: Path) -> None:
    restore_drivers(Store(str(tmp_path), "c1"))


@pytest.mark.parametrize("ends", ["in order", "with an error"])
def test_functions_bound_later_are_restored_at_every_kind_of_end(store: Store, ends: str) -> None:
    steps = Steps("/dev/null", [])
    try:
        with functions_bound([], store, steps):
            assert on_record(store) == [FIRST, SECOND, OTHERS]
            if ends != "in order":
                raise KeyError
    except KeyError:
        pass
    assert on_record(store) == [OTHERS]
    assert [(lane, name) for lane, name, _, _ in steps.done] == [(DEVICES, "restored")], "nothing was bound first"


def test_missing_function_cannot_be_bound(store: Store) -> None:
    steps = Steps("/dev/null", [])
    with pytest.raises(DeviceError, match=r"fffe:09:00\.0"), functions_bound(["fffe:09:00.0"], store, steps):
        pass
    assert [name for _, name, _, _ in steps.done] == ["bound"]
    with pytest.raises(DeviceError, match=r"fffe:09:00\.0"):
        bind_functions(["fffe:09:00.0"], store)
