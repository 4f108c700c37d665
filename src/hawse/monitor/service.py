"""``monitor.sock``: where the command line and the proxies talk to the monitor, in frames of the link.

The first frame of a connection is a call. ``proxy`` turns the connection into a proxy's; every other call is
answered once, and the connection ends.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from contextlib import closing
from typing import Any

import msgspec

from hawse.errors import HawseError, LinkError, UsageError, VmError
from hawse.host.mounts.bind_sources import Source
from hawse.host.mounts.origins import Origin
from hawse.link import control
from hawse.link.frames import CALL, MAX_DATA, Decoder, Frame
from hawse.link.streams import directions
from hawse.linux import processes
from hawse.monitor.processes.processes import LOST
from hawse.monitor.processes.proxy_connections import Proxy
from hawse.monitor.sandbox import Sandbox
from hawse.oci.process.inherited import Inherited
from hawse.plan.model import Attachment, ContainerPlan


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
                frame = control.encode_result(number, await work)
                done = True
        except asyncio.CancelledError:
            writer.close()
            return
        except HawseError as error:
            frame = control.encode_error(number, error)
        except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
            frame = control.encode_error(number, UsageError(f"monitor: {method}: {type(error).__name__}: {error}"))
        except Exception as error:
            # Nothing else ends the connection (Python 3.11 asyncio/streams.py, connection_made()): without an answer
            # its other end would wait for ever.
            traceback.print_exc()
            failure = VmError(f"monitor: {method}: {type(error).__name__}: {error}", hint="monitor.log shows where")
            frame = control.encode_error(number, failure)
        writer.write(frame)
        if ready is not None and done:
            await self._tell_ready(ready, reader, writer)
        elif ready is not None:
            ready.cancel()
        if self._sandbox.finished.is_set() and method == "delete":
            # Its caller waits for the end of this connection, which is the end of the monitor.
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
            writer.write(control.encode_event("ready", {"notice": ready.result()}))
        ready.cancel()

    async def _unless_gone(self, work: asyncio.Task[object], reader: asyncio.StreamReader) -> None:
        """Wait for the work; a caller that goes meanwhile has it undone."""
        gone = asyncio.create_task(reader.read(1))
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
        gone.cancel()

    def _attach(self, params: dict[str, Any], proxy: Proxy) -> None:
        proxy.directions = directions(params["descriptors"])
        if "rows" in params:
            proxy.size = (int(params["rows"]), int(params["columns"]))
        if "failure" in params:
            self._sandbox.processes.fail(str(params["key"]), str(params["failure"]))
            proxy.exit(LOST)
        else:
            self._sandbox.processes.announce(str(params["key"]), proxy)

    async def _carry_out(self, method: str, params: dict[str, Any], *, caller: processes.Process) -> object:
        sandbox, name = self._sandbox, str(params["container"])
        if method == "create":
            return await self._create(params, caller)
        if method == "room":
            return msgspec.to_builtins(sandbox.room)
        if method == "wants_files":
            return sandbox.find(name).attachments.wants_files
        if method == "start":
            return await sandbox.start(name)
        if method == "await_machine":
            await sandbox.await_machine()
        elif method == "go_on":
            sandbox.go_on()
        elif method == "pause":
            await sandbox.find(name).pause()
        elif method == "resume":
            await sandbox.find(name).resume()
        elif method in ("pids", "listing", "statistics", "await_oom"):
            return await sandbox.find(name).usage.answer(method, params)
        elif method == "update":
            return await sandbox.update(name, params)
        elif method == "delete":
            await sandbox.remove(name)
        elif method == "exec":
            inherited = msgspec.convert(params.get("caller", {}), Inherited)
            return await sandbox.find(name).execute(str(params["key"]), params["process"], inherited)
        elif method == "attach":
            return await sandbox.attach(name, msgspec.convert(params, Attachment))
        elif method == "kill":
            await sandbox.find(name).kill(int(params["signal"]), everyone=bool(params["all"]))
        elif method == "detach":
            await sandbox.find(name).detach(int(params["group"]), force=bool(params["force"]))
        else:
            raise VmError(f"the monitor has no method {method}")
        return None

    async def _create(self, params: dict[str, Any], caller: processes.Process) -> object:
        """One more container, whose shared directories are descriptors of the caller's."""
        # In JSON the numbers of groups, as keys, are strings.
        wanted = msgspec.convert(params["plan"], ContainerPlan, str_keys=True)
        given = params["sources"]
        origins = [msgspec.convert(each["origin"], Origin) for each in given]
        try:
            trees = caller.take_descriptors([int(each["tree"]) for each in given])
        except OSError as error:
            raise VmError(f"the monitor cannot take what {wanted.id} shares: {error.strerror}") from None
        try:
            reused = [bool(each.get("reused")) for each in given]
            sources = [Source(*each) for each in zip(trees, origins, reused, strict=True)]
            return await self._sandbox.add(wanted, sources, key=str(params["key"]))
        finally:
            for tree in trees:
                os.close(tree)


def _peer(writer: asyncio.StreamWriter) -> processes.Process:
    return processes.peer(writer.get_extra_info("socket"))
