"""Add hawse to the text of an engine's configuration, or remove it. Pure.

Everything else in the text is kept, including comments and order. Adding hawse again changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from hawse.errors import ConfigError
from hawse.json_text import Document, parse

_CRI_2 = ("plugins", "io.containerd.grpc.v1.cri", "containerd", "runtimes")
_CRI_3 = ("plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes")
#: containerd's table of runtimes by the version of its configuration (containerd docs/cri/config.md): containerd 1.x
#: reads version 2, 2.0 reads 3 too, and 2.3 reads 4 too. Version 4 moves settings of the server only, [grpc] and others
#: (containerd pull request 12562).
_CONTAINERD = {2: _CRI_2, 3: _CRI_3, 4: _CRI_3}


@dataclass(frozen=True)
class Registration:
    """The runtime's entry: its name, the path of the program, and the path of hawse's configuration.

    ``config`` is "" for the default path, which the program reads without an option.
    """

    name: str
    program: str
    config: str = ""


@dataclass(frozen=True)
class Engine:
    """The path of an engine's file, the advice that is printed after a change, and the two edits.

    An edit turns the file's text into the new text; "" stands for no file. ``passes_config``: an entry of this engine
    can contain arguments for hawse, such as --config.
    """

    path: str
    advice: str
    add: Callable[[str, Registration], str]
    remove: Callable[[str, Registration], str]
    passes_config: bool = False


def add_podman(text: str, registration: Registration) -> str:
    """Add hawse to a separate file of containers.conf.d (containers.conf(5), [engine.runtimes])."""
    document = _toml(text)
    _table(document, ("engine", "runtimes"))[registration.name] = [registration.program]
    return tomlkit.dumps(document)


def remove_podman(text: str, registration: Registration) -> str:
    """Remove hawse."""
    return _without(text, ("engine", "runtimes"), registration.name)


def add_docker(text: str, registration: Registration) -> str:
    """Add hawse to daemon.json (dockerd(8), "runtimes"), with --config in runtimeArgs. Other keys of the entry stay."""
    document = _json(text)
    runtimes = document.setdefault("runtimes", {})
    if not isinstance(runtimes, dict):
        raise ConfigError('"runtimes" is not an object', hint="make it an object, {}")
    arguments = ["--config", registration.config] if registration.config else []
    present = runtimes.get(registration.name)
    entry: Document = {"path": registration.program}
    if isinstance(present, dict) and present.get("path") == registration.program:
        entry = present
    entry = entry | ({"runtimeArgs": arguments} if arguments else {})
    if entry == present:
        return text
    runtimes[registration.name] = entry
    return json.dumps(document, indent=4) + "\n"


def remove_docker(text: str, registration: Registration) -> str:
    """Remove hawse."""
    document = _json(text)
    if registration.name not in document.get("runtimes", {}):
        return text
    del document["runtimes"][registration.name]
    if not document["runtimes"]:
        del document["runtimes"]
    return json.dumps(document, indent=4) + "\n" if document else ""


def add_containerd(text: str, registration: Registration) -> str:
    """Add hawse to config.toml as a handler of the CRI plugin.

    An imported file would be cleaner, but before containerd 2 such a file replaces the plugin's whole section
    (containerd cmd/containerd/server/config, mergeConfig).
    """
    document = _toml(text)
    if not text.strip():
        document["version"] = 2
    table = _table(document, _containerd_tables(document))
    handler = table.setdefault(registration.name, tomlkit.table())
    values: Document = {
        "runtime_type": "io.containerd.runc.v2",
        # A privileged container gets the devices of the guest, not all devices of the host.
        "privileged_without_host_devices": True,
        "pod_annotations": ["hawse.*"],
        "container_annotations": ["hawse.*"],
    }
    for key, value in values.items():
        if handler.get(key) != value:
            handler[key] = value
    options = handler.setdefault("options", tomlkit.table())
    if options.get("BinaryName") != registration.program:
        options["BinaryName"] = registration.program
    return tomlkit.dumps(document)


def remove_containerd(text: str, registration: Registration) -> str:
    """Remove hawse."""
    if not text.strip():
        return text
    left = _without(text, _containerd_tables(_toml(text)), registration.name)
    return "" if left.split() == ["version", "=", "2"] else left


def add_crio(text: str, registration: Registration) -> str:
    """Add hawse to a separate file of crio.conf.d (crio.conf(5))."""
    document = _toml(text)
    runtime = _table(document, ("crio", "runtime"))
    # The sandbox is the VM, so CRI-O has to create it. By default it omits sandboxes (crio.conf(5), drop_infra_ctr).
    runtime["drop_infra_ctr"] = False
    _table(document, ("crio", "runtime", "runtimes"))[registration.name] = {
        "runtime_path": registration.program,
        "runtime_type": "oci",
        "runtime_root": "/run/hawse",
        "privileged_without_host_devices": True,
        "allowed_annotations": ["hawse."],
    }
    return tomlkit.dumps(document)


def remove_crio(text: str, registration: Registration) -> str:
    """Remove hawse; the file is removed with its last runtime."""
    left = _without(text, ("crio", "runtime", "runtimes"), registration.name)
    kept = _toml(left).unwrap().get("crio", {}).get("runtime", {})
    return "" if kept in ({}, {"drop_infra_ctr": False}) else left


ENGINES = {
    "podman": Engine("/etc/containers/containers.conf.d/hawse.conf", "", add_podman, remove_podman),
    "docker": Engine(
        "/etc/docker/daemon.json", "reload dockerd: systemctl reload docker", add_docker, remove_docker,
        passes_config=True,
    ),
    "containerd": Engine(
        "/etc/containerd/config.toml", "restart containerd: systemctl restart containerd", add_containerd,
        remove_containerd,
    ),
    "crio": Engine(
        "/etc/crio/crio.conf.d/50-hawse.conf", "restart CRI-O: systemctl restart crio", add_crio, remove_crio
    ),
}  # fmt: skip


def _containerd_tables(document: tomlkit.TOMLDocument) -> tuple[str, ...]:
    version = document.get("version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ConfigError(
            f"version is not a positive number: {str(version)[:80]!r}",
            hint="containerd cannot read it either: correct it first",
        )
    if version in _CONTAINERD:
        return _CONTAINERD[version]
    if version == 1:
        raise ConfigError(
            "its version is 1, or missing: containerd 2 cannot read it, and in 1.x the tables have other names",
            hint="rewrite it as version 2 or later: `containerd config default` prints one",
        )
    raise ConfigError(
        f"version {version} of the configuration is unknown: this hawse supports {', '.join(map(str, _CONTAINERD))}",
        hint="update hawse, or add the tables of docs/containerd.md by hand: `containerd config default` prints them",
    )


def _table(document: MutableMapping[str, Any], path: tuple[str, ...]) -> Any:
    """The table at a path, which is created if it is missing."""
    table: Any = document
    for index, key in enumerate(path):
        if key not in table:
            # A table that contains only tables does not need a header.
            table[key] = tomlkit.table(is_super_table=index < len(path) - 1)
        table = table[key]
        if not isinstance(table, MutableMapping):
            raise ConfigError(f"{'.'.join(path[: index + 1])} is not a table", hint="make it a table")
    return table


def _without(text: str, path: tuple[str, ...], name: str) -> str:
    """The text without a key, and without tables that become empty."""
    document = _toml(text)
    tables: list[Any] = [document]
    for key in path:
        if key not in tables[-1]:
            return text
        tables.append(tables[-1][key])
    if name not in tables[-1]:
        return text
    del tables[-1][name]
    for parent, key in zip(reversed(tables[:-1]), reversed(path), strict=True):
        if parent[key]:
            break
        del parent[key]
    left = tomlkit.dumps(document).strip("\n")
    return f"{left}\n" if left else ""


def _toml(text: str) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigError(f"not TOML: {error}", hint="the engine cannot read it either: correct it first") from None


def _json(text: str) -> Document:
    try:
        document = parse(text or "{}")
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}", hint="the engine cannot read it either: correct it first") from None
    if not isinstance(document, dict):
        raise ConfigError("the content is not a JSON object", hint="make it an object, {}")
    return document
