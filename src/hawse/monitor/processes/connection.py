"""One connection between a socket of the host and one in the guest, as a stream of the link."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from hawse.link.flow import SendWindow, decode_credit, encode_credit
from hawse.link.frames import CREDIT, DATA, EOF, MAX_DATA
from hawse.link.streams import BOTH, STDIO

if TYPE_CHECKING:
    from hawse.monitor.agent.guest_link import Route

#: The stream of a connection is that of the first descriptor after stdio.
STREAM = len(STDIO)
_RESET = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER: close() resets the connection


class Connection:
    """A connection on the host, and the :class:`hawse.monitor.agent.guest_link.Sink` of the guest's data for it."""

    directions: tuple[str, ...] = (*STDIO, BOTH)

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._window = SendWindow()
        self._granted = asyncio.Event()
        self._answer = bytearray()  # bounded by the guest's credit
        self._answered = False
        self._changed = asyncio.Event()
        self.ended = asyncio.Event()
        #: Called when data arrives from either side.
        self.on_data: Callable[[], None] = lambda: None

    def send(self, stream: int, kind: int, payload: bytes) -> None:
        """Accept a frame of the guest. Frames of other streams are dropped, without new credit for them."""
        if stream != STREAM:
            return
        if kind == CREDIT:
            self._window.grant(decode_credit(payload))
            self._granted.set()
            return
        self._answer += payload
        self._answered = kind == EOF
        self.on_data()
        self._changed.set()

    def exit(self) -> None:
        """Mark both directions as ended: the guest has closed the connection."""
        self._answered = True
        self._changed.set()
        self.ended.set()

    async def serve(self, route: Route) -> None:
        """Forward data in both directions until both have ended. Raises OSError when the host's side fails.

        All data of the guest is delivered. Nothing is sent to a guest that has closed the connection.
        """
        sending, ended = asyncio.create_task(self._to_guest(route)), asyncio.create_task(self.ended.wait())
        receiving = asyncio.create_task(self._from_guest(route))

        async def send() -> None:
            await asyncio.wait((sending, ended), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending

        try:
            await asyncio.gather(send(), receiving)
        finally:
            for task in (sending, ended, receiving):
                task.cancel()

    def reset(self) -> None:
        """Reset the connection, so that the program on the host gets an error."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.transport.abort()

    async def close(self) -> None:
        """Write the remaining data, and close the connection."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _to_guest(self, route: Route) -> None:
        while data := await self._reader.read(min(self._window.available, MAX_DATA)):
            self.on_data()
            self._window.spend(len(data))
            route.from_proxy(STREAM, DATA, data)
            while not self._window.available:
                self._granted.clear()
                await self._granted.wait()
        route.from_proxy(STREAM, EOF, b"")

    async def _from_guest(self, route: Route) -> None:
        while self._answer or not self._answered:
            await self._changed.wait()
            self._changed.clear()
            data, self._answer = self._answer, bytearray()
            if data:
                self._writer.write(data)
                await self._writer.drain()
                route.from_proxy(STREAM, CREDIT, encode_credit(len(data)))
        self._writer.write_eof()
