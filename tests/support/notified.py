"""A service manager's socket for notifications (sd_notify(3)): it records what it receives, and from which process."""

from __future__ import annotations

import os
import socket
import struct
from types import TracebackType

from tests.support.patience import patience

_CREDENTIALS = struct.Struct("3i")


class Notified:
    """A socket at a path or, with a leading "@", an abstract one, as a context manager."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        if not address.startswith("@"):
            os.chmod(address, 0o777)

    def __enter__(self) -> Notified:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        if not self.address.startswith("@"):
            os.unlink(self.address)

    def next(self, seconds: float = 20) -> tuple[int, list[str]]:
        """Wait for the next notification; returns the sender's pid and the lines. Descriptors in it are closed.

        Raises TimeoutError.
        """
        self._socket.settimeout(patience(seconds))
        space = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4)
        data, ancillary, _, _ = self._socket.recvmsg(65536, space)
        pid = 0
        for _, kind, content in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                pid = _CREDENTIALS.unpack(content)[0]
            else:
                os.close(struct.unpack("i", content)[0])
        return pid, data.decode().rstrip("\n").split("\n")

    def nothing(self) -> bool:
        """Whether no notification is waiting."""
        self._socket.settimeout(0)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False
