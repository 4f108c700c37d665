"""QEMU's end of a QMP connection, with answers from a function."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

Message = dict[str, Any]
_GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}}


class QmpServer:
    """Answers each command with the result of ``answer``: a message, or None for no answer."""

    def __init__(self, answer: Callable[[str, Message], Message | None]) -> None:
        self.commands: list[tuple[str, Message]] = []
        self.descriptors = 0
        self._answer = answer

    async def serve(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self.send(_GREETING)
        text = ""
        while data := await self._receive():
            text = (text + data.decode()).lstrip()
            while text:
                try:  # the client does not terminate messages, and QEMU's parser does not need it
                    message, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                self._react(message)

    def _react(self, message: Message) -> None:
        name, arguments = message["execute"], message.get("arguments", {})
        answer: Message | None = {"return": {}}
        if name != "qmp_capabilities":
            self.commands.append((name, arguments))
            answer = self._answer(name, arguments)
        if answer is not None:
            self.send(answer | ({"id": message["id"]} if "id" in message else {}))

    async def _receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._connection, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._connection)
        data, fds, _, _ = socket.recv_fds(self._connection, 65536, 4)
        self.descriptors += len(fds)
        for fd in fds:
            os.close(fd)
        return data

    def send(self, message: Message) -> None:
        """Send a message, such as an event."""
        self.send_line(json.dumps(message).encode())

    def send_line(self, line: bytes) -> None:
        """Send arbitrary bytes as a message."""
        self._connection.sendall(line + b"\r\n")

    def close(self) -> None:
        """Close the connection, as a dying QEMU does."""
        self._connection.close()


@asynccontextmanager
async def serving(server: QmpServer) -> AsyncIterator[socket.socket]:
    """The client's end of a connection to the server."""
    ours, theirs = socket.socketpair()
    task = asyncio.ensure_future(server.serve(theirs))
    try:
        yield ours
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        ours.close()
        theirs.close()
