"""``monitor.sock``, with which commands and proxies call the monitor. It uses the link's frames.

The first frame of a connection is a call. After the call ``proxy`` the connection belongs to a proxy. Every other call
gets one answer, and the connection ends.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Any

import msgspec

from hawse.errors import HawseError, LinkError, VmError
from hawse.host.mounts.open_sources import Source
from hawse.host.mounts.origins import Origin
from hawse.json_text import Document
from hawse.link import messages
from hawse.link.frames import CALL, MAX_DATA, Decoder, Frame
from hawse.link.streams import directions
from hawse.linux import processes
from hawse.monitor.processes.process_table import LOST
from hawse.monitor.processes.proxy_connections import Proxy
from hawse.monitor.sandbox import Sandbox
from hawse.oci.process.inherited import Inherited
from hawse.plan.model import Attachment, ContainerPlan


class Service:
    """Serves the listening socket that the command bound."""

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
            number, method, params = messages.decode_call(payload)
        except (LinkError, OSError):
            writer.close()
            return
        ready: asyncio.Future[str] | None = None
        done = False
        try:
            if method == "proxy":
                self._attach(params, Proxy(reader, writer, decoder, frames[1:], process=_peer(writer)))
                return
            if method == "start" and params.get("notify"):
                ready = self._sandbox.find(str(params["container"])).notices.await_ready()
            with closing(_peer(writer)) as caller:
                work = asyncio.create_task(self._carry_out(method, params, caller=caller))
                if method == "create":
                    await self._unless_gone(work, reader)
                frame = messages.encode_result(number, await work)
                done = True
        except asyncio.CancelledError:
            writer.close()
            return
        except HawseError as error:
            frame = messages.encode_error(number, error)
        except Exception as error:
            # asyncio does not close the connection (Python 3.11 asyncio/streams.py, connection_made()): without an
            # answer the caller would wait forever.
            traceback.print_exc()
            failure = VmError(
                f"monitor: {method}: {type(error).__name__}: {error}", hint="see the traceback in monitor.log"
            )
            frame = messages.encode_error(number, failure)
        writer.write(frame)
        if ready is not None and done:
            await self._tell_ready(ready, reader, writer)
        elif ready is not None:
            ready.cancel()
        if self._sandbox.finished.is_set() and method == "delete":
            # The caller waits for the end of this connection, when the monitor exits.
            return
        writer.close()

    async def _tell_ready(
        self, ready: asyncio.Future[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send the event "ready" when the container is ready or has ended, unless the caller disconnects first."""
        gone = asyncio.create_task(reader.read(1))
        await asyncio.wait((ready, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if ready.done():
            writer.write(messages.encode_event("ready", {"notice": ready.result()}))
        ready.cancel()

    async def _unless_gone(self, work: asyncio.Task[object], reader: asyncio.StreamReader) -> None:
        """Wait for the work. Cancel it if the caller disconnects first."""
        gone = asyncio.create_task(reader.read(1))
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
        gone.cancel()

    def _attach(self, params: Document, proxy: Proxy) -> None:
        proxy.directions = directions(params["descriptors"])
        if "rows" in params:
            proxy.size = (int(params["rows"]), int(params["columns"]))
        if "failure" in params:
            self._sandbox.processes.fail(str(params["key"]), str(params["failure"]))
            proxy.exit(LOST)
        else:
            self._sandbox.processes.announce(str(params["key"]), proxy)

    async def _carry_out(self, method: str, params: Document, *, caller: processes.Process) -> object:
        if method == "create":
            return await self._create(params, caller)
        if method not in CALLS:
            raise VmError(f"the monitor has no method {method}")
        return await CALLS[method](self._sandbox, str(params["container"]), params)

    async def _create(self, params: Document, caller: processes.Process) -> object:
        """Create one more container. Its shared directories are descriptors of the caller."""
        # JSON has string keys, here for group numbers.
        plan = msgspec.convert(params["plan"], ContainerPlan, str_keys=True)
        sources = params["sources"]
        origins = [msgspec.convert(each["origin"], Origin) for each in sources]
        try:
            trees = caller.take_descriptors([int(each["tree"]) for each in sources])
        except OSError as error:
            raise VmError(f"the monitor cannot take the shared directories of {plan.id}: {error.strerror}") from None
        try:
            reused = [bool(each.get("reused")) for each in sources]
            opened = [Source(*each) for each in zip(trees, origins, reused, strict=True)]
            return await self._sandbox.add(plan, opened, key=str(params["key"]))
        finally:
            for tree in trees:
                os.close(tree)


async def _room(sandbox: Sandbox, _name: str, _params: Document) -> object:
    return msgspec.to_builtins(sandbox.room)


async def _wants_files(sandbox: Sandbox, name: str, _params: Document) -> object:
    return sandbox.find(name).attachments.wants_files


async def _go_on(sandbox: Sandbox, _name: str, _params: Document) -> None:
    sandbox.go_on()


async def _execute(sandbox: Sandbox, name: str, params: Document) -> object:
    inherited = msgspec.convert(params.get("caller", {}), Inherited)
    return await sandbox.find(name).execute(str(params["key"]), params["process"], inherited)


def _usage(method: str) -> Handler:
    return lambda sandbox, name, params: sandbox.find(name).usage.answer(method, params)


Handler = Callable[[Sandbox, str, Document], Coroutine[Any, Any, object]]
#: The calls that need only the sandbox, the name of a container and parameters. ``create`` also takes descriptors.
CALLS: dict[str, Handler] = {
    "room": _room,
    "wants_files": _wants_files,
    "await_machine": lambda sandbox, _name, _params: sandbox.await_machine(),
    "go_on": _go_on,
    "start": lambda sandbox, name, _params: sandbox.start(name),
    "exec": _execute,
    "kill": lambda sandbox, name, params: sandbox.find(name).kill(int(params["signal"]), everyone=bool(params["all"])),
    "pause": lambda sandbox, name, _params: sandbox.find(name).pause(),
    "resume": lambda sandbox, name, _params: sandbox.find(name).resume(),
    "update": lambda sandbox, name, params: sandbox.update(name, params["resources"]),
    "delete": lambda sandbox, name, _params: sandbox.remove(name),
    "attach": lambda sandbox, name, params: sandbox.attach(name, msgspec.convert(params, Attachment)),
    "detach": lambda sandbox, name, params: sandbox.find(name).detach(
        int(params["group"]), force=bool(params["force"])
    ),
    **{method: _usage(method) for method in ("pids", "listing", "statistics", "await_oom")},
}


def _peer(writer: asyncio.StreamWriter) -> processes.Process:
    return processes.peer(writer.get_extra_info("socket"))
