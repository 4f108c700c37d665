"""AF_UNIX sockets in a sandbox's directory, for paths of any length. Standard library only.

The address of a socket can have at most 107 bytes (unix(7)), but an engine's root with a 64-digit id is longer. So the
address is a path below an open descriptor of the directory.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable


def bind(directory: str, name: str) -> socket.socket:
    """Create a listening socket; connections are queued until they are accepted. Raises OSError."""
    return _at(directory, name, _listen)


def connect(directory: str, name: str) -> socket.socket:
    """Connect to a socket. Raises OSError if the socket does not exist or has no listener."""
    return _at(directory, name, socket.socket.connect)


def _listen(sock: socket.socket, path: str) -> None:
    sock.bind(path)
    sock.listen(64)


def _at(directory: str, name: str, act: Callable[[socket.socket, str], None]) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        fd = os.open(directory, os.O_DIRECTORY)
        try:
            act(sock, f"/proc/self/fd/{fd}/{name}")
        finally:
            os.close(fd)
    except BaseException:
        sock.close()
        raise
    return sock
