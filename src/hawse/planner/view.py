"""What :mod:`hawse.proxy.view` is to show of a container's mounts, and which mount points it is to make. Pure."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from typing import Any

from hawse.link import agreed
from hawse.oci.document import devices_of, is_bind
from hawse.oci.process.notify_socket import directory_of
from hawse.plan.model import ContainerPlan

_GUESTS_OWN = ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "hugetlbfs")


def shown(plan: ContainerPlan, *, is_dir: Callable[[str], bool] = os.path.isdir) -> list[dict[str, Any]]:
    """The mounts, as :func:`hawse.proxy.view.encode` takes them, and then the places of device nodes.

    ``is_dir`` is asked about binds of the guest's own files, which the host has too, but for directories that the agent
    makes.
    """
    places = (agreed.SHARE, agreed.SOCKETS)
    shares = {f"{place}/{plan.id}/{share.name}": share for share in plan.shares for place in places}
    wanted = plan.spec.get("mounts") or ()
    mounts: list[dict[str, Any]] = []
    if not any(posixpath.normpath(mount["destination"]) in ("/", "/dev") for mount in wanted):
        mounts.append({"destination": "/dev", "type": "tmpfs"})  # the guest's (hawse.agent.devices.bound_nodes)
    for mount in wanted:
        source = mount.get("source") or ""
        share = shares.get(source)
        found: dict[str, Any]
        if share is not None and share.overlay is not None:
            found = {"type": "overlay"}  # a second mount of it would disturb the first
        elif share is not None:
            found = {"source": share.source, "is_dir": share.is_dir, "readonly": share.readonly}
            if owners := share.owners:
                found |= {"uids": owners.uids, "gids": owners.gids, "map_below": owners.recursive}
        elif mount.get("type") in _GUESTS_OWN or source == directory_of(plan.id):
            found = {"type": mount["type"] if mount.get("type") in _GUESTS_OWN else "tmpfs"}
        else:
            made_by_agent = source.startswith(f"{agreed.RUN}/")
            found = {"type": "directory" if not is_bind(mount) or made_by_agent or is_dir(source) else "file"}
        mounts.append({"destination": mount["destination"], **found})
    nodes = [{"destination": device["path"], "type": "file"} for device in devices_of(plan.spec)]
    return [*mounts, *nodes]
