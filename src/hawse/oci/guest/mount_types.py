"""Types of mounts other than binds that a guest cannot support, or that have other contents in a guest. Pure.

All other types are left to the guest kernel. It has the modules of most file systems, and the agent reports a missing
one (:mod:`hawse.agent.container.mount_errors`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hawse.errors import ConfigError

#: Types that show the state of a kernel, its firmware or its processors.
KERNEL = (
    "binfmt_misc", "configfs", "cpuset", "debugfs", "devtmpfs", "efivarfs", "fusectl", "nfsd", "pstore", "resctrl",
    "securityfs", "selinuxfs", "smackfs", "tracefs", "xenfs",
)  # fmt: skip
#: Types that are on a block device, which the source names.
DISKS = (
    "adfs", "affs", "bcachefs", "befs", "bfs", "btrfs", "cramfs", "efs", "erofs", "exfat", "ext2", "ext3", "ext4",
    "f2fs", "gfs2", "hfs", "hfsplus", "hpfs", "iso9660", "jffs2", "jfs", "minix", "msdos", "nilfs2", "ntfs", "ntfs3",
    "ocfs2", "omfs", "qnx4", "qnx6", "reiserfs", "romfs", "squashfs", "sysv", "ubifs", "udf", "ufs", "vfat", "vxfs",
    "xfs", "zonefs",
)  # fmt: skip
#: Types that the hypervisor provides: a share under such a name in the guest belongs to the sandbox itself.
HYPERVISOR = ("9p", "hgfs", "vboxsf", "virtiofs", "vmhgfs")
_NETWORK_9P = ("trans=tcp", "trans=rdma", "trans=unix", "trans=fd")


def check_type(where: str, mount: Mapping[str, Any], *, is_disk: bool) -> list[str]:
    """Check the type of a mount. Returns warnings. ``where`` names the mount in errors.

    ``is_disk``: the source is a block device of this host. Raises :class:`ConfigError` for a mount that cannot be made.
    """
    kind, source = str(mount.get("type") or ""), str(mount.get("source") or "")
    if kind in HYPERVISOR and not (kind == "9p" and set(_NETWORK_9P) & set(_options(mount))):
        raise ConfigError(
            f"{where}.type: {kind}: in a virtual machine this is a share of the hypervisor, and hawse uses it itself",
            hint="bind a directory of the host",
        )
    if kind in DISKS or is_disk:
        raise ConfigError(
            f"{where}.type: {kind[:80]}: the disk {source[:200]!r} of the host does not exist in the guest",
            hint="mount it on the host, and bind its directory",
        )
    if kind in KERNEL:
        return [f"{where}.type: {kind} shows the guest kernel, not the host's [remove it if you need the host's]"]
    return []


def _options(mount: Mapping[str, Any]) -> list[str]:
    return [part for option in mount.get("options") or () for part in str(option).split(",")]
