"""AF_UNIX sockets in a sandbox's directory, whatever its path's length. Standard library only.

A socket's path has at most 107 bytes (unix(7)); an engine's root with a 64-digit id is longer. So it is named from an
open directory.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable


def bind(directory: str, name: str) -> socket.socket:
    """A listening socket that others can connect to before anybody accepts. Raises OSError."""
    return _at(directory, name, _listen)


def connect(directory: str, name: str) -> socket.socket:
    """A connection. Raises OSError when there is no such socket or nobody listens."""
    return _at(directory, name, socket.socket.connect)


def _listen(made: socket.socket, path: str) -> None:
    made.bind(path)
    made.listen(64)


def _at(directory: str, name: str, act: Callable[[socket.socket, str], None]) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        fd = os.open(directory, os.O_DIRECTORY)
        try:
            act(made, f"/proc/self/fd/{fd}/{name}")
        finally:
            os.close(fd)
    except BaseException:
        made.close()
        raise
    return made
