"""What of a container's specification stays on the host, and what the guest gets. Pure but for its predicates."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hawse.errors import ConfigError
from hawse.linux import user_namespaces
from hawse.oci import device_rules
from hawse.oci.checks import check_options, checked_mount
from hawse.oci.fields import POLICY, review
from hawse.oci.guest import dev_shm as memory
from hawse.oci.guest import host_sockets, idmap, overlay
from hawse.oci.guest import hugetlbfs as hugepages
from hawse.oci.guest.bind_sources import (
    GUEST_SHARE,
    GUEST_SOCKETS,
    DeviceNode,
    device_node,
    kernel_view,
    no_devices,
    read_only,
)
from hawse.oci.guest.host_sockets import Special, find_special, is_notified
from hawse.oci.guest.hugetlbfs import Hugetlbfs
from hawse.oci.guest.known_devices import is_known
from hawse.oci.guest.mount_types import check_type
from hawse.oci.hooks import Hooks, split
from hawse.oci.load import Bundle
from hawse.oci.pods import CONTAINER, SANDBOX, SINGLE
from hawse.oci.types import Linux

#: crun 1.8.1, Debian 12's, takes only versions with "1.0" in them (src/libcrun/container.c).
GUEST_VERSION = "1.0.2"
_JOINABLE = ("pid", "ipc", "user", "uts")
#: Directories that have the host's VFIO nodes below them, and those nodes.
_VFIO_DIRECTORIES = ("/dev", "/dev/vfio", "/dev/vfio/devices")
_VFIO_SHARED = ("/dev/vfio/vfio", "/dev/iommu")
_VFIO_NODE = re.compile(r"/dev/vfio/(?:devices/vfio|noiommu-)?\d+")


@dataclass(frozen=True)
class Share:
    """A directory or file of the host that the guest needs; it appears as GUEST_SHARE/<container>/<name>.

    ``private``: what the host mounts below it later is not to appear. ``recursive``: what is mounted below it now is.
    ``readonly_below``: that is read-only as well. ``owners``: how it shows the owners of files, None for as they are.
    ``overlay``: what is to be mounted on the host and shared in place of ``source``, which is its name then.
    """

    name: str
    source: str
    is_dir: bool
    readonly: bool
    private: bool = False
    recursive: bool = True
    readonly_below: bool = False
    owners: idmap.IdMap | None = None
    overlay: overlay.Overlay | None = None


@dataclass(frozen=True)
class BoundNode:
    """A device node that a mount binds; ``nodev``: the mount does not let it be opened."""

    index: int
    source: str
    destination: str
    nodev: bool


@dataclass(frozen=True)
class GuestPlan:
    """The guest's specification, and what is shared with it.

    ``memory`` are file systems of shared memory, by name, and their bytes; ``hugetlbfs`` are those of huge pages, by
    name. ``hugepages`` are limits, pages by the KiB of one, and ``page_sizes`` the KiB of those that are mounted.
    ``joins`` has, by kind of namespace, the path of one that another container of the same sandbox has; ``hooks`` are
    those that run on the host. ``network`` is the path of the network namespace on the host, "" for a new one;
    ``sysctls`` are the network's. ``label`` is the SELinux label of the machine's programs on the host. ``notes`` are
    what the user is to be told: level ("warning" or "debug"), sentence. ``bound`` are device nodes that mounts bind:
    the last entries of ``linux.devices`` of ``spec``, in their order. ``sockets`` are those of the host that
    connections are forwarded to, by the names of their shares.
    """

    spec: dict[str, Any]
    shares: tuple[Share, ...]
    hugepages: dict[int, int]
    page_sizes: frozenset[int]
    hugetlbfs: tuple[tuple[str, Hugetlbfs], ...]
    memory: tuple[tuple[str, int], ...]
    joins: dict[str, str]
    hooks: Hooks
    network: str
    sysctls: dict[str, str]
    label: str
    notes: tuple[tuple[str, str], ...]
    bound: tuple[BoundNode, ...] = ()
    sockets: tuple[tuple[str, Special], ...] = ()


def plan_guest(
    bundle: Bundle,
    *,
    container: str,
    role: str = SINGLE,
    is_dir: Callable[[str], bool] = os.path.isdir,
    exists: Callable[[str], bool] = os.path.exists,
    tmpfs_size: Callable[[str], int] = memory.tmpfs_size,
    hugetlbfs: Callable[[str], Hugetlbfs | None] = hugepages.hugetlbfs,
    node: Callable[[str], DeviceNode | None] = device_node,
    user_maps: Callable[[str], idmap.Maps] = user_namespaces.read,
    special: Callable[[str], Special | None] = find_special,
    forwarded: Sequence[str] = (),
    host: str = "",
) -> GuestPlan:
    """The plan; the bundle is not changed. Raises :class:`ConfigError` for what hawse cannot give, naming the field.

    Left out, since the guest has a kernel of its own: the network namespace (the guest's is the container's), labels of
    security modules (the guest has no policy), the host's cgroup path. Paths of namespaces mean something within a pod
    alone.
    ``user_maps`` has the mappings of a user namespace of the host. ``host`` is the host's name, which a container
    without a uts namespace sees; the machine's own by default. ``forwarded`` are patterns of sockets of the host that
    connections are forwarded to.
    """
    network = _network(bundle)
    spec = copy.deepcopy(bundle.raw)
    ignored = review(f"{bundle.path}/config.json", spec)
    spec["process"].pop("selinuxLabel", None)
    notes = [("warning", text) for text in (*bundle.warnings, *ignored)]
    if (bundle.raw.get("linux") or {}).get("mountLabel"):
        notes.append(("debug", f"linux.mountLabel is passed over: {POLICY}"))
    base = f"{GUEST_SHARE}/{container}"
    readonly = bool(bundle.spec.root and bundle.spec.root.readonly)
    shares = [Share("rootfs", bundle.rootfs, True, readonly)]
    spec["ociVersion"] = GUEST_VERSION
    spec["root"]["path"] = f"{base}/rootfs"
    spec.pop("hooks", None)
    hooks, spec_hooks = split(f"{bundle.path}/config.json", bundle.spec.hooks.by_kind() if bundle.spec.hooks else {})
    if spec_hooks:
        spec["hooks"] = spec_hooks
    spec.setdefault("linux", {})
    joins = _namespaces(bundle, spec["linux"], role)
    user_map = _user_map(bundle, spec["linux"], joins, user_maps)
    mounts = []
    bound: list[BoundNode] = []
    sockets: list[tuple[str, Special]] = []
    devices: list[dict[str, Any]] = []
    shared: dict[str, int] = {}
    huge: dict[str, Hugetlbfs] = {}
    page_sizes = set()
    for index, mount in enumerate(spec.get("mounts") or ()):
        where = f"{bundle.path}/config.json: mounts[{index}]"
        check_options(where, mount.get("options") or ())
        if not _is_bind(mount):
            found = node(mount["source"]) if str(mount.get("source") or "").startswith("/") else None
            is_disk = found is not None and found.kind == "b"
            notes += [("warning", text) for text in check_type(where, mount, is_disk=is_disk)]
        mount = checked_mount(where, mount, bind=_is_bind(mount))
        mount, owners = idmap.take_out(where, mount, user_map, bind=_is_bind(mount))
        if kib := hugepages.mounted_kib(mount):
            page_sizes.add(kib)
        if mount.get("type") == overlay.KIND and not _is_bind(mount):
            top, _ = read_only(mount.get("options") or ())
            layers, flags = overlay.read(where, mount.get("options") or (), readonly=top)
            shares.append(
                Share(
                    f"mount{index}", layers.name, True, top or not layers.upper,
                    private=True, recursive=False, overlay=layers,
                )
            )  # fmt: skip
            mount = {**mount, "type": "bind", "source": f"{base}/mount{index}", "options": ["bind", *flags]}
        elif _is_bind(mount):
            if not mount.get("source"):
                raise ConfigError(
                    f"{bundle.path}/config.json: mounts[{index}].source: missing",
                    hint=f"name the directory or file of the host that is to be at {mount['destination']}",
                )
            source = os.path.normpath(os.path.join(bundle.path, mount["source"]))
            view = kernel_view(source)
            if not exists(source) and not view:
                raise ConfigError(
                    f"{where}.source: {source} does not exist",
                    hint=f"make it, or take the mount at {mount['destination']} out",
                )
            there = special(source)
            if there is not None and view.startswith("/dev"):
                view, source = "", there.path
            if (found := node(source)) and not _is_guests_own(view, found):
                # As a device the container has it under the same rules, and by its numbers.
                bound.append(BoundNode(index, source, mount["destination"], no_devices(mount.get("options") or ())))
                devices.append(
                    {
                        "path": mount["destination"], "type": found.kind, "major": found.major, "minor": found.minor,
                        "fileMode": found.mode, "uid": found.uid, "gid": found.gid,
                    }
                )  # fmt: skip
                continue
            if pages := hugetlbfs(source):
                name = memory.guest_name(source)
                if owners:
                    uid, gid = owners.owner(pages.uid, pages.gid)
                    pages = replace(pages, uid=uid, gid=gid)
                huge[name] = pages
                page_sizes.add(pages.kib)
                mounts.append({**mount, "source": f"{hugepages.GUEST_DIRECTORY}/{name}"})
                continue
            if view:
                if owners:
                    raise ConfigError(f"{where}.uidMappings: {view[:200]} cannot be mapped", hint="remove them")
                where += ".source"
                where += f": {source[:200]} leads to {view[:200]}" if view != source else ""
                notes.append(("warning", _guests_own(where, view)))
                mounts.append({**mount, "source": view})
                continue
            if os.path.normpath(mount["destination"]) == memory.DESTINATION and (size := tmpfs_size(source)):
                name = memory.guest_name(source)
                shared[name] = size
                mounts.append({**mount, "source": f"{memory.GUEST_DIRECTORY}/{name}"})
                continue
            options = mount.get("options") or []
            top, below = read_only(options)
            shares.append(
                Share(
                    f"mount{index}",
                    source,
                    is_dir(source),
                    top,
                    private=bool({"private", "rprivate"} & set(options)),
                    recursive="rbind" in options or "bind" not in options,
                    readonly_below=below,
                    owners=owners,
                )
            )
            mount = {**mount, "source": f"{base}/mount{index}"}
            if there is not None and not view and not is_notified(bundle.path, bundle.raw, source):
                if text := host_sockets.obstacle(f"{where}.source", there, forwarded):
                    notes.append(("warning", text))
                else:
                    uid, gid = owners.owner(there.uid, there.gid) if owners else (there.uid, there.gid)
                    sockets.append((f"mount{index}", replace(there, uid=uid, gid=gid)))
                    mount["source"] = f"{GUEST_SOCKETS}/{container}/mount{index}"
        mounts.append(mount)
    spec["mounts"] = mounts
    linux = spec["linux"]
    if devices:
        linux["devices"] = [*(linux.get("devices") or ()), *devices]
    linux["cgroupsPath"] = f"/hawse/{container}"
    for number in ("cpus", "mems"):  # of the host's, and for the host's cgroup
        ((linux.get("resources") or {}).get("cpu") or {}).pop(number, None)
    _limits(linux.get("resources") or {})
    resources = bundle.spec.linux.resources if bundle.spec.linux else None
    rules = device_rules.effective(f"{bundle.path}/config.json", (resources.devices if resources else None) or ())
    linux["resources"] = (linux.get("resources") or {}) | {"devices": rules}
    _names(f"{bundle.path}/config.json", spec, joins, host or os.uname().nodename)
    sysctls: dict[str, str] = {}
    if not any(namespace["type"] == "network" for namespace in linux["namespaces"]):
        # crun knows the guest's own network for a host's, and would refuse these: the agent sets them.
        sysctls = {key: value for key, value in (linux.get("sysctl") or {}).items() if re.match("net[./]", key)}
    if sysctls:
        linux["sysctl"] = {key: value for key, value in linux["sysctl"].items() if key not in sysctls}
    limits = (resources.hugepage_limits if resources else None) or ()
    return GuestPlan(
        spec=spec,
        shares=tuple(shares),
        hugepages=hugepages.limits_of(f"{bundle.path}/config.json", limits),
        page_sizes=frozenset(page_sizes),
        hugetlbfs=tuple(huge.items()),
        memory=tuple(shared.items()),
        joins=joins,
        hooks=hooks,
        network=network,
        sysctls=sysctls,
        label=bundle.process.selinux_label,
        notes=tuple(notes),
        bound=tuple(bound),
        sockets=tuple(sockets),
    )


def _is_guests_own(view: str, node: DeviceNode) -> bool:
    """Whether what the guest has at a path in /dev is meant, or the path is one of VFIO's, which :func:`_guests_own`
    says more of."""
    is_vfio = view in _VFIO_SHARED or bool(_VFIO_NODE.fullmatch(view))
    return bool(view) and (is_vfio or (node.kind == "c" and is_known(node.major, node.minor)))


def _guests_own(where: str, source: str) -> str:
    """What to say of a bind of the host's view of its kernel, in whose place is the guest's.

    Raises :class:`ConfigError` for a VFIO device's node: the guest's of that number would be another device's.
    """
    if _VFIO_NODE.fullmatch(source):
        raise ConfigError(
            f"{where}: {source} is a device of the host's, and a mount of it would be the guest's of that number",
            hint="name it in linux.devices: --device in place of --volume",
        )
    if source in _VFIO_DIRECTORIES:
        return (
            f"{where}: {source} is the guest's own: of the host's VFIO devices it has those alone that linux.devices "
            "names [name them there: --device /dev/vfio/NN for each group]"
        )
    return (
        f"{where}: {source[:200]} is the guest's own, not the host's [bind files that are not below /proc, /sys, /dev]"
    )


def _namespaces(bundle: Bundle, linux: dict[str, Any], role: str) -> dict[str, str]:
    """Leave of ``linux.namespaces``, in place, those that the container is to have of its own; the paths of those that
    it joins, by kind.

    The network of the guest is that of all its containers but for one that asks for a new one beside its sandbox's. A
    user namespace that an engine has made is known by its mappings alone: the guest makes one with the same.
    """
    own, joins = [], {}
    for index, namespace in enumerate(linux.get("namespaces") or ()):
        kind, path = namespace["type"], namespace.get("path")
        if kind == "time":
            raise ConfigError(
                f"{bundle.path}/config.json: linux.namespaces[{index}]: the guest's runtime makes no time namespace",
                hint="take it out",
            )
        if kind == "network" and (path or role != CONTAINER):
            continue
        # CRI-O makes a sandbox's own beforehand.
        if not path or role == SANDBOX or (kind == "user" and role != CONTAINER):
            own.append({"type": kind})
        elif role == CONTAINER and kind in _JOINABLE:
            joins[kind] = path
        else:
            raise ConfigError(
                f"{bundle.path}/config.json: linux.namespaces[{index}]: the {kind} namespace at {path[:200]} is one of "
                "the host's kernel, and the container has another kernel",
                hint="take the path out; containers of one pod can share pid, ipc, user and uts namespaces",
            )
    linux["namespaces"] = own
    return joins


def _user_map(
    bundle: Bundle, linux: dict[str, Any], joins: dict[str, str], user_maps: Callable[[str], idmap.Maps]
) -> idmap.Maps:
    """The mappings of the container's user namespace, which ``linux`` has in the end where the guest is to make it."""
    found = idmap.of_linux(linux)
    if "user" in joins:
        # The guest's runtime would take them for those of a new one.
        linux.pop("uidMappings", None)
        linux.pop("gidMappings", None)
    if {"type": "user"} not in linux["namespaces"]:
        return found
    name = f"{bundle.path}/config.json"
    user = bundle.raw["process"].get("user") or {}
    if all(found):
        idmap.check_user_map(name, found, user)
        return found
    [path] = [entry.path for entry in (bundle.spec.linux or Linux()).namespaces or () if entry.type == "user"]
    if not path:
        raise ConfigError(
            f"{name}: linux.uidMappings and gidMappings: the user namespace has no users or no groups",
            hint="map at least 0: containerID 0, hostID 100000, size 65536",
        )
    try:
        uids, gids = user_maps(path)
    except OSError as error:
        raise ConfigError(
            f"{name}: linux.namespaces[type=user].path: {path[:200]}: {(error.strerror or '').lower()}",
            hint="give a user namespace other than the host's, or linux.uidMappings and gidMappings without a path",
        ) from None
    if not (uids and gids):
        raise ConfigError(
            f"{name}: linux.namespaces[type=user].path: {path[:200]}: the user namespace has no mappings",
            hint="write its uid_map and gid_map, or give linux.uidMappings and gidMappings without a path",
        )
    idmap.check_user_map(name, (uids, gids), user)
    linux["uidMappings"], linux["gidMappings"] = idmap.as_field(uids), idmap.as_field(gids)
    return uids, gids


def _limits(resources: dict[str, Any]) -> None:
    """crun 1.8.1 reads cpu.burst and sets nothing: it is a file of the cgroup, and named as such."""
    if burst := (resources.get("cpu") or {}).get("burst"):
        resources["unified"] = {"cpu.max.burst": str(burst)} | (resources.get("unified") or {})


def _names(name: str, spec: dict[str, Any], joins: dict[str, str], host: str) -> None:
    """The names of the uts namespace. Without one the container sees its host's, for which it needs one in the guest.

    The domain is a setting, since crun 1.8.1 does not read the field; the kernel has it for both (uts_sysctl.c).
    """
    linux = spec["linux"]
    if "uts" not in joins and not any(namespace["type"] == "uts" for namespace in linux["namespaces"]):
        for field in ("hostname", "domainname"):
            if spec.get(field):
                raise ConfigError(
                    f"{name}: {field}: the container has no uts namespace",
                    hint=f"add one to linux.namespaces, or remove {field}",
                )
        linux["namespaces"].append({"type": "uts"})
        spec["hostname"] = host
    if domain := spec.pop("domainname", ""):
        linux["sysctl"] = {"kernel.domainname": domain} | (linux.get("sysctl") or {})


def _network(bundle: Bundle) -> str:
    """The path of the network namespace, "" for a new one. A virtual machine cannot have the host's, nor its files."""
    linux = bundle.spec.linux
    paths = {namespace.type: namespace.path for namespace in (linux.namespaces or ())} if linux else {}
    for kind, what in (("network", "network, which a virtual machine cannot share"), ("mount", "mounts")):
        if kind not in paths:
            raise ConfigError(
                f"{bundle.path}/config.json: linux.namespaces: none of type {kind}: "
                f"the container would have the host's {what}",
                hint="name one, or have the engine do it: no --network=host, and no hostNetwork for a pod"
                if kind == "network"
                else "name one",
            )
    return paths["network"]


def _is_bind(mount: dict[str, Any]) -> bool:
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))
