"""Character devices that mean the same in every Linux kernel: a container gets the guest's own. Pure.

The numbers are static (Linux Documentation/admin-guide/devices.txt; include/linux/miscdevice.h). Such a device has no
hardware behind it, and nothing of the host can be reached by it: it makes or reads what belongs to the kernel that the
container runs on.
"""

from __future__ import annotations

KNOWN: dict[tuple[int, int], str] = {
    (1, 3): "null",
    (1, 5): "zero",
    (1, 7): "full",
    (1, 8): "random",
    (1, 9): "urandom",
    (1, 11): "kmsg",
    (5, 0): "tty",
    (5, 1): "console",
    (5, 2): "ptmx",
    (10, 183): "hwrng",
    (10, 200): "net/tun",
    (10, 203): "cuse",
    (10, 223): "uinput",
    (10, 229): "fuse",
    (10, 234): "btrfs-control",
    (10, 235): "autofs",
    (10, 236): "mapper/control",
    (10, 237): "loop-control",
    (10, 238): "vhost-net",
    (10, 239): "uhid",
    (10, 241): "vhost-vsock",
    (108, 0): "ppp",
}
#: Misc devices of the same kind whose minor number each kernel chooses for itself: the guest's is found by the name.
NAMED = ("userfaultfd", "ntsync")
#: Those that every container of every runtime has: only a list of the host's whole /dev names them.
DEFAULTS = ((1, 3), (1, 5), (1, 7), (5, 0))


def is_known(major: int, minor: int | None) -> bool:
    """Whether the device is the guest's own; of a rule with any minor number (None), whether one of its devices is."""
    if minor is None or minor < 0:
        return any(major == known for known, _ in KNOWN) or major == 136
    return (major, minor) in KNOWN
