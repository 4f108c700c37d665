"""Plan a container's namespaces: which the guest creates or joins, their user mappings and host names. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hawse.errors import ConfigError
from hawse.json_text import Document
from hawse.oci.document import linux_of, process_of, with_linux
from hawse.oci.guest import idmap
from hawse.oci.pods import CONTAINER, SANDBOX
from hawse.oci.types import Linux

_JOINABLE = ("pid", "ipc", "user", "uts")


@dataclass(frozen=True)
class Namespaces:
    """The namespaces of a container.

    ``own`` are the kinds that the guest creates for it. ``joins`` maps a kind to the path of a namespace of another
    container of the sandbox. ``network`` is the path of the network namespace on the host, "" for a new one.
    """

    own: tuple[str, ...]
    joins: dict[str, str]
    network: str


def plan_namespaces(name: str, linux: Linux, role: str) -> Namespaces:
    """Decide for each namespace of the specification. ``name`` is the document's name for errors.

    All containers of a guest share its network namespace, unless a container of a pod requests a new one. If an engine
    created a user namespace, the guest creates one with the same mappings.

    Raises :class:`ConfigError` for a namespace that a VM cannot have.
    """
    own: list[str] = []
    joins: dict[str, str] = {}
    for index, namespace in enumerate(linux.namespaces or ()):
        kind, path = namespace.type, namespace.path
        if kind == "time":
            raise ConfigError(
                f"{name}: linux.namespaces[{index}]: the guest's runtime cannot create a time namespace",
                hint="remove it",
            )
        if kind == "network" and (path or role != CONTAINER):
            continue
        # CRI-O creates the namespaces of a sandbox beforehand.
        if not path or role == SANDBOX or (kind == "user" and role != CONTAINER):
            own.append(kind)
        elif role == CONTAINER and kind in _JOINABLE:
            joins[kind] = path
        else:
            raise ConfigError(
                f"{name}: linux.namespaces[{index}]: the {kind} namespace at {path[:200]} belongs to the host kernel, "
                "and the container runs on another kernel",
                hint="remove the path; containers of one pod can share pid, ipc, user and uts namespaces",
            )
    return Namespaces(tuple(own), joins, _network(name, linux))


def _network(name: str, linux: Linux) -> str:
    """The path of the network namespace. Refuse the host's network and the host's mounts: a VM cannot share them."""
    paths = {namespace.type: namespace.path for namespace in linux.namespaces or ()}
    for kind, what in (("network", "network, which a virtual machine cannot share"), ("mount", "mounts")):
        if kind not in paths:
            raise ConfigError(
                f"{name}: linux.namespaces: none of type {kind}: the container would use the host's {what}",
                hint="add one, or let the engine add it: do not use --network=host, or hostNetwork for a pod"
                if kind == "network"
                else "add one",
            )
    return paths["network"]


def user_maps_of(
    name: str,
    spec: Mapping[str, Any],
    namespaces: Namespaces,
    read: Callable[[str], idmap.Maps],
) -> idmap.Maps:
    """The mappings of the container's user namespace, empty without one. ``name`` is the document's name for errors.

    ``read`` returns the mappings of a user namespace of the host, and raises OSError. Raises :class:`ConfigError`.
    """
    maps = idmap.of_linux(linux_of(spec))
    user = process_of(spec).get("user") or {}
    if "user" not in namespaces.own:
        return maps
    if all(maps):
        idmap.check_user_map(name, maps, user)
        return maps
    [path] = [entry.get("path") for entry in linux_of(spec)["namespaces"] if entry["type"] == "user"]
    if not path:
        raise ConfigError(
            f"{name}: linux.uidMappings and gidMappings: the user namespace has no users or no groups",
            hint="map at least ID 0: containerID 0, hostID 100000, size 65536",
        )
    try:
        uids, gids = read(path)
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
    return uids, gids


def with_namespaces(spec: Mapping[str, Any], namespaces: Namespaces, maps: idmap.Maps) -> Document:
    """The specification with the namespaces that the guest creates.

    The mappings of a new user namespace are the specification's, or ``maps`` if the specification contains a path.
    """
    kinds: list[Document] = [{"type": kind} for kind in namespaces.own]
    if "user" in namespaces.joins:
        # With mappings, the guest's runtime would create a new namespace.
        return with_linux(spec, namespaces=kinds, uidMappings=None, gidMappings=None)
    if "user" not in namespaces.own or all(idmap.of_linux(linux_of(spec))):
        return with_linux(spec, namespaces=kinds)
    uids, gids = maps
    return with_linux(spec, namespaces=kinds, uidMappings=idmap.as_field(uids), gidMappings=idmap.as_field(gids))


def with_names(name: str, spec: Mapping[str, Any], namespaces: Namespaces, host: str) -> Document:
    """Add a uts namespace, and the host and domain names. ``name`` is the document's name for errors.

    A container without a uts namespace gets the name of the ``host``, and needs a uts namespace in the guest for it.
    crun 1.8.1 does not read the field ``domainname``, so the domain is set as a sysctl (Linux kernel/utsname_sysctl.c).
    """
    spec = dict(spec)
    if "uts" not in (*namespaces.own, *namespaces.joins):
        for field in ("hostname", "domainname"):
            if spec.get(field):
                raise ConfigError(
                    f"{name}: {field}: the container has no uts namespace",
                    hint=f"add one to linux.namespaces, or remove {field}",
                )
        spec = with_linux(spec, namespaces=[*linux_of(spec)["namespaces"], {"type": "uts"}]) | {"hostname": host}
    if domain := spec.pop("domainname", ""):
        spec = with_linux(spec, sysctl={"kernel.domainname": domain} | (linux_of(spec).get("sysctl") or {}))
    return spec
