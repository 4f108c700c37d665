"""List the mounts and mount points of a container that :mod:`hawse.proxy.view` creates on the host."""

from __future__ import annotations

import os
import posixpath
import stat

from hawse.link import agreed
from hawse.oci.document import devices_of, is_bind
from hawse.oci.process.notify_socket import directory_of
from hawse.plan.model import ContainerPlan

_GUESTS_OWN = ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "hugetlbfs")
#: Directories of the guest that a host has only while a driver of VFIO is loaded.
_GUEST_DIRECTORIES = frozenset({"/dev/vfio", "/dev/vfio/devices"})


def shown(plan: ContainerPlan) -> list[dict[str, object]]:
    """The mounts for :func:`hawse.proxy.view.encode`, followed by the mount points of device nodes.

    A bind of a file of the guest that this host does not have is left out: the guest knows whether the mount point is a
    file or a directory.
    """
    places = (agreed.SHARE, agreed.SOCKETS)
    shares = {f"{place}/{plan.id}/{share.name}": share for share in plan.shares for place in places}
    guest_mounts = plan.spec.get("mounts") or ()
    mounts: list[dict[str, object]] = []
    if not any(posixpath.normpath(mount["destination"]) in ("/", "/dev") for mount in guest_mounts):
        mounts.append({"destination": "/dev", "type": "tmpfs"})  # the guest's (hawse.agent.devices.bound_nodes)
    for mount in guest_mounts:
        source = mount.get("source") or ""
        share = shares.get(source)
        entry: dict[str, object]
        if share is not None and share.overlay is not None:
            entry = {"type": "overlay"}  # a second mount of it would disturb the first
        elif share is not None:
            entry = {"source": share.source, "is_dir": share.is_dir, "readonly": share.readonly}
            if owners := share.owners:
                entry |= {"uids": owners.uids, "gids": owners.gids, "map_below": owners.recursive}
        elif mount.get("type") in _GUESTS_OWN or source == directory_of(plan.id):
            entry = {"type": mount["type"] if mount.get("type") in _GUESTS_OWN else "tmpfs"}
        else:
            kind = _kind(source) if is_bind(mount) else "directory"
            if not kind:
                continue
            entry = {"type": kind}
        mounts.append({"destination": mount["destination"], **entry})
    nodes = [{"destination": device["path"], "type": "file"} for device in devices_of(plan.spec)]
    return [*mounts, *nodes]


def _kind(source: str) -> str:
    """ "directory" or "file" for a path of the guest, "" if this host does not have it."""
    path = posixpath.normpath(source)
    if path in _GUEST_DIRECTORIES or path.startswith(f"{agreed.RUN}/"):  # the agent creates those
        return "directory"
    try:
        return "directory" if stat.S_ISDIR(os.stat(path).st_mode) else "file"
    except OSError:
        return ""
