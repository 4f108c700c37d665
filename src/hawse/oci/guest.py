"""What of a container's specification stays on the host, and what the guest gets. Pure but for its predicates."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hawse.errors import ConfigError
from hawse.oci import memory
from hawse.oci.hooks import Hooks, split
from hawse.oci.load import Bundle
from hawse.oci.pods import CONTAINER, SANDBOX, SINGLE

GUEST_SHARE = "/run/hawse/share"
#: crun 1.8.1, Debian 12's, takes only versions with "1.0" in them (src/libcrun/container.c).
GUEST_VERSION = "1.0.2"
_JOINABLE = ("pid", "ipc", "uts")
_KERNEL_VIEWS = ("/proc", "/sys", "/dev")
_PAGE_SIZES = {"KB": 1, "MB": 1024, "GB": 1024 * 1024}


@dataclass(frozen=True)
class Share:
    """A directory or file of the host that the guest needs; it appears as GUEST_SHARE/<container>/<name>."""

    name: str
    source: str
    is_dir: bool
    readonly: bool


@dataclass(frozen=True)
class GuestPlan:
    """The guest's specification, what is shared with it, and the huge pages it needs as (KiB of a page, count).

    ``memory`` are file systems of shared memory, by name, and their bytes. ``joins`` has, by kind of namespace, the
    path of one that another container of the same sandbox has; ``hooks`` are those that run on the host.
    """

    spec: dict[str, Any]
    shares: tuple[Share, ...]
    hugepages: tuple[tuple[int, int], ...]
    memory: tuple[tuple[str, int], ...]
    joins: dict[str, str]
    hooks: Hooks


def plan_guest(
    bundle: Bundle,
    *,
    container: str,
    role: str = SINGLE,
    is_dir: Callable[[str], bool] = os.path.isdir,
    exists: Callable[[str], bool] = os.path.exists,
    tmpfs_size: Callable[[str], int] = memory.tmpfs_size,
) -> GuestPlan:
    """The plan; the bundle is not changed. Raises :class:`ConfigError` for what hawse cannot give, naming the field.

    Left out, since the guest has a kernel of its own: the network namespace (the guest's is the container's), LSM
    labels (the guest has no policy), the host's cgroup path. Paths of namespaces mean something within a pod alone.
    """
    _refuse(bundle)
    spec = copy.deepcopy(bundle.raw)
    base = f"{GUEST_SHARE}/{container}"
    readonly = bool(bundle.spec.root and bundle.spec.root.readonly)
    shares = [Share("rootfs", bundle.rootfs, True, readonly)]
    spec["ociVersion"] = GUEST_VERSION
    spec["root"]["path"] = f"{base}/rootfs"
    spec.pop("hooks", None)
    hooks, spec_hooks = split(f"{bundle.path}/config.json", bundle.spec.hooks or {})
    if spec_hooks:
        spec["hooks"] = spec_hooks
    for label in ("apparmorProfile", "selinuxLabel"):
        spec["process"].pop(label, None)
    mounts = []
    shared: dict[str, int] = {}
    for index, mount in enumerate(spec.get("mounts") or ()):
        if _is_bind(mount) and not _is_kernel_view(mount["source"]):
            source = os.path.normpath(os.path.join(bundle.path, mount["source"]))
            if not exists(source):
                raise ConfigError(
                    f"{bundle.path}/config.json: mounts[{index}].source: {source} does not exist",
                    hint=f"make it, or take the mount at {mount['destination']} out",
                )
            if os.path.normpath(mount["destination"]) == memory.DESTINATION and (size := tmpfs_size(source)):
                name = memory.guest_name(source)
                shared[name] = size
                mounts.append({**mount, "source": f"{memory.GUEST_DIRECTORY}/{name}"})
                continue
            options = mount.get("options") or []
            shares.append(Share(f"mount{index}", source, is_dir(source), "ro" in options))
            mount = {**mount, "source": f"{base}/mount{index}"}
        mounts.append(mount)
    spec["mounts"] = mounts
    linux = spec.setdefault("linux", {})
    linux["cgroupsPath"] = f"/hawse/{container}"
    linux.pop("mountLabel", None)
    for number in ("cpus", "mems"):  # of the host's, and for the host's cgroup
        ((linux.get("resources") or {}).get("cpu") or {}).pop(number, None)
    linux["namespaces"], joins = _namespaces(bundle, linux.get("namespaces") or (), role)
    return GuestPlan(spec, tuple(shares), _hugepages(bundle), tuple(shared.items()), joins, hooks)


def _namespaces(
    bundle: Bundle, namespaces: Sequence[dict[str, Any]], role: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Those that the container is to have of its own, and the paths of those that it joins, by kind."""
    own, joins = [], {}
    for index, namespace in enumerate(namespaces):
        kind, path = namespace["type"], namespace.get("path")
        if kind == "network":
            continue
        if not path or role == SANDBOX:  # CRI-O makes a sandbox's own beforehand
            own.append({"type": kind})
        elif role == CONTAINER and kind in _JOINABLE:
            joins[kind] = path
        else:
            raise ConfigError(
                f"{bundle.path}/config.json: linux.namespaces[{index}]: the {kind} namespace at {path[:200]} is one of "
                "the host's kernel, and the container has another kernel",
                hint="take the path out; containers of one pod can share pid, ipc and uts namespaces",
            )
    return own, joins


def _refuse(bundle: Bundle) -> None:
    name = f"{bundle.path}/config.json"
    linux = bundle.spec.linux
    if linux is None:
        return
    if linux.intel_rdt:
        raise ConfigError(f"{name}: linux.intelRdt: a guest has no cache allocation", hint="remove it")
    if linux.seccomp and linux.seccomp.get("listenerPath"):
        raise ConfigError(f"{name}: linux.seccomp.listenerPath: the guest cannot reach a listener of the host")


def _hugepages(bundle: Bundle) -> tuple[tuple[int, int], ...]:
    """The pages that the limits speak of: a guest has none but those that are reserved for its container."""
    resources = bundle.spec.linux.resources if bundle.spec.linux else None
    pages = []
    for limit in (resources.hugepage_limits or ()) if resources else ():
        number, unit = limit.page_size[:-2], limit.page_size[-2:]
        if not number.isdigit() or unit not in _PAGE_SIZES:
            raise ConfigError(
                f"{bundle.path}/config.json: linux.resources.hugepageLimits: pageSize {limit.page_size[:40]!r}",
                hint="write it as 2MB or 1GB",
            )
        kib = int(number) * _PAGE_SIZES[unit]
        if limit.limit >= kib * 1024:
            pages.append((kib, limit.limit // (kib * 1024)))
    return tuple(pages)


def _is_bind(mount: dict[str, Any]) -> bool:
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))


def _is_kernel_view(source: str) -> bool:
    """Views of the kernel are the guest's own, not the host's."""
    return any(source == view or source.startswith(f"{view}/") for view in _KERNEL_VIEWS)
