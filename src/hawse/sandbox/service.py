"""``monitor.sock``: where the command line and the proxies talk to the monitor, in frames of the link.

The first frame of a connection is a call. ``proxy`` turns the connection into a proxy's; every other call is
answered once, and the connection ends.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import asdict
from typing import Any

import msgspec

from hawse.errors import HawseError, LinkError, UsageError, VmError
from hawse.link import control
from hawse.link.frames import CALL, MAX_DATA, Decoder, Frame
from hawse.sandbox.plan import Attachment
from hawse.sandbox.proxies import Proxy
from hawse.sandbox.sandbox import Sandbox


class Service:
    """Answers on the listening socket that the command line bound."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        decoder = Decoder()
        frames: list[Frame] = []
        try:
            while not frames:
                piece = await reader.read(MAX_DATA)
                if not piece:
                    writer.close()
                    return
                frames = decoder.feed(piece)
            _, kind, payload = frames[0]
            if kind != CALL:
                raise LinkError("link: a connection to the monitor begins with one call")
            number, method, params = control.decode_call(payload)
        except (LinkError, OSError):
            writer.close()
            return
        try:
            if method == "proxy":
                self._attach(params, Proxy(reader, writer, decoder, frames[1:], pid=_peer_pid(writer)))
                return
            frame = control.encode_result(number, await self._carry_out(method, params))
        except HawseError as error:
            frame = control.encode_error(number, error)
        except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
            frame = control.encode_error(number, UsageError(f"monitor: {method}: {type(error).__name__}: {error}"))
        writer.write(frame)
        if method == "delete":
            # Its caller waits for the end of this connection, which is the end of the monitor.
            self._sandbox.finished.set()
            return
        writer.close()

    def _attach(self, params: dict[str, Any], proxy: Proxy) -> None:
        if "rows" in params:
            proxy.size = (int(params["rows"]), int(params["columns"]))
        self._sandbox.announce(str(params["key"]), proxy)

    async def _carry_out(self, method: str, params: dict[str, Any]) -> object:
        if method == "exec":
            return await self._sandbox.execute(str(params["key"]), params["process"])
        if method == "ports":
            return [asdict(port) for port in self._sandbox.attachments.spares]
        if method == "wants_files":
            return self._sandbox.attachments.wants_files
        if method == "attach":
            return await self._sandbox.attach(msgspec.convert(params, Attachment))
        if method == "start":
            await self._sandbox.start()
        elif method == "kill":
            await self._sandbox.kill(int(params["signal"]), everyone=bool(params["all"]))
        elif method == "detach":
            await self._sandbox.detach(int(params["group"]), force=bool(params["force"]))
        elif method != "delete":
            raise VmError(f"the monitor has no method {method}")
        return None


def _peer_pid(writer: asyncio.StreamWriter) -> int:
    """The pid at the other end, from the kernel and not from the peer's own words (unix(7), SO_PEERCRED)."""
    peer: socket.socket = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid
