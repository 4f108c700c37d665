"""Network namespaces of the host: which one a sandbox has, and looking into it. Standard library only.

A look is made by a thread that enters the namespace and ends: setns(2) moves the calling thread alone when it is about
a network namespace, so the monitor's other threads, and programs that it starts, stay where they are. What takes more
than a look, since a library for it is slow to load, is done by a short-lived program, :mod:`hawse.tap_helper.main`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading

from hawse.errors import ConfigError, HostError
from hawse.linux.libc import CLONE_NEWNET, NS_GET_NSTYPE, libc

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Value = TypeVar("Value")

_SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h
_SIOCGIFFLAGS = 0x8913
_UP, _LOOPBACK = 1, 8
#: How our own interfaces are called in a namespace of the host, before the index of the interface that each serves.
TAP = "hawse"
FIELD = "linux.namespaces[type=network]"


def open_path(path: str) -> int:
    """A descriptor of the network namespace at ``path``. Raises :class:`ConfigError` where there is none, or the
    host's own is there, whose interfaces are not to be taken."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(
            f"{FIELD}.path: {path}: {(error.strerror or '').lower()}",
            hint="the engine makes the namespace before the container; `ip netns` lists those that have names",
        ) from None
    try:
        check(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check(fd: int, path: str) -> None:
    """Raise :class:`ConfigError` unless the descriptor is a network namespace other than the host's."""
    if not is_namespace(fd):
        raise ConfigError(f"{FIELD}.path: {path}: not a network namespace", hint="give a file such as /run/netns/NAME")
    if _is_host(fd):
        raise ConfigError(
            f"{FIELD}.path: {path}: the host's own network, which a virtual machine cannot share",
            hint="give the container a network of its own, and publish its ports",
        )


def is_namespace(fd: int) -> bool:
    """Whether the descriptor is a network namespace."""
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def enter(fd: int) -> None:
    """Move the calling thread into a network namespace. Raises OSError."""
    if libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "setns")


def leave() -> None:
    """Move the calling thread into a new network namespace. Raises OSError."""
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare")


def within(fd: int, act: Callable[[], Value]) -> Value:
    """What ``act`` returns or raises in the namespace. Raises :class:`HostError` where that cannot be entered."""
    values: list[Value] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            try:
                enter(fd)
            except OSError as error:
                raise HostError(
                    f"cannot enter the network namespace: {error.strerror}", hint="hawse needs root, with CAP_SYS_ADMIN"
                ) from None
            values.append(act())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="network namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return values[0]


def interfaces() -> dict[int, str]:
    """In the calling thread's namespace: names of the interfaces that a sandbox gets, by their indexes.

    Those that are up, but for lo and our own. The kernel puts some that nobody asked for into every namespace, tunl0
    say (net/core/sysctl_net_core.c, fb_tunnels_only_for_init_net), and these are down.
    """
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        for index, name in socket.if_nameindex():
            if name == tap_name_of(name):
                continue
            try:
                answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, struct.pack("16s24x", os.fsencode(name)))
            except OSError:
                continue  # it has gone
            flags = struct.unpack_from("=H", answer, 16)[0]
            if flags & _UP and not flags & _LOOPBACK:
                found[index] = name
    return found


def tap_name(index: int) -> str:
    """What the tap of an interface is called: a second sandbox cannot have one for the same interface."""
    return f"{TAP}{index}"


def tap_name_of(name: str) -> str:
    """The name itself where it is that of a tap of ours, else ""."""
    return name if name.startswith(TAP) and name[len(TAP) :].isdigit() else ""


def cookie(fd: int) -> int:
    """A number that is this namespace's as long as the machine runs, unlike its inode's; 0 before Linux 5.14."""

    def ask() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
            try:
                return int.from_bytes(asking.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
            except OSError:
                return 0

    return within(fd, ask)


def _is_host(fd: int) -> bool:
    ours = os.fstat(fd)
    for path in ("/proc/self/ns/net", "/proc/1/ns/net"):
        try:
            other = os.stat(path)
        except OSError:
            continue
        if (ours.st_dev, ours.st_ino) == (other.st_dev, other.st_ino):
            return True
    return False
