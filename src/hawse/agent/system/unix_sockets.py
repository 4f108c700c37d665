"""Bind UNIX sockets to paths of any length: an address has at most 107 bytes (unix(7)), and a container's name 255."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    import socket


def bind(sock: socket.socket, path: str) -> None:
    """Bind a socket. The path's last part must fit into an address. Raises OSError."""
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    try:
        sock.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    finally:
        os.close(directory)
