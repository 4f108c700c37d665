"""Where the VFIO nodes of a container are in the guest, and at which paths in the container."""

from __future__ import annotations

import pytest

from hawse.errors import DeviceError
from hawse.monitor.agent.answers import BoundFunction, DeviceFile, DeviceNumbers
from hawse.monitor.devices.guest_nodes import container_paths, function_nodes, locate
from hawse.plan.model import PlugStep
from hawse.vfio.node import VfioNode, container_node, file_node

IOMMU = file_node(None, path="/dev/iommu", major=10, minor=126)
PATHS = list[tuple[str, tuple[int, int] | None]]


def plug(group: int, function: int = 0) -> PlugStep:
    return PlugStep(
        group=group, label=f"function {function}", host="", note="", commands=[], device=f"vfio-{group}-{function}",
        bus="port0", guest_address="0000:02:00.0",
    )  # fmt: skip


def bound(group: int, minor: int = 0, *, file: int | None = None) -> BoundFunction:
    """A function that the guest has bound, with the device file vfio<file>."""
    if file is None:
        return BoundFunction(group=group, major=511, minor=minor, bars=[])
    numbers = DeviceFile(file, 244, file)
    return BoundFunction(group=group, major=511, minor=minor, bars=[], file=numbers, iommu=DeviceNumbers(10, 120))


def node(path: str, group: int | None, device: str = "") -> VfioNode:
    return VfioNode(path=path, major=240, minor=0, host_group=group, is_file=bool(device), device=device)


def paths(plug: PlugStep, nodes: list[VfioNode]) -> PATHS:
    """The paths in the container of a function's nodes, with their numbers."""
    return [(path, n.guest_numbers) for n in function_nodes(plug, nodes) for path in container_paths(n, nodes)]


def test_path_of_another_function_in_the_guest_is_not_used() -> None:
    requested = [node("/dev/vfio/5", 5), node("/dev/vfio/7", 7), node("/dev/vfio/mine", 5)]
    nodes = locate(requested, [plug(5), plug(7)], [bound(7), bound(5, 1)])
    assert paths(plug(5), nodes) == [
        ("/dev/vfio/7", (511, 0)), ("/dev/vfio/7", (511, 0)), ("/dev/vfio/mine", (511, 0)),
    ]  # fmt: skip
    assert paths(plug(7), nodes) == [("/dev/vfio/5", (511, 1))]


def test_device_file_is_at_its_path_in_the_guest_and_at_the_requested_one() -> None:
    requested = [
        node("/dev/vfio/5", 5), node("/dev/vfio/devices/vfio1", 5, "vfio-5-0"),
        node("/dev/vfio/devices/vfio9", 5, "vfio-5-0"), node("/dev/vfio/devices/vfio8", 7, "vfio-7-0"),
    ]  # fmt: skip
    nodes = locate(requested, [plug(5), plug(7)], [bound(3, file=0), bound(4, 1, file=1)])
    assert paths(plug(5), nodes) == [
        ("/dev/vfio/3", (511, 0)), ("/dev/vfio/5", (511, 0)), ("/dev/vfio/devices/vfio0", (244, 0)),
        ("/dev/vfio/devices/vfio0", (244, 0)), ("/dev/vfio/devices/vfio9", (244, 0)),
    ], "in the guest, vfio1 belongs to another function"  # fmt: skip


def test_device_file_is_not_at_the_path_of_a_group_of_the_guest() -> None:
    requested = [node("/dev/vfio/x", 5), node("/dev/vfio/7", 5, "vfio-5-0")]
    nodes = locate(requested, [plug(5)], [bound(7, file=0)])
    assert paths(plug(5), nodes) == [
        ("/dev/vfio/7", (511, 0)), ("/dev/vfio/x", (511, 0)), ("/dev/vfio/devices/vfio0", (244, 0)),
    ]  # fmt: skip


def test_node_without_a_device_file_in_the_guest_is_at_no_path() -> None:
    nodes = locate(
        [node("/dev/vfio/5", 5), IOMMU, node("/dev/vfio/devices/vfio0", 5, "vfio-5-0")], [plug(5)], [bound(3)]
    )
    assert paths(plug(5), nodes) == [("/dev/vfio/3", (511, 0)), ("/dev/vfio/5", (511, 0))]
    assert container_paths(nodes[1], nodes) == []


def test_container_node_is_at_its_path_only() -> None:
    [located] = locate([container_node()], [], [])
    assert (located.guest_numbers, container_paths(located, [located])) == ((10, 196), ["/dev/vfio/vfio"])


@pytest.mark.parametrize(
    ("files", "iommu", "own"),
    [
        ((None, 0), (None, "/dev/iommu", (10, 120)), (4, "/dev/vfio/devices/vfio0", (244, 0))),
        # The guest kernel has no device files.
        ((None, None), (None, "/dev/iommu", None), (4, "/dev/vfio/devices/vfio9", None)),
    ],
)
def test_every_node_gets_its_path_in_the_guest(
    files: tuple[int | None, int | None], iommu: tuple[object, ...], own: tuple[object, ...]
) -> None:
    """The path and the numbers of the specification are kept; a device file belongs to the group of its function."""
    requested = [container_node(), node("/dev/x", 5), IOMMU, node("/dev/vfio/devices/vfio9", 7, "vfio-7-0")]
    answers = [bound(3, file=files[0]), bound(4, 1, file=files[1])]
    nodes = locate(requested, [plug(5), plug(7)], answers)
    assert [(n.path, n.host_numbers) for n in nodes] == [(n.path, n.host_numbers) for n in requested]
    assert [(n.guest_group, n.guest_path, n.guest_numbers) for n in nodes] == [
        (None, "", (10, 196)), (3, "/dev/vfio/3", (511, 0)), iommu, own,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("plugs", "answers", "message"),
    [
        (
            [plug(7), plug(7, 1)],
            [bound(3), bound(4)],
            "function 1: is in the guest's group 4, but others of host group 7",
        ),
        ([plug(7), plug(7, 1)], [bound(3), bound(3, 1)], "function 1: is in the guest's group 3, but others of host"),
        (
            [plug(7), plug(8)],
            [bound(3), bound(3)],
            "function 0 of host group 8: in the guest's group 3, as is host group 7",
        ),
    ],
)
def test_groups_that_the_guest_split_or_merged_are_refused(
    plugs: list[PlugStep], answers: list[BoundFunction], message: str
) -> None:
    with pytest.raises(DeviceError, match=f"^{message}"):
        locate([], plugs, answers)
