"""Convert a bundle to the guest's specification and the shares for it, in a pipeline of pure steps.

Each step returns a copy in which one part is converted for the guest: version and root, hooks, namespaces, mounts,
limits, names and sysctls. Questions about the host's files go through :class:`hawse.oci.guest.mounts.HostFiles`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hawse.json_text import Document
from hawse.link import agreed
from hawse.notes import Note, debug, warning
from hawse.oci import device_rules
from hawse.oci.document import devices_of, linux_of, process_of, with_devices, with_linux, with_process
from hawse.oci.fields import POLICY, review
from hawse.oci.guest import hugetlbfs
from hawse.oci.guest.mounts import BoundNode, GuestMounts, HostFiles, MountPlanner
from hawse.oci.guest.namespaces import Namespaces, plan_namespaces, user_maps_of, with_names, with_namespaces
from hawse.oci.guest.share import ROOTFS, Share
from hawse.oci.hooks import Hooks, split
from hawse.oci.load import Bundle
from hawse.oci.pods import SINGLE
from hawse.oci.process.notify_socket import in_mounts
from hawse.oci.types import Linux

#: crun 1.8.1, the version of Debian 12, accepts only versions that contain "1.0" (src/libcrun/container.c).
GUEST_VERSION = "1.0.2"
_HOST = HostFiles()


@dataclass(frozen=True)
class GuestPlan:
    """The guest's specification, and what is shared with the guest.

    The device nodes of ``mounts.bound`` are the last entries of ``linux.devices`` in ``spec``, in the same order.
    ``rootfs`` is the share of the root file system. ``hugepages`` are limits: counts of pages by page size in KiB.
    ``hooks`` run on the host. ``sysctls`` are settings of the guest's network. ``label`` is the SELinux label of the
    VM's programs on the host.
    """

    spec: Document
    namespaces: Namespaces
    mounts: GuestMounts
    rootfs: Share
    hugepages: dict[int, int]
    hooks: Hooks
    sysctls: dict[str, str]
    label: str
    notes: tuple[Note, ...]

    @property
    def shares(self) -> tuple[Share, ...]:
        """The root file system and the shares of mounts."""
        return (self.rootfs, *self.mounts.shares)


def plan_guest(
    bundle: Bundle, *, container: str, role: str = SINGLE, forwarded: Sequence[str] = (), files: HostFiles = _HOST
) -> GuestPlan:
    """Plan the guest's specification. Raises :class:`ConfigError` naming a field that a guest cannot support.

    Fields that do not apply to the guest's separate kernel are removed: the network namespace (the container uses that
    of the guest), labels of security modules (the guest loads no policy), and the host's cgroup path. Paths of
    namespaces have a meaning only within a pod. ``forwarded`` are the patterns of the host's sockets to which
    connections are forwarded.
    """
    name = f"{bundle.path}/config.json"
    linux = bundle.spec.linux or Linux()
    reviewed, ignored = review(name, bundle.raw)
    namespaces = plan_namespaces(name, linux, role)
    host_hooks, guest_hooks = split(name, bundle.spec.hooks.by_kind() if bundle.spec.hooks else {})
    spec = with_linux(with_process(reviewed, selinuxLabel=None), cgroupsPath=f"/hawse/{container}")
    spec = _with_root(spec, container, guest_hooks)
    maps = user_maps_of(name, bundle.raw, namespaces, files.user_maps)
    planner = MountPlanner(bundle.path, container, maps, forwarded, _notified(bundle), files)
    mounts = planner.plan_all(spec.get("mounts") or ())
    spec = with_namespaces(spec, namespaces, maps) | {"mounts": mounts.entries}
    spec = _with_limits(name, spec, linux, mounts.bound)
    spec = with_names(name, spec, namespaces, files.host_name or os.uname().nodename)
    spec, sysctls = _without_network_sysctls(spec)
    limits = (linux.resources.hugepage_limits if linux.resources else None) or ()
    labelled = [debug(f"linux.mountLabel is ignored: {POLICY}")] if linux.mount_label else []
    return GuestPlan(
        spec=spec,
        namespaces=namespaces,
        mounts=mounts,
        rootfs=Share(
            name=ROOTFS,
            source=bundle.rootfs,
            is_dir=True,
            readonly=bool(bundle.spec.root and bundle.spec.root.readonly),
        ),
        hugepages=hugetlbfs.limits_of(name, limits),
        hooks=host_hooks,
        sysctls=sysctls,
        label=bundle.process.selinux_label,
        notes=(*map(warning, (*bundle.warnings, *ignored)), *labelled, *mounts.notes),
    )


def _with_root(spec: Mapping[str, Any], container: str, hooks: Hooks) -> Document:
    """Set the version, the path of the root file system in the share, and the hooks that run in the guest."""
    root = {**spec["root"], "path": f"{agreed.SHARE}/{container}/{ROOTFS}"}
    rest = {key: value for key, value in spec.items() if key != "hooks"}
    return rest | {"ociVersion": GUEST_VERSION, "root": root} | ({"hooks": hooks} if hooks else {})


def _notified(bundle: Bundle) -> str:
    """The source of the mount that is the container's notification socket; "" if no mount is."""
    notify = in_mounts(process_of(bundle.raw), bundle.raw.get("mounts") or (), bundle=bundle.path)
    return notify.host if notify is not None and not notify.below else ""


def _with_limits(name: str, spec: Mapping[str, Any], linux: Linux, bound: Sequence[BoundNode]) -> Document:
    """Set the limits of the guest's cgroup, the device rules as runc applies them, and the devices that mounts bind.

    Lists of CPUs and memory nodes use the host's numbers and apply to the host's cgroup only. crun 1.8.1 reads
    cpu.burst but does not set it, so the limit is passed in ``unified`` with the name of its cgroup file.
    """
    resources = dict(linux_of(spec).get("resources") or {})
    cpu = resources.get("cpu") or {}
    if burst := cpu.get("burst"):
        resources["unified"] = {"cpu.max.burst": str(burst)} | (resources.get("unified") or {})
    if cpu:
        resources["cpu"] = {key: value for key, value in cpu.items() if key not in ("cpus", "mems")}
    rules = device_rules.effective(name, (linux.resources.devices if linux.resources else None) or ())
    spec = with_linux(spec, resources=resources)
    devices = [*devices_of(spec), *(node.device for node in bound)]
    return with_devices(spec, devices, rules)


def _without_network_sysctls(spec: Mapping[str, Any]) -> tuple[Document, dict[str, str]]:
    """Split off the sysctls of the guest's network: return the specification without them, and these sysctls.

    crun would refuse them, since the container uses the network of the system that crun runs on. The agent sets them
    instead. A container with a network namespace in the guest keeps them.
    """
    linux = linux_of(spec)
    all_of_them = linux.get("sysctl") or {}
    if any(namespace["type"] == "network" for namespace in linux["namespaces"]):
        return dict(spec), {}
    network = {key: value for key, value in all_of_them.items() if re.match("net[./]", key)}
    if not network:
        return dict(spec), {}
    return with_linux(spec, sysctl={key: value for key, value in all_of_them.items() if key not in network}), network
