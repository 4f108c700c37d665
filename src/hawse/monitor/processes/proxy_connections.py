"""Connections of proxies. Each proxy passes stdio and the exit code of one process in a container to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from hawse.errors import LinkError
from hawse.link import messages
from hawse.link.frames import CREDIT, DATA, EOF, EVENT, MAX_DATA, Decoder, Frame, encode
from hawse.link.streams import STDIO, STREAMS
from hawse.linux.processes import Process
from hawse.monitor.agent.guest_link import Route

#: The number of a proxy's one process in its frames.
LOCAL = 1
#: Notifications are dropped while more bytes than this wait for the proxy. Credit bounds all other data.
_MOST_QUEUED = 2 * 1024 * 1024


class Proxy:
    """The monitor's side of one proxy; a :class:`hawse.monitor.agent.guest_link.Sink` for the process's frames."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decoder: Decoder,
        backlog: list[Frame],
        *,
        process: Process,
    ) -> None:
        self.process = process
        self.size: tuple[int, int] | None = None
        self.directions: tuple[str, ...] = STDIO
        self._decoder = decoder
        self._backlog = backlog  # frames that arrived together with the call `proxy`
        self._reader = reader
        self._writer = writer
        self._finished = False

    @property
    def pid(self) -> int:
        """Its pid on the host. The kernel may reuse it after the proxy has ended."""
        return self.process.pid

    def send(self, stream: int, kind: int, payload: bytes) -> None:
        """Forward a frame of the guest."""
        if not self._writer.is_closing():
            self._writer.write(encode(LOCAL * STREAMS + stream, kind, payload))

    def placed(self) -> None:
        """Report to the proxy that it was moved into the container's cgroup."""
        if not self._writer.is_closing():
            self._writer.write(messages.encode_event("placed", {}))

    def notify(self, notice: str) -> None:
        """Pass on a notification. A proxy that does not read, for example a stopped one, misses it."""
        if not self._writer.is_closing() and self._writer.transport.get_write_buffer_size() < _MOST_QUEUED:
            self._writer.write(messages.encode_event("notify", {"notice": notice}))

    def exit(self, code: int) -> None:
        """Send the exit code: the process has ended, and all of its output was forwarded."""
        self._finished = True
        if not self._writer.is_closing():
            self._writer.write(messages.encode_event("exit", {"code": code}))
            self._writer.close()

    async def closed(self) -> None:
        """Wait until the proxy has read everything, or has ended."""
        with suppress(OSError):
            await self._writer.wait_closed()

    async def serve(
        self,
        route: Route,
        *,
        on_signal: Callable[[int], object],
        on_resize: Callable[[int, int], None],
        on_loss: Callable[[], object],
    ) -> None:
        """Forward the proxy's frames until it disconnects. Calls ``on_loss`` if its process has not ended by then."""
        try:
            frames = self._backlog
            while True:
                for stream, kind, payload in frames:
                    if kind == EVENT:
                        name, params = messages.decode_event(payload)
                        if name == "signal":
                            on_signal(int(params["number"]))
                        elif name == "resize":
                            on_resize(int(params["rows"]), int(params["columns"]))
                    elif kind in (DATA, CREDIT, EOF) and stream // STREAMS == LOCAL:
                        if not self._finished:
                            route.from_proxy(stream % STREAMS, kind, payload)
                    else:
                        raise LinkError(f"link: a proxy sent a frame of type {kind} on stream {stream}")
                piece = await self._reader.read(MAX_DATA)
                if not piece:
                    break
                frames = self._decoder.feed(piece)
        except (LinkError, OSError, KeyError, TypeError, ValueError):
            pass  # handled like the death of the proxy
        if not self._finished:
            route.discard()
            on_loss()
        self._writer.close()
        # This object is in a reference cycle. Without this line a pod would collect descriptors of ended proxies until
        # Python's next garbage collection. A thread may be using the descriptor, so it is not closed here.
        self.process = Process(self.process.pid, -1)
