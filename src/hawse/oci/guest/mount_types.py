"""Types of mounts that are no binds: which of them a guest cannot have, or has with another content than a host. Pure.

Every other type is left to the guest's kernel, which has the modules of most file systems and says which it has not
(:mod:`hawse.agent.container.mount_errors`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hawse.errors import ConfigError

#: They show a kernel, its firmware or its processors.
KERNEL = (
    "binfmt_misc", "configfs", "cpuset", "debugfs", "devtmpfs", "efivarfs", "fusectl", "nfsd", "pstore", "resctrl",
    "securityfs", "selinuxfs", "smackfs", "tracefs", "xenfs",
)  # fmt: skip
#: They are on a block device, which the source names.
DISKS = (
    "adfs", "affs", "bcachefs", "befs", "bfs", "btrfs", "cramfs", "efs", "erofs", "exfat", "ext2", "ext3", "ext4",
    "f2fs", "gfs2", "hfs", "hfsplus", "hpfs", "iso9660", "jffs2", "jfs", "minix", "msdos", "nilfs2", "ntfs", "ntfs3",
    "ocfs2", "omfs", "qnx4", "qnx6", "reiserfs", "romfs", "squashfs", "sysv", "ubifs", "udf", "ufs", "vfat", "vxfs",
    "xfs", "zonefs",
)  # fmt: skip
#: They come from the hypervisor: what there is under such a name is the sandbox's own.
HYPERVISOR = ("9p", "hgfs", "vboxsf", "virtiofs", "vmhgfs")
_NETWORK_9P = ("trans=tcp", "trans=rdma", "trans=unix", "trans=fd")


def check_type(where: str, mount: Mapping[str, Any], *, is_disk: bool) -> list[str]:
    """What to warn of. Raises :class:`ConfigError` for a mount that cannot be what it asks for. ``where`` names it.

    ``is_disk``: on this host its source is a block device.
    """
    kind, source = str(mount.get("type") or ""), str(mount.get("source") or "")
    if kind in HYPERVISOR and not (kind == "9p" and set(_NETWORK_9P) & set(_options(mount))):
        raise ConfigError(
            f"{where}.type: {kind}: in a virtual machine it is what the hypervisor shares, and that is hawse's own",
            hint="bind a directory of the host",
        )
    if kind in DISKS or is_disk:
        raise ConfigError(
            f"{where}.type: {kind[:80]}: the disk {source[:200]!r} is the host's, and the guest has no such disk",
            hint="mount it on the host, and bind its directory",
        )
    if kind in KERNEL:
        return [f"{where}.type: {kind} shows the guest's kernel, not the host's [remove it if the host's is needed]"]
    return []


def _options(mount: Mapping[str, Any]) -> list[str]:
    return [part for option in mount.get("options") or () for part in str(option).split(",")]
