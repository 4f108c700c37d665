"""Errors of namespaces, process fields, file descriptors and other fields of a bundle."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import Any

from hawse.commands.descriptors import Descriptor, preserve
from hawse.oci.default_spec import example
from hawse.oci.fields import FIELDS, Fate, review
from hawse.oci.load import load_bundle
from tests.errors.situation import Act, bundle, warned
from tests.support.sysfs import FakeSysfs


def refused_field(path: str) -> Act:
    """A field that is in the table of fields that cannot be applied."""

    def act(_host: FakeSysfs) -> Any:
        value: Any = "asked for"
        for name in reversed(path.split(".")):
            value = {name.removesuffix("[]"): [value] if name.endswith("[]") else value}
        return review("config.json", value)

    return act


def limit(soft: int, hard: int, kind: str = "RLIMIT_MEMLOCK") -> dict[str, Any]:
    return {"type": kind, "soft": soft, "hard": hard}


def preserving(count: int, *descriptors: Descriptor) -> Act:
    """--preserve-fds with these open descriptors."""
    return lambda _host: preserve(count, look={each.number: each for each in descriptors}.get)


def nested_config(host: FakeSysfs) -> object:
    os.makedirs(f"{host.root}/rootfs")
    host.write("config.json", '{"ociVersion": ' + "[" * 200 + "]" * 200 + "}")
    return load_bundle(host.root)


PIPE = Descriptor(3, "pipe:[7]", stat.S_IFIFO, os.O_RDONLY, inode=(13, 7))

LISTENER = Descriptor(3, "socket:[7]", stat.S_IFSOCK, os.O_RDWR, stream=True, listening=True)

NAMESPACES = example()["linux"]["namespaces"]


def without(kind: str) -> Act:
    """A bundle without a namespace of this type."""
    return bundle(linux={"namespaces": [namespace for namespace in NAMESPACES if namespace["type"] != kind]})


FIELD_SITUATIONS = {
    f"`{field.path}` is set": refused_field(field.path) for field in FIELDS if field.fate is Fate.REFUSED
}


def user_map(ranges: list[tuple[int, int, int]], **process: Any) -> Act:
    """A bundle whose user namespace has these ranges."""
    ids = [{"containerID": inside, "hostID": outside, "size": count} for inside, outside, count in ranges]
    namespaces = {"namespaces": [*NAMESPACES, {"type": "user"}]}
    return bundle(linux=namespaces | {"uidMappings": ids, "gidMappings": ids}, process=process)


SITUATIONS: dict[str, Act] = {
    "A bundle has no network namespace": without("network"),
    "A bundle has no mount namespace": without("mount"),
    "A namespace type is unknown": bundle(linux={"namespaces": [*NAMESPACES, {"type": "galaxy"}]}),
    "A namespace type occurs twice": bundle(linux={"namespaces": [*NAMESPACES, {"type": "ipc"}]}),
    "A time namespace is requested": bundle(linux={"namespaces": [*NAMESPACES, {"type": "time"}]}),
    "A namespace of the host is to be joined": bundle(
        linux={"namespaces": [entry | ({"path": "/x"} if entry["type"] == "ipc" else {}) for entry in NAMESPACES]}
    ),
    "A user namespace has no mappings": bundle(linux={"namespaces": [*NAMESPACES, {"type": "user"}]}),
    "A user namespace does not map its root": user_map([(1, 100000, 65535)]),
    "Ranges of a user namespace overlap": user_map([(0, 100000, 10), (5, 200000, 10)]),
    "A user namespace has ids that do not exist": user_map([(0, 4294967290, 10)]),
    "A user namespace has too many ranges": user_map([(number, 100000 + number, 1) for number in range(341)]),
    "A user of the container is not mapped": user_map([(0, 100000, 10)], user={"uid": 1000, "gid": 0}),
    "A user namespace of the host cannot be read": bundle(
        linux={"namespaces": [*NAMESPACES, {"type": "user", "path": "/dev/null"}]}
    ),
    "A host name is set without a UTS namespace": without("uts"),
    "ID mappings are set without a user namespace": bundle(
        linux={"uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}]}
    ),
    "An adjustment of the OOM score does not exist": bundle(process={"oomScoreAdj": 5000}),
    "A resource limit is unknown": bundle(process={"rlimits": [limit(1, 1, "RLIMIT_FLY")]}),
    "A resource limit occurs twice": bundle(process={"rlimits": [limit(1, 1), limit(2, 2)]}),
    "A soft resource limit exceeds the hard limit": bundle(process={"rlimits": [limit(2, 1)]}),
    "The root's propagation is unknown": bundle(linux={"rootfsPropagation": "viral"}),
    "A file descriptor to preserve is not open": preserving(2, PIPE),
    "A file descriptor to preserve is not a byte stream": preserving(1, LISTENER),
    "A file descriptor to preserve is the same file as stdin": preserving(1, replace(PIPE, number=0), PIPE),
    "More file descriptors are to be preserved than the link has streams": preserving(100),
    "A seccomp filter is empty (a warning)": warned(linux={"seccomp": {}}),
    "A seccomp filter notifies a listener": bundle(linux={"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}}),
    "An execution domain is unknown": bundle(linux={"personality": {}}),
    "A capability is unknown (a warning)": warned(process={"capabilities": {"bounding": ["CAP_FLY"]}}),
    "`config.json` is nested too deeply": nested_config,
    **FIELD_SITUATIONS,
}  # fmt: skip
