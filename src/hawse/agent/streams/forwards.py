"""Connections as streams of the link: from the loopback of the pod's namespace on the host to the guest's loopback,
and connections that :mod:`hawse.agent.streams.announced` announces."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from hawse.agent.streams.stdio import Stdio
from hawse.errors import LinkError, NotFoundError, VmError
from hawse.link.streams import STDIO

#: The number of a connection's stream: that of the first descriptor after stdio.
_NUMBER = len(STDIO)
_SECONDS = 10.0
#: SO_LINGER (socket(7)) with a time of 0: close(2) resets the connection, so that the peer gets an error.
_RESET = struct.pack("ii", 1, 0)


class Forwards:
    """The open connections, by the numbers that the host has chosen."""

    def __init__(self) -> None:
        self._connections: dict[int, tuple[socket.socket, Stdio]] = {}

    def connect(self, process: int, stdio: Stdio, *, port: int, ended: Callable[[], None]) -> None:
        """Connect to a port of the loopback, by IPv4 or, if that fails, by IPv6, as engines do.

        ``ended`` is called when both directions have ended. Raises :class:`VmError` if no program listens at the port.
        """
        self.serve(process, stdio, _dial(port), ended=ended)

    def serve(self, process: int, stdio: Stdio, connection: socket.socket, *, ended: Callable[[], None]) -> None:
        """Forward the bytes of both directions of a connection, in a thread, which calls ``ended`` at its end."""
        own = connection.dup()
        self._connections[process] = (own, stdio)

        def run() -> None:
            try:
                with suppress(OSError, RuntimeError):  # descriptors or threads are exhausted: the connection ends
                    stdio.serve_socket(_NUMBER, connection)
                self._connections.pop(process)[0].close()
                stdio.finish()
                ended()
            except LinkError:
                return  # the host has closed the link, which ends this VM

        try:
            threading.Thread(target=run, daemon=True).start()
        except RuntimeError:
            del self._connections[process]
            own.close()
            raise

    def disconnect(self, process: int) -> None:
        """End both directions of a connection whose side on the host is closed. Writes of the program then fail."""
        try:
            connection, stdio = self._connections[process]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.shutdown(socket.SHUT_RDWR)
        except KeyError:
            raise NotFoundError(f"connection {process} does not exist in the guest") from None
        except OSError:
            pass  # the program has closed the connection
        stdio.inputs[_NUMBER].abandon()


def _dial(port: int) -> socket.socket:
    # create_connection() is not used: its getaddrinfo() needs encodings.idna, which is not in the image.
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(_SECONDS)
            connection.connect((address, port))
            connection.settimeout(None)
        except OSError as error:
            connection.close()
            problem = os.strerror(error.errno) if error.errno else str(error)
            continue
        return connection
    raise VmError(f"port {port} of the pod: {problem}", hint="a program of the pod must listen at this port")
