"""List the mounts and mount points of a container that :mod:`hawse.proxy.view` creates on the host. Pure."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable

from hawse.link import agreed
from hawse.oci.document import devices_of, is_bind
from hawse.oci.process.notify_socket import directory_of
from hawse.plan.model import ContainerPlan

_GUESTS_OWN = ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "hugetlbfs")


def shown(plan: ContainerPlan, *, is_dir: Callable[[str], bool] = os.path.isdir) -> list[dict[str, object]]:
    """The mounts for :func:`hawse.proxy.view.encode`, followed by the mount points of device nodes.

    ``is_dir`` decides about binds of the guest's files: these paths also exist on the host, except for directories that
    the agent creates.
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
            made_by_agent = source.startswith(f"{agreed.RUN}/")
            entry = {"type": "directory" if not is_bind(mount) or made_by_agent or is_dir(source) else "file"}
        mounts.append({"destination": mount["destination"], **entry})
    nodes = [{"destination": device["path"], "type": "file"} for device in devices_of(plan.spec)]
    return [*mounts, *nodes]
