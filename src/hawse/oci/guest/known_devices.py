"""Character devices with the same meaning in every Linux kernel: a container gets those of the guest. Pure.

The numbers are static (Linux Documentation/admin-guide/devices.txt; include/linux/miscdevice.h). These devices
have no hardware behind them and give no access to the host: they create or read objects of the kernel that the
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
#: Misc devices of the same kind whose minor number each kernel assigns dynamically: the guest's is found by its name.
NAMED = ("userfaultfd", "ntsync")
#: Devices that every runtime creates in every container. Only a list of the host's whole /dev contains them.
DEFAULTS = ((1, 3), (1, 5), (1, 7), (5, 0))


def is_known(major: int, minor: int | None) -> bool:
    """Whether the device is the guest's. With ``minor`` None, a wildcard, whether at least one of these devices is."""
    if minor is None or minor < 0:
        return any(major == known for known, _ in KNOWN) or major == 136
    return (major, minor) in KNOWN
