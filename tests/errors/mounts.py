"""Errors of mounts: binds, overlays, sockets, ID mappings and types."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from hawse.agent.container.mount_errors import HINT, unknown_type
from hawse.errors import HawseError, VmError, from_wire
from hawse.host.mounts.open_sources import Source, open_sources
from hawse.host.mounts.origins import Origin
from hawse.linux import mounts
from hawse.monitor.share.share_root import ShareRoot, enter_private_namespace
from hawse.oci.guest.host_sockets import find_special, obstacle, patterns_of
from hawse.oci.guest.idmap import IdMap
from hawse.oci.guest.overlay import Overlay
from hawse.oci.guest.share import Share
from tests.errors.situation import Act, bundle, warned
from tests.support.forked import in_child
from tests.support.sysfs import FakeSysfs


def bound(source: str) -> Act:
    """A mount of the host's view of its devices; returns the warning."""
    act = bundle(mounts=[{"destination": "/host", "type": "bind", "source": source, "options": ["bind"]}])
    return lambda host: next(text for level, text in act(host).notes if level == "warning")


SHARED = {"destination": "/x", "type": "bind", "source": "/", "options": ["rbind", "rshared"]}


def floppy(host: FakeSysfs) -> str:
    os.makedirs(f"{host.root}/proc")
    Path(f"{host.root}/proc/filesystems").write_text("nodev\tproc\n")
    mount = {"destination": "/x", "type": "floppyfs"}
    message = unknown_type("mount `none` to `x`: No such device", {"mounts": [mount]}, root=host.root)
    return VmError(message, hint=HINT).sentence()


def kernel_view(host: FakeSysfs) -> None:
    os.symlink("/proc", f"{host.root}/data")
    open_sources([Share(name="mount1", source=f"{host.root}/data", is_dir=True, readonly=False)])


def overlaid(*options: str) -> Act:
    """A bundle with an overlay."""
    return bundle(mounts=[{"destination": "/x", "type": "overlay", "source": "overlay", "options": list(options)}])


def layers(*lowers: str) -> Act:
    """An overlay of these directories below the host's root is mounted."""

    def act(host: FakeSysfs) -> None:
        os.makedirs(f"{host.root}/data")
        overlay = Overlay(lowers=tuple(host.root + lower for lower in lowers))
        open_sources([Share(name="mount1", source="x", is_dir=True, readonly=True, overlay=overlay)])

    return act


def gone_overlay(host: FakeSysfs) -> None:
    """The sandbox's other container was deleted after this one had asked what there is."""
    os.makedirs(f"{host.root}/data")
    overlay = Overlay(lowers=("/data", "/b"))
    share = Share(name="mount1", source=overlay.name, is_dir=True, readonly=True, common=True, overlay=overlay)

    def act() -> str:
        enter_private_namespace()
        source = Source(os.open(f"{host.root}/data", os.O_PATH), Origin(device=overlay.key, path="/"), reused=True)
        try:
            ShareRoot(f"{host.root}/share").place("c2", [share], [source])
        except HawseError as error:
            return json.dumps(error.to_wire())
        return ""

    raise from_wire(json.loads(in_child(act)))


def bound_socket(kind: int, *forwarded: str) -> Act:
    """A container binds a socket of the host, or, with 0, a FIFO."""

    def act(host: FakeSysfs) -> str:
        os.makedirs(f"{host.root}/run")
        path = f"{host.root}/run/it"
        with socket.socket(socket.AF_UNIX, kind or socket.SOCK_STREAM) as unix_socket:
            if kind:
                unix_socket.bind(path)
            else:
                os.mkfifo(path)
            special = find_special(path)
            assert special is not None
            return obstacle("/config.json: mounts[0].source", special, [host.root + each for each in forwarded])

    return act


MAPPED = {
    key: [{"containerID": 0, "hostID": 100000, "size": 65536}] for key in ("uidMappings", "gidMappings")
}  # fmt: skip


def mapped(uids: list[tuple[int, int, int]]) -> Act:
    """A share with an ID mapping."""

    def act(host: FakeSysfs) -> None:
        source = f"{host.root}/data"
        os.makedirs(source, exist_ok=True)
        owners = IdMap(tuple(uids), ((0, 1000, 1),))
        open_sources([Share(name="mount1", source=source, is_dir=True, readonly=False, owners=owners)])

    return act


def unmappable(host: FakeSysfs) -> None:
    """Linux does not support ID-mapped mounts of ramfs."""
    os.mkdir(f"{host.root}/data")
    mounts.mount("none", f"{host.root}/data", "ramfs", 0)
    try:
        mapped([(0, 1000, 1)])(host)
    finally:
        mounts.unmount(f"{host.root}/data")


SITUATIONS: dict[str, Act] = {
    "A mount is to appear on the host": bundle(mounts=[SHARED]),
    "A mount has no type": bundle(mounts=[{"destination": "/data", "source": "/tmp"}]),
    "A mount has an option that only another runtime has": bundle(
        mounts=[{"destination": "/data", "source": "/tmp", "options": ["bind", "idmap=uids=0-1-10"]}]
    ),
    "A mount binds the node of a VFIO device": bound("/dev/vfio/7"),
    "A mount binds the directory of all VFIO devices (a warning)": bound("/dev/vfio"),
    "A mount binds a path of the host kernel's file systems (a warning)": bound("/sys/kernel"),
    "A mount's source is on a file system of the host kernel": kernel_view,
    "A mount of type `overlay` has an option that hawse does not know": overlaid("lowerdir=/a", "lowerdir+=/b"),
    "It has no lower directory": overlaid("upperdir=/u", "workdir=/w"),
    "It has one lower directory and no upper directory": overlaid("lowerdir=/a"),
    "It has an upper directory and no working directory": overlaid("lowerdir=/a", "upperdir=/u"),
    "It has an empty layer": overlaid("lowerdir=/a::/b"),
    "It has a layer that is not absolute": overlaid("lowerdir=a:/b"),
    "It has a layer on a file system of the host kernel": overlaid("lowerdir=/proc:/b"),
    "A layer does not exist": layers("/none", "/data"),
    "There are more layers than the kernel accepts": layers(*["/data"] * 100),
    "The container with the same overlay was deleted at the same time": gone_overlay,
    "A container binds a socket of the host (a warning)": bound_socket(socket.SOCK_STREAM),
    "The socket to forward is not a stream socket (a warning)": bound_socket(socket.SOCK_DGRAM, "/run/*"),
    "A container binds a FIFO of the host (a warning)": bound_socket(0),
    "A socket to forward has an invalid path": lambda _host: "\n".join(
        patterns_of({"hawse.forward-sockets": "true"}, ())
    ),
    "A mount requests an ID mapping, and the container has none": bundle(
        mounts=[SHARED | {"options": ["rbind", "idmap"]}]
    ),
    "A mount that requests an ID mapping is not a bind mount": bundle(
        mounts=[{"destination": "/x", "type": "tmpfs", "options": ["idmap"]}]
    ),
    "An ID-mapped mount binds a kernel file system": bundle(
        mounts=[SHARED | MAPPED | {"source": "/sys", "options": ["rbind"]}]
    ),
    "The kernel refuses an ID mapping": mapped([(0, 1000, 2), (1, 5000, 2)]),
    "The file system of a volume does not support ID-mapped mounts": unmappable,
    "A mount option requests an ID mapping": bundle(mounts=[SHARED | {"options": ["rbind", "idmap"]}]),
    "A mount has the file system type of a hypervisor's share": bundle(
        mounts=[{"destination": "/x", "type": "virtiofs", "source": "a"}]
    ),
    "A mount has the file system type of a disk": bundle(
        mounts=[{"destination": "/x", "type": "ext4", "source": "/dev/sdb1"}]
    ),
    "A mount shows the guest kernel, not the host's (a warning)": warned(
        mounts=[{"destination": "/x", "type": "debugfs", "source": "none"}]
    ),
    "A mount needs a file system that the guest kernel does not have": floppy,
}  # fmt: skip
