"""Network namespaces of the host: open and check a sandbox's namespace, and run code in it. Standard library only.

A short query runs in a thread that enters the namespace and then ends. For a network namespace, setns(2) moves only the
calling thread, so the monitor's other threads and the programs that it starts stay in theirs. Larger tasks need a
library that is slow to load: a short-lived program, :mod:`hawse.tap_helper.main`, runs them.
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
#: The name prefix of hawse's taps in a namespace of the host. The index of the interface that a tap serves follows it.
TAP = "hawse"
FIELD = "linux.namespaces[type=network]"


def open_path(path: str) -> int:
    """Open the network namespace at ``path``; returns a descriptor.

    Raises :class:`ConfigError` if the path is not a network namespace, or is the host's, whose interfaces hawse must
    not use.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(
            f"{FIELD}.path: {path}: {(error.strerror or '').lower()}",
            hint="the engine creates the namespace before the container; `ip netns` lists named ones",
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
            f"{FIELD}.path: {path}: the host's network, which a virtual machine cannot share",
            hint="give the container its own network, and publish its ports",
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
    """Run ``act`` in the namespace; returns or raises what it does. Raises :class:`HostError` if it cannot enter."""
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
    """The interfaces in the calling thread's namespace that a sandbox gets: names by index.

    These are the interfaces that are up, except lo and hawse's taps. The kernel creates some interfaces in every
    namespace, such as tunl0, but these are down (net/core/sysctl_net_core.c, fb_tunnels_only_for_init_net).
    """
    names = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        for index, name in socket.if_nameindex():
            if name == tap_name_of(name):
                continue
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFFLAGS, struct.pack("16s24x", os.fsencode(name)))
            except OSError:
                continue  # the interface was removed
            flags = struct.unpack_from("=H", answer, 16)[0]
            if flags & _UP and not flags & _LOOPBACK:
                names[index] = name
    return names


def tap_name(index: int) -> str:
    """The name of an interface's tap. It is unique, so that two sandboxes cannot serve the same interface."""
    return f"{TAP}{index}"


def tap_name_of(name: str) -> str:
    """The name itself if it is the name of one of hawse's taps, otherwise ""."""
    return name if name.startswith(TAP) and name[len(TAP) :].isdigit() else ""


def cookie(fd: int) -> int:
    """The cookie of a namespace: unlike an inode number, it is unique until the host reboots. 0 before Linux 5.14."""

    def ask() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            try:
                return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
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
