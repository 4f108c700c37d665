"""Record and undo a sandbox's changes to interfaces of the host. Standard library only.

The file ``network`` in the sandbox's directory contains lines of JSON: the namespace, ``{"path", "inode", "cookie"}``,
then ``{"index", "name", "qdisc"}`` for each interface, written before it is changed. ``qdisc``: hawse created the
ingress qdisc. Taps need no cleanup: the kernel removes a tap with its last descriptor, which QEMU holds.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import suppress

from hawse.errors import HostError
from hawse.linux import netlink

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    #: A line of the record.
    Entry = Mapping[str, Any]

_GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)


def record(directory: str) -> str:
    """The path of the record in a sandbox's directory."""
    return f"{directory}/network"


def note(path: str, entry: Entry) -> None:
    """Append a line to the record."""
    with open(path, "a") as file:
        file.write(json.dumps(entry) + "\n")


def is_of(directory: str, namespace: int) -> bool:
    """Whether the descriptor is the sandbox's network namespace."""
    from hawse.host import network_namespace

    recorded, _ = _read(record(directory))
    if recorded is None:
        return False
    cookie = network_namespace.cookie(namespace)
    return bool(recorded["cookie"] == cookie if cookie else recorded["inode"] == os.fstat(namespace).st_ino)


def release(directory: str, *, namespace: int = -1) -> None:
    """Undo the recorded changes of interfaces, and remove the record. If this fails, raises :class:`HostError`, and the
    record stays.

    ``namespace`` is a descriptor of the namespace, -1 for none. Without one, the namespace is looked up; if it no
    longer exists, neither do its interfaces.
    """
    path = record(directory)
    recorded, interfaces = _read(path)
    if recorded is not None:
        _undo(recorded, interfaces, namespace)
    with suppress(FileNotFoundError):
        os.unlink(path)


def _read(path: str) -> tuple[Entry | None, list[Entry]]:
    """The namespace, None for an empty record, and the interfaces. An incomplete line is ignored."""
    try:
        with open(path) as file:
            lines = [json.loads(line) for line in file if line.endswith("\n")]
    except FileNotFoundError:
        lines = []
    return (lines[0], lines[1:]) if lines else (None, [])


def _undo(recorded: Entry, changed: Sequence[Entry], namespace: int) -> None:
    # Imported here, since only a sandbox with a network needs it.
    from hawse.host import network_namespace

    if namespace >= 0:
        network_namespace.within(namespace, lambda: undo(changed))
        return
    for path in (recorded["path"], *_mounted(recorded["inode"])):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            # The path or the inode number may belong to another namespace now.
            if network_namespace.is_namespace(fd) and network_namespace.cookie(fd) == recorded["cookie"]:
                network_namespace.within(fd, lambda: undo(changed))
                return
        finally:
            os.close(fd)


def _mounted(inode: int) -> list[str]:
    """The paths where engines or `ip netns` have mounted the namespace with this inode number (proc(5), mountinfo)."""
    from hawse.linux import mountinfo  # imported here, since hot verbs load this module

    return [mount.point for mount in mountinfo.read() if mount.root == f"net:[{inode}]"]


def undo(changed: Sequence[Entry]) -> None:
    """Remove the redirections of these interfaces of the calling thread's namespace. Raises :class:`HostError`."""
    present = dict(socket.if_nameindex())
    for entry in changed:
        index = entry["index"]
        if present.get(index) != entry["name"]:
            continue
        for message in [netlink.no_ingress(index)] if entry["qdisc"] else netlink.no_filters(index):
            try:
                netlink.talk([message])
            except OSError as error:
                if error.errno not in _GONE:
                    raise HostError(
                        f"interface {entry['name']}: cannot remove its redirection: {error.strerror}",
                        hint=f"run tc qdisc del dev {entry['name']} ingress",
                    ) from None
