"""Answers of the agent, with the bounds of their fields. The guest is hostile: other fields are ignored."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

#: A device number. The kernel has 12 bits of major and 20 of minor (Linux include/linux/kdev_t.h).
Number = Annotated[int, Meta(ge=0, lt=2**20)]
#: Bytes of a BAR (PCI Local Bus 3.0, section 6.2.5.1).
Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Nanoseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]
#: The name of a driver or an interface, as it is printed.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:!-]{1,64}\Z")]
#: The path of a node below /dev, without the part "..".
NodeName = Annotated[str, Meta(pattern=r"^(?!(.*/)?\.\.(/|\Z))[A-Za-z0-9_.:-]{1,64}(/[A-Za-z0-9_.:-]{1,64}){0,3}\Z")]


class Clock(Struct, frozen=True):
    """The guest's CLOCK_MONOTONIC."""

    monotonic_ns: Nanoseconds


class TracedStep(Struct, frozen=True):
    """One step of the agent, in nanoseconds of the guest's CLOCK_MONOTONIC."""

    name: str
    began_ns: Nanoseconds
    ended_ns: Nanoseconds


class DeviceNumbers(Struct, frozen=True):
    """The numbers of a node."""

    major: Number
    minor: Number


class DeviceFile(Struct, frozen=True):
    """A function's device file, ``/dev/vfio/devices/vfio<number>``."""

    number: Number
    major: Number
    minor: Number


class BoundFunction(Struct, frozen=True):
    """A function bound to vfio-pci: its group, the numbers of the group's node, and the sizes of its six BARs.

    The size is 0 for a BAR that the guest could not place in a bridge window. ``file`` and ``iommu``, the numbers of
    /dev/iommu, are null on a kernel without device files.
    """

    group: Number
    major: Number
    minor: Number
    bars: Annotated[list[Bytes], Meta(max_length=6)]
    file: DeviceFile | None = None
    iommu: DeviceNumbers | None = None


class NativeNode(Struct, frozen=True):
    """A node that a driver of the guest created: its path below /dev, "b" or "c", and its numbers."""

    name: NodeName
    kind: Literal["b", "c"]
    major: Number
    minor: Number


class NativeFunction(Struct, frozen=True):
    """A function bound to a driver of the guest kernel: the driver, its network interfaces and its nodes."""

    driver: Name
    interfaces: Annotated[list[Name], Meta(max_length=256)]
    nodes: Annotated[list[NativeNode], Meta(max_length=256)]


class GuestProcess(Struct, frozen=True):
    """A process of a container. ``age`` and ``used`` are seconds since its start and of CPU time."""

    uid: int
    pid: int
    parent: int
    age: int
    terminal: str
    used: int
    command: str
