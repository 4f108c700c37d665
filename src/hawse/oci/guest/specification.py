"""The specification that the guest gets, and what is shared with it: a pipeline of pure steps from a bundle.

Each step returns a copy with its part of the document in the guest's terms: version and root, hooks, namespaces,
mounts, limits, names and sysctls. The host's files are asked through :class:`hawse.oci.guest.mounts.HostFiles`.
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

#: crun 1.8.1, Debian 12's, takes only versions with "1.0" in them (src/libcrun/container.c).
GUEST_VERSION = "1.0.2"
_HOST = HostFiles()


@dataclass(frozen=True)
class GuestPlan:
    """The guest's specification, and what is shared with it.

    ``memory`` has the bytes of file systems of shared memory, by name, ``huge`` the file systems of huge pages.
    ``hugepages`` are limits, pages by the KiB of one, and ``page_sizes`` the KiB of those that are mounted. ``hooks``
    run on the host. ``sysctls`` are of the network. ``label`` is the SELinux label of the VM's programs on the host.
    ``bound`` are device nodes that mounts bind: the last entries of ``linux.devices`` of ``spec``, in their order.
    ``sockets`` are those of the host that connections are forwarded to, by the names of their shares.
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
    """The plan. Raises :class:`ConfigError` for what a guest cannot have, naming the field.

    Left out, since the guest has its own kernel: the network namespace (the guest's is the container's), labels of
    security modules (the guest has no policy), the host's cgroup path. Paths of namespaces mean something only within a
    pod. ``forwarded`` are patterns of sockets of the host that connections are forwarded to.
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
    """The version, the root file system in the share, and the hooks that run in the guest."""
    root = {**spec["root"], "path": f"{agreed.SHARE}/{container}/{ROOTFS}"}
    rest = {key: value for key, value in spec.items() if key != "hooks"}
    return rest | {"ociVersion": GUEST_VERSION, "root": root} | ({"hooks": hooks} if hooks else {})


def _notified(bundle: Bundle) -> str:
    """The source of the mount that has the socket for the container's notifications; "" without one of its own."""
    notify = in_mounts(process_of(bundle.raw), bundle.raw.get("mounts") or (), bundle=bundle.path)
    return notify.host if notify is not None and not notify.below else ""


def _with_limits(name: str, spec: Mapping[str, Any], linux: Linux, bound: Sequence[BoundNode]) -> Document:
    """Limits as the guest's cgroup has them, device rules as runc applies them, and devices that mounts bind.

    The numbers of CPUs and memory nodes are the host's: they are for the host's cgroup. crun 1.8.1 reads cpu.burst and
    sets nothing: it is named as the file of the cgroup that it is.
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
    """The specification without sysctls of the guest's own network, and these.

    crun takes the guest's network for a host's and would refuse them: the agent sets them. A container with a network
    namespace in the guest keeps them.
    """
    linux = linux_of(spec)
    all_of_them = linux.get("sysctl") or {}
    if any(namespace["type"] == "network" for namespace in linux["namespaces"]):
        return dict(spec), {}
    network = {key: value for key, value in all_of_them.items() if re.match("net[./]", key)}
    if not network:
        return dict(spec), {}
    return with_linux(spec, sysctl={key: value for key, value in all_of_them.items() if key not in network}), network
