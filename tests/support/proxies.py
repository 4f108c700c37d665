"""The monitor's end of a proxy: it sends the frames that a process in the guest would cause."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from hawse.commands.spawn import ProxyProcess
from hawse.link import messages
from hawse.link.blocking import Port
from hawse.link.frames import DATA, EOF, EVENT, Frame, encode
from hawse.link.streams import STREAMS
from tests.support.fake_monitor import FakeMonitor
from tests.support.patience import patience


class Attached:
    """The next proxy connection to ``monitor``, as a context manager; ``params``: the parameters of its call."""

    def __init__(self, monitor: FakeMonitor) -> None:
        self.connection: socket.socket
        self.connection, self.params = monitor.proxies.get(timeout=patience(10))
        # Port reads the descriptor without Python's timeout: set the kernel's timeout.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 30, 0))
        self.port = Port(self.connection.fileno())
        self.frames: Iterator[Frame] = self.port.frames()

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def write(self, descriptor: int, data: bytes) -> None:
        """Simulate output of the process."""
        self.port.send(encode(STREAMS + descriptor, DATA, data))

    def close(self, descriptor: int) -> None:
        """Simulate that the process closes a descriptor."""
        self.port.send(encode(STREAMS + descriptor, EOF))

    def event(self, name: str, **params: Any) -> None:
        """Send an event of the process."""
        self.port.send(messages.encode_event(name, params))

    def exit(self, code: int) -> None:
        """Simulate the exit of the process."""
        self.event("exit", code=code)

    def next_event(self) -> tuple[str, dict[str, Any]]:
        """Wait for the next event of the proxy."""
        return messages.decode_event(next(frame for frame in self.frames if frame[1] == EVENT)[2])

    def next_data(self) -> tuple[int, bytes | None]:
        """Wait for the next input of the process: the descriptor and the bytes, None at the end."""
        stream, kind, payload = next(frame for frame in self.frames if frame[1] in (DATA, EOF))
        return stream - STREAMS, payload if kind == DATA else None

    def await_end(self) -> None:
        """Read until the proxy closes the connection. Raises OSError if it does not."""
        for _ in self.frames:
            continue


class Pipes:
    """Pipes for the stdio of a proxy, as a context manager: write to ``stdin``, read from ``stdout`` and ``stderr``."""

    def __enter__(self) -> Pipes:
        self._theirs, self._ours = [], []
        for number in range(3):
            reading, writing = os.pipe()
            self._theirs.append(writing if number else reading)
            self._ours.append(reading if number else writing)
        self.stdin, self.stdout, self.stderr = self._ours
        return self

    def start(self, monitor: FakeMonitor, **options: Any) -> ProxyProcess:
        """Start a proxy with these pipes as its stdio; only the proxy keeps the other ends."""
        words: dict[str, Any] = {"terminal": -1, "command": ["true"]} | options
        proxy = ProxyProcess(monitor.store, "key", stdio=tuple(self._theirs), **words)
        self._close(self._theirs)
        return proxy

    def end(self, fd: int) -> None:
        """Close one of the test's ends."""
        os.close(fd)
        self._ours.remove(fd)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(self._ours)
        self._close(self._theirs)

    @staticmethod
    def _close(descriptors: list[int]) -> None:
        while descriptors:
            os.close(descriptors.pop())


def read_all(fd: int) -> bytes:
    """Read up to the end of file."""
    data = b""
    while piece := os.read(fd, 65536):
        data += piece
    return data
