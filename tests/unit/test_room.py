"""The VM's free capacity, for a container that joins a sandbox whose VM runs already."""

from __future__ import annotations

import msgspec
import pytest

from hawse.errors import ConfigError
from hawse.plan.capacity import Room
from tests.support.groups import EDU, NICS, plan

MIB = 1024 * 1024
MACHINE = Room(spares=[], memory_mib=1024)
WITH_PAGES = Room(spares=[], memory_mib=1024, hugepages_mib=256)
LABELLED = Room(spares=[], memory_mib=1024, label="a")


@pytest.mark.parametrize(("label", "fields"), [("a", []), ("", []), ("b", ["process.selinuxLabel: b"])])
def test_label_that_a_running_vm_lacks_is_named(label: str, fields: list[str]) -> None:
    warnings = LABELLED.warnings(label=label)
    assert [text[: len(field)] for text, field in zip(warnings, fields, strict=True)] == fields
    assert all(" [" in text and text.endswith("]") for text in warnings), "no remedy"


@pytest.mark.parametrize(
    ("room", "limit", "huge"),
    [
        (MACHINE, 0, 0),
        (MACHINE, -1, 0),
        (MACHINE, 832 * MIB, 0),
        (MACHINE, 576 * MIB, 256),
        (WITH_PAGES, 576 * MIB, 0),
        (MACHINE, 0, 5000),
        # A limit that no host could satisfy counts as no limit.
        (MACHINE, 16 * 1024 * MIB, 0),
        (MACHINE, 2**63 - 4096, 0),
    ],
)
def test_limit_that_the_vm_can_satisfy(room: Room, limit: int, huge: int) -> None:
    assert room.check_memory("memory.limit", limit, hugepages_mib=huge, host_mib=16 * 1024) == []


@pytest.mark.parametrize(
    ("room", "limit", "huge", "words"),
    [
        (MACHINE, 832 * MIB + 1, 0, "833 MiB are more than the virtual machine has for a container: 832 MiB of 1024"),
        (MACHINE, 16 * 1024 * MIB - 1, 0, "16384 MiB are more"),
        (
            MACHINE,
            512 * MIB,
            512,
            "512 MiB are more than the virtual machine has for a container besides 512 MiB of huge",
        ),
        (WITH_PAGES, 577 * MIB, 0, "577 MiB are more than the virtual machine has for a container besides 256 MiB of"),
        (
            WITH_PAGES,
            512 * MIB,
            256,
            "512 MiB are more than the virtual machine has for a container besides 512 MiB of",
        ),
        (
            MACHINE,
            MIB,
            900,
            "1 MiB are more than the virtual machine has for a container besides 900 MiB of huge pages: 0",
        ),
    ],
)
def test_limit_above_the_memory_of_the_vm_is_refused(room: Room, limit: int, huge: int, words: str) -> None:
    """With a smaller memory the container would be killed before it reaches its limit."""
    with pytest.raises(ConfigError) as caught:
        room.check_memory("memory.limit", limit, hugepages_mib=huge, host_mib=16 * 1024)
    assert caught.value.message.startswith(f"memory.limit: {words}")
    assert "kubelets from 1.23 on" in caught.value.hint
    assert ("hawse.hugepages" in caught.value.hint) is (huge > 0 or room is WITH_PAGES)
    size = int(caught.value.hint.partition("vm.memory_mib in the configuration to ")[2].partition(" ")[0])
    larger = msgspec.structs.replace(room, memory_mib=size)
    assert larger.check_memory("memory.limit", limit, hugepages_mib=huge, host_mib=size * 2) == []


def test_limit_above_the_memory_of_a_single_containers_vm_names_the_option_first() -> None:
    """Outside a pod neither an engine nor an annotation determines the size of the VM."""
    with pytest.raises(ConfigError) as caught:
        MACHINE.check_memory("update: memory.limit", 1024 * MIB, host_mib=16 * 1024, pod=False)
    assert caught.value.message.startswith("update: memory.limit: 1024 MiB are more than the virtual machine has")
    assert caught.value.hint == (
        "set vm.memory_mib in the configuration to 2048 or more, and create the container again: the memory of a "
        "running virtual machine cannot grow"
    )


def test_limit_is_only_a_warning_on_a_host_without_more_memory() -> None:
    [text] = MACHINE.check_memory("memory.limit", 900 * MIB, host_mib=2047)
    assert text.startswith("memory.limit: 900 MiB are more")
    assert text.endswith("[lower the limit: this host does not have more memory for the VM]")


def test_group_in_the_vm_is_shared_in_its_present_mode() -> None:
    room = Room(spares=[], plugs=plan(EDU, NICS).container.plugs, native=[7])
    assert [(plug.device, plug.shared) for plug in room.shared([5, 9], native=False)] == [("vfio-5-0", True)]
    assert [plug.device for plug in room.shared([7], native=True)] == ["vfio-7-1", "vfio-7-0"]
    with pytest.raises(
        ConfigError, match="group 7 is used by a driver of the guest kernel in another container of the pod"
    ):
        room.shared([5, 7], native=False)
    with pytest.raises(ConfigError, match="group 5 is a VFIO device in another container of the pod"):
        room.shared([5], native=True)


def test_capacity_is_sent_as_json() -> None:
    planned = plan(EDU)
    room = Room(spares=planned.ports, plugs=planned.container.plugs, native=[5], memory_mib=512, label="a")
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(room)), Room) == room
