"""What a sandbox has changed on interfaces of the host, on record, and its undoing. Standard library only.

``network`` in the sandbox's directory has lines of JSON: the namespace, ``{"path", "inode", "cookie"}``, then
``{"index", "name", "qdisc"}`` of each interface, written before it is changed. ``qdisc`` tells whether the ingress
qdisc is ours. The taps need no undoing: each is gone with its last descriptor, which is QEMU's.
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
    from typing import Any

_GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)


def record(directory: str) -> str:
    """The file."""
    return f"{directory}/network"


def note(path: str, entry: dict[str, Any]) -> None:
    """Add a line; it is there when this returns."""
    with open(path, "a") as file:
        file.write(json.dumps(entry) + "\n")


def is_of(directory: str, namespace: int) -> bool:
    """Whether the descriptor is that of the sandbox's network namespace."""
    from hawse.host import network_namespace

    lines = _read(record(directory))
    if not lines:
        return False
    cookie = network_namespace.cookie(namespace)
    return bool(lines[0]["cookie"] == cookie if cookie else lines[0]["inode"] == os.fstat(namespace).st_ino)


def release(directory: str, *, namespace: int = -1) -> None:
    """Take off the interfaces what the record has, and the record away. Raises :class:`HostError`; it stays then.

    ``namespace`` is a descriptor of it where there is one. Else it is looked for, and where it is gone, everything
    is gone with it.
    """
    path = record(directory)
    lines = _read(path)
    if lines:
        _undo(lines[0], lines[1:], namespace)
    with suppress(FileNotFoundError):
        os.unlink(path)


def _read(path: str) -> list[dict[str, Any]]:
    try:
        with open(path) as file:
            return [json.loads(line) for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []


def _undo(where: dict[str, Any], changed: list[dict[str, Any]], namespace: int) -> None:
    # Here, since only a sandbox with a network needs it.
    from hawse.host import network_namespace

    if namespace >= 0:
        network_namespace.within(namespace, lambda: undo(changed))
        return
    for path in (where["path"], *_mounted(where["inode"])):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            # The path may be another's now, and so may the number.
            if network_namespace.is_namespace(fd) and network_namespace.cookie(fd) == where["cookie"]:
                network_namespace.within(fd, lambda: undo(changed))
                return
        finally:
            os.close(fd)


def _mounted(inode: int) -> list[str]:
    """Where namespaces of this number are mounted, as engines and `ip netns` do to keep them (proc(5), mountinfo)."""
    from hawse.linux import mountinfo  # here, since hot verbs load this module

    return [mount.point for mount in mountinfo.read() if mount.root == f"net:[{inode}]"]


def undo(changed: list[dict[str, Any]]) -> None:
    """Take the redirections of these off, in the calling thread's namespace. Raises :class:`HostError`."""
    there = dict(socket.if_nameindex())
    for entry in changed:
        index = entry["index"]
        if there.get(index) != entry["name"]:
            continue
        for message in [netlink.no_ingress(index)] if entry["qdisc"] else netlink.no_filters(index):
            try:
                netlink.talk([message])
            except OSError as error:
                if error.errno not in _GONE:
                    raise HostError(
                        f"interface {entry['name']}: cannot take its redirection away: {error.strerror}",
                        hint=f"tc qdisc del dev {entry['name']} ingress",
                    ) from None
