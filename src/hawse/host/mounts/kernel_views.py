"""File systems that show the host's kernel or devices. They are never shared with a guest."""

from __future__ import annotations

import os

from hawse.linux import mounts

#: File systems that expose or control a kernel (Linux include/uapi/linux/magic.h).
KERNEL_VIEWS = {
    0x9FA0: "proc", 0x62656572: "sysfs", 0x27E0EB: "cgroup", 0x63677270: "cgroup2", 0x64626720: "debugfs",
    0x74726163: "tracefs", 0x73636673: "securityfs", 0x62656570: "configfs", 0xCAFE4A11: "bpf", 0xDE5E81E4: "efivarfs",
    0x6165676C: "pstore", 0xF97CFF8C: "selinuxfs", 0x1CD1: "devpts", 0x42494E4D: "binfmt_misc",
}  # fmt: skip


def kernel_view(tree: int) -> str:
    """The type of a file system that shows the host's kernel or devices, "" for other types.

    The type number of devtmpfs is that of tmpfs, so /dev is recognized by its device number.
    """
    kind = KERNEL_VIEWS.get(mounts.file_system(tree), "")
    devices = os.stat("/dev").st_dev
    if not kind and os.fstat(tree).st_dev == devices != os.stat("/").st_dev:
        return "devtmpfs"
    return kind
