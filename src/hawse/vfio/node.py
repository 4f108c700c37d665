"""A VFIO node of a container: its path and numbers in the specification, on the host and in the guest."""

from __future__ import annotations

import msgspec

CONTAINER_PATH = "/dev/vfio/vfio"
IOMMU_PATH = "/dev/iommu"
#: The numbers of CONTAINER_PATH on every kernel (Linux include/linux/miscdevice.h, MISC_MAJOR and VFIO_MINOR).
CONTAINER_NUMBERS = (10, 196)


class VfioNode(msgspec.Struct, frozen=True, kw_only=True):
    """A VFIO node: of a group, of a function's device file, or one of the two that do not belong to a group.

    ``path`` is the node's path in the container; ``major`` and ``minor`` are the specification's numbers, which are the
    host's. ``host_group`` is None for /dev/vfio/vfio and /dev/iommu. ``is_file``: the node belongs to the device file
    interface: /dev/iommu, or the device file of ``function``, the function's address on the host ("" for an emulated
    function). ``device`` is QEMU's id of that function.

    The other fields are set when the guest has bound the group: the group's number in the guest, and the node's path
    and numbers in the guest. The numbers remain None if the guest kernel does not support device files.
    """

    path: str
    major: int
    minor: int
    host_group: int | None
    is_file: bool = False
    function: str = ""
    device: str = ""
    guest_group: int | None = None
    guest_path: str = ""
    guest_numbers: tuple[int, int] | None = None

    @property
    def host_numbers(self) -> tuple[int, int]:
        """Major and minor on the host."""
        return self.major, self.minor


def container_node() -> VfioNode:
    """The node by which a program opens a VFIO container (Linux Documentation/driver-api/vfio.rst)."""
    major, minor = CONTAINER_NUMBERS
    return VfioNode(path=CONTAINER_PATH, major=major, minor=minor, host_group=None)


def group_node(group: int, *, path: str = "", major: int = 0, minor: int | None = None) -> VfioNode:
    """The node of a group. Without ``minor``, the numbers belong to no device: an unbound group has no node yet."""
    return VfioNode(
        path=path or f"/dev/vfio/{group}", major=major, minor=group if minor is None else minor, host_group=group
    )


def file_node(group: int | None, *, path: str, major: int, minor: int, function: str = "") -> VfioNode:
    """The node of /dev/iommu if ``group`` is None, else that of a function's device file."""
    return VfioNode(path=path, major=major, minor=minor, host_group=group, is_file=True, function=function)
