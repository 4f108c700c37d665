"""Bundles for tests: a root file system of busybox or of one static program, and a config.json."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Sequence
from typing import Any

from hawse.oci.default_spec import example
from hawse.vm.image import packages
from tests.support.caches import CACHE, kept
from tests.support.programs import compiled_file

_APPLETS = (
    "sh", "cat", "dd", "echo", "env", "grep", "head", "id", "kill", "ls", "mkdir", "pwd", "sleep", "stat", "stty",
    "test", "touch", "chown", "chmod", "true", "false", "wc", "yes", "tty", "seq", "sync", "rm", "ps", "md5sum",
    "mknod", "uname",
)  # fmt: skip
#: Capabilities to change the owner of files, and to set their set-uid and set-gid bits.
FILE_CAPABILITIES = {
    kind: ["CAP_KILL", "CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID"] for kind in ("bounding", "effective", "permitted")
}
UNLIMITED = {"type": "RLIMIT_MEMLOCK", "hard": 2**64 - 1, "soft": 2**64 - 1}

Device = tuple[str, int, int]
"""Path, major, minor of a character device."""


@functools.cache
def busybox() -> str:
    """Debian's static busybox, unpacked once in a test run; returns its path."""

    def unpack(path: str) -> None:
        fetched = packages.fetch(["busybox-static"], cache=CACHE, progress=print)
        packages.unpack(fetched, path, select=lambda name: name.startswith("usr/bin"))

    return f"{kept('busybox', unpack)}/usr/bin/busybox"


def make_rootfs(rootfs: str) -> None:
    """Create a root file system with a shell and the usual small programs."""
    os.makedirs(f"{rootfs}/bin")
    for name in ("dev", "etc", "proc", "sys", "tmp", "data"):
        os.mkdir(f"{rootfs}/{name}")
    shutil.copyfile(busybox(), f"{rootfs}/bin/busybox")
    os.chmod(f"{rootfs}/bin/busybox", 0o755)
    for applet in _APPLETS:
        os.symlink("busybox", f"{rootfs}/bin/{applet}")


def make_bundle(directory: str, argv: Sequence[str], *, terminal: bool = False, **process: Any) -> dict[str, Any]:
    """Create a bundle with busybox; returns its specification, which :func:`write` writes after a change."""
    os.makedirs(directory, exist_ok=True)
    make_rootfs(f"{directory}/rootfs")
    spec = specification(argv, terminal=terminal, **process)
    write(directory, spec)
    return spec


def build_probe(directory: str) -> str:
    """Compile the VFIO probe as a static program in ``directory``; returns its path."""
    source = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lab", "probe", "probe.c")
    shutil.copy(compiled_file(source), f"{directory}/probe")
    return f"{directory}/probe"


def make_probe_bundle(directory: str, *, group: Device, node: str = "", files: Sequence[Device] = ()) -> dict[str, Any]:
    """Create a bundle whose only program is the VFIO probe, without capabilities, with the VFIO container's node and a
    group's node, or with device files instead of both."""
    os.makedirs(f"{directory}/rootfs")
    build_probe(f"{directory}/rootfs")
    for name in ("dev", "proc", "sys"):
        os.mkdir(f"{directory}/rootfs/{name}")
    spec = specification(["/probe", node or group[0]], capabilities={}, rlimits=[UNLIMITED])
    add_devices(spec, files or [("/dev/vfio/vfio", 10, 196), group])
    drop_cgroups(spec)
    write(directory, spec)
    return spec


def specification(argv: Sequence[str], *, terminal: bool = False, **process: Any) -> dict[str, Any]:
    """The example of `hawse spec`, with a writable root and this process."""
    spec = example()
    spec["root"]["readonly"] = False
    path = "PATH=/bin:/usr/bin"
    spec["process"] |= {"args": list(argv), "terminal": terminal, "env": [path]} | process
    return spec


def add_devices(spec: dict[str, Any], devices: Sequence[Device]) -> None:
    """Add devices to a specification as an engine does: the node, and a rule that allows it."""
    spec["linux"]["devices"] = [
        {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0}
        for path, major, minor in devices
    ]
    spec["linux"]["resources"]["devices"] += [
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rw"} for _, major, minor in devices
    ]


def drop_cgroups(spec: dict[str, Any], *, namespace: bool = False) -> None:
    """Remove the mounts of cgroups, and the cgroup namespace as well if ``namespace`` is set.

    For bundles that runc runs too: on a host with only cgroup v2, runc 1.1 cannot mount them without a cgroup
    namespace, and on a host with v1 it does not have such a namespace.
    """
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"]
    if namespace:
        spec["linux"]["namespaces"] = [entry for entry in spec["linux"]["namespaces"] if entry["type"] != "cgroup"]


def write(directory: str, spec: dict[str, Any]) -> None:
    """Write config.json."""
    with open(f"{directory}/config.json", "w") as file:
        json.dump(spec, file, indent=1)
