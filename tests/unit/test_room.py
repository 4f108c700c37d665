"""What a container that joins a sandbox is told of its machine, which runs already."""

from __future__ import annotations

import msgspec
import pytest

from hawse.errors import ConfigError
from hawse.sandbox.room import Room
from tests.support.groups import EDU, NICS, plan

MIB = 1024 * 1024
MACHINE = Room(spares=[], memory_mib=1024)
LABELLED = Room(spares=[], memory_mib=1024, label="a")


@pytest.mark.parametrize(
    ("room", "memory", "label", "fields"),
    [
        (MACHINE, 0, "", []),
        (MACHINE, -1, "", []),
        (MACHINE, 1024 * MIB, "", []),
        (MACHINE, 1025 * MIB, "", ["linux.resources.memory.limit: 1025 MiB"]),
        (MACHINE, 16 * 1024 * MIB - 1, "", ["linux.resources.memory.limit: 16383 MiB"]),
        (MACHINE, 16 * 1024 * MIB, "", []),
        (MACHINE, 2**63 - 4096, "", []),
        (LABELLED, 0, "a", []),
        (LABELLED, 0, "", []),
        (LABELLED, 0, "b", ["process.selinuxLabel: b"]),
        (LABELLED, 4096 * MIB, "b", ["linux.resources.memory.limit: 4096", "process.selinuxLabel: b"]),
    ],
)
def test_what_a_machine_cannot_follow_any_more_is_named(room: Room, memory: int, label: str, fields: list[str]) -> None:
    found = room.warnings(memory=memory, label=label, host_mib=16 * 1024)
    assert [text[: len(field)] for text, field in zip(found, fields, strict=True)] == fields
    assert all(" [" in text and text.endswith("]") for text in found), "no remedy"


def test_a_group_that_is_there_is_shared_in_the_mode_that_it_is_in() -> None:
    room = Room(spares=[], plugs=plan(EDU, NICS).plugs, native=[7])
    assert [(plug.device, plug.shared) for plug in room.shared([5, 9], native=False)] == [("vfio-5-0", True)]
    assert [plug.device for plug in room.shared([7], native=True)] == ["vfio-7-1", "vfio-7-0"]
    with pytest.raises(ConfigError, match="group 7 is left to the guest's own driver in another container of the pod"):
        room.shared([5, 7], native=False)
    with pytest.raises(ConfigError, match="group 5 is a VFIO device in another container of the pod"):
        room.shared([5], native=True)


def test_it_is_told_by_the_monitor_as_json() -> None:
    made = plan(EDU)
    room = Room(spares=made.ports, plugs=made.plugs, native=[5], memory_mib=512, label="a")
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(room)), Room) == room
