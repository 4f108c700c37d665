"""Both ends of a forwarded connection: the writer of the host's side, and a link whose agent connects to any port."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from hawse.errors import HawseError
from hawse.monitor.agent.calls import Call, name_of, parameters
from hawse.monitor.agent.guest_link import GuestLink, Route
from hawse.monitor.processes.connection import Connection


class FakeWriter:
    """The host's side, which blocks its writer until ``reads`` is set."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = False
        self.reads = asyncio.Event()
        self.aborted = False
        self.options: list[tuple[object, ...]] = []

    @property
    def transport(self) -> FakeWriter:
        """The object itself, which has abort()."""
        return self

    def get_extra_info(self, name: str) -> FakeWriter:
        """The object itself, which has setsockopt()."""
        assert name == "socket"
        return self

    def setsockopt(self, *option: object) -> None:
        self.options.append(option)

    def abort(self) -> None:
        self.aborted = True

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        await self.reads.wait()

    def write_eof(self) -> None:
        self.ended = True


class RoutedLink:
    """The guest's side. A call is answered once ``gate`` is set, with the error ``refusal`` if it is set."""

    def __init__(self, *, refusal: HawseError | None = None) -> None:
        self.on_exit: Any = None
        self.sent: list[bytes] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.forgotten: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._refusal = refusal

    def route(self, number: int, sink: Connection) -> Route:
        self.routed = Route(cast(GuestLink, self), number, sink)
        return self.routed

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)

    def forget(self, number: int) -> None:
        self.forgotten.append(number)

    async def call(self, call: Call[None], *, seconds: float) -> None:
        assert seconds == 1
        self.calls.append((name_of(call), parameters(call)))
        await self.gate.wait()
        if self._refusal is not None:
            raise self._refusal
