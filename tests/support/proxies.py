"""The monitor's end of a proxy: the frames that a process of the guest would cause."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from hawse.container.launch import ProxyProcess
from hawse.link import control
from hawse.link.blocking import Port
from hawse.link.frames import DATA, EOF, EVENT, Frame, encode
from hawse.link.streams import STREAMS
from tests.support.fake_monitor import FakeMonitor
from tests.support.patience import patience


class Attached:
    """A connection that a proxy has made, as a context: the next of ``monitor``; ``params`` are those of its call."""

    def __init__(self, monitor: FakeMonitor) -> None:
        self.connection: socket.socket
        self.connection, self.params = monitor.proxies.get(timeout=patience(10))
        # Port reads the descriptor without Python's timeout: this one is the kernel's.
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
        """The process writes."""
        self.port.send(encode(STREAMS + descriptor, DATA, data))

    def close(self, descriptor: int) -> None:
        """The process closes a descriptor."""
        self.port.send(encode(STREAMS + descriptor, EOF))

    def event(self, name: str, **params: Any) -> None:
        """Something happens to the process."""
        self.port.send(control.encode_event(name, params))

    def exit(self, code: int) -> None:
        """The process ends."""
        self.event("exit", code=code)

    def next_event(self) -> tuple[str, dict[str, Any]]:
        """The next event of the proxy."""
        return control.decode_event(next(frame for frame in self.frames if frame[1] == EVENT)[2])

    def next_data(self) -> tuple[int, bytes | None]:
        """What comes next for the process: the descriptor and the bytes, None for their end."""
        stream, kind, payload = next(frame for frame in self.frames if frame[1] in (DATA, EOF))
        return stream - STREAMS, payload if kind == DATA else None

    def await_end(self) -> None:
        """Read until the proxy is gone. Raises OSError where it stays."""
        for _ in self.frames:
            continue


class Pipes:
    """Stdio of a proxy as pipes, as a context: ``stdin`` is written, ``stdout`` and ``stderr`` are read."""

    def __enter__(self) -> Pipes:
        self._theirs, self._ours = [], []
        for number in range(3):
            reading, writing = os.pipe()
            self._theirs.append(writing if number else reading)
            self._ours.append(reading if number else writing)
        self.stdin, self.stdout, self.stderr = self._ours
        return self

    def start(self, monitor: FakeMonitor, **options: Any) -> ProxyProcess:
        """A proxy with these as its stdio, which has the other ends alone then."""
        words: dict[str, Any] = {"terminal": False, "command": ["true"]} | options
        proxy = ProxyProcess(monitor.store, "key", stdio=tuple(self._theirs), **words)
        self._close(self._theirs)
        return proxy

    def end(self, fd: int) -> None:
        """Close one of ours."""
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
    """Everything up to the end."""
    data = b""
    while piece := os.read(fd, 65536):
        data += piece
    return data
