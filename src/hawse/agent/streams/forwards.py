"""Connections as streams of the link: from the loopback of the pod's namespace on the host to the guest's, and those
that :mod:`hawse.agent.streams.announced` announces."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable

from hawse.agent.streams.stdio import Stdio
from hawse.errors import LinkError, NotFoundError, VmError
from hawse.link.streams import STDIO

#: The connection's stream: that of the first descriptor behind stdio.
_NUMBER = len(STDIO)
_SECONDS = 10.0
_RESET = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER: close(2) tells the peer of an error


class Forwards:
    """Those that are there, by the numbers that the host gave them."""

    def __init__(self) -> None:
        self._there: dict[int, tuple[socket.socket, Stdio]] = {}

    def connect(self, process: int, stdio: Stdio, *, port: int, ended: Callable[[], None]) -> None:
        """Connect to a port, of IPv4 if somebody listens there, else of IPv6, as engines try it.

        ``ended`` is called when both directions have ended. Raises :class:`VmError` where nobody listens.
        """
        self.serve(process, stdio, _dial(port), ended=ended)

    def serve(self, process: int, stdio: Stdio, connection: socket.socket, *, ended: Callable[[], None]) -> None:
        """Pass on what comes from either side of a connection, in a thread, which calls ``ended`` at its end."""
        self._there[process] = (connection.dup(), stdio)

        def run() -> None:
            try:
                stdio.serve_socket(_NUMBER, connection)
                self._there.pop(process)[0].close()
                stdio.finish()
                ended()
            except LinkError:
                return  # the host is gone, and this machine with it

        threading.Thread(target=run, daemon=True).start()

    def disconnect(self, process: int) -> None:
        """The host's side is gone: end both directions, with an error for whoever writes there."""
        try:
            connection, stdio = self._there[process]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.shutdown(socket.SHUT_RDWR)
        except KeyError:
            raise NotFoundError(f"connection {process} does not exist in the guest") from None
        except OSError:
            pass  # the other side has ended it
        stdio.inputs[_NUMBER].end()


def _dial(port: int) -> socket.socket:
    # Not create_connection(), whose getaddrinfo() asks for encodings.idna, which is not in the image.
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
    raise VmError(f"port {port} of the pod: {problem}", hint="a program of the pod has to listen there")
