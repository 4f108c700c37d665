"""QEMU, virtiofsd and the guest, simulated by the test at the real interfaces: processes, sockets, QMP and the link.

The code under test starts ``FakeHost.qemu`` and ``FakeHost.virtiofsd`` as its programs. Each is
tests/support/puppet.py, which passes its descriptors to the test. The test answers QMP commands as QEMU does, and calls
of the link as the agent does.
"""

from __future__ import annotations

import array
import asyncio
import itertools
import json
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any

from hawse.errors import HawseError
from hawse.link import messages
from hawse.link.agreed import PROTOCOL
from hawse.link.frames import CALL, Decoder, Frame
from hawse.state import sockets
from tests.support.async_wait import until
from tests.support.patience import patience

_PUPPET = os.path.join(os.path.dirname(os.path.abspath(__file__)), "puppet.py")
_GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}
#: Longer than any test: a wait of this length is a hang.
SECONDS = patience(10)
#: The guest's answer for a function that is bound to VFIO.
BOUND = {"group": 3, "major": 511, "minor": 0, "bars": []}
#: The guest's CLOCK_MONOTONIC when it is woken.
GUEST_NS = 5_000_000_000


class FakeHost:
    """The programs in ``directory``, and the answers of QEMU and the guest. ``machines``: the VMs that were started.

    ``refused``: QMP commands that fail, each with QEMU's description. ``errors``: the guest's errors by method.
    ``answers``: the results of its other methods. ``held``: commands of QMP and calls of the guest that are answered
    once their event is set. ``raw``: functions by method that return the bytes to send instead of an answer,
    from the number of the call.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.qemu, self.virtiofsd = f"{directory}/qemu", f"{directory}/virtiofsd"
        for program in (self.qemu, self.virtiofsd):
            os.symlink(_PUPPET, program)
        self.machines: list[FakeMachine] = []
        self.daemons: list[Puppet] = []
        self.refused: dict[str, str] = {}
        self.errors: dict[str, HawseError] = {}
        self.answers: dict[str, object] = {"wake": {"monotonic_ns": GUEST_NS}}
        self.held: dict[str, asyncio.Event] = {}
        self.raw: dict[str, Callable[[int], bytes]] = {}
        #: Whether QEMU sends its greeting, whether the guest reports its boot, and the protocol version in the report.
        self.greets, self.reports, self.protocol = True, True, PROTOCOL
        #: The state that QEMU migrates when a VM is saved, and the migration's status at each query.
        self.state, self.migrations = b"state of the CPUs", ["active", "completed"]
        self._listener = sockets.bind(directory, "programs.sock")
        self._connections: list[socket.socket] = []
        self._arriving: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> FakeHost:
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        for arriving in self._arriving:
            arriving.cancel()
        problems = [await outcome(arriving) for arriving in self._arriving]
        problems += [await machine.close() for machine in self.machines]
        for daemon in self.daemons:
            daemon.close()
        for connection in (*self._connections, self._listener):
            connection.close()
        for problem in filter(None, problems):
            raise problem from value

    async def machine(self, number: int = 0) -> FakeMachine:
        """Wait for the VM with that number to be started."""
        await until(lambda: len(self.machines) > number)
        return self.machines[number]

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self._connections.append(connection)
        self._arriving.append(asyncio.create_task(self._meet(connection)))

    async def _meet(self, connection: socket.socket) -> None:
        data, fds = await receive(connection)
        if not data:
            return  # it was killed before it had passed its descriptors
        puppet = Puppet(connection, data, fds)
        if puppet.facts["name"] == "qemu":
            machine = FakeMachine(self, puppet)
            self.machines.append(machine)
            machine.begin()
        else:
            self.daemons.append(puppet)


class Puppet:
    """A running program: ``facts`` of tests/support/puppet.py, and copies of its descriptors by number."""

    def __init__(self, connection: socket.socket, data: bytes, fds: list[int]) -> None:
        self.facts: dict[str, Any] = json.loads(data)
        self.argv: list[str] = self.facts["argv"]
        self.pid: int = self.facts["pid"]
        self.fds = dict(zip(self.facts["numbers"], fds, strict=True))
        self._connection = connection

    async def write(self, stderr: str) -> None:
        """Let the program write to its stderr; returns when it has done so."""
        self._connection.setblocking(False)
        self._connection.sendall(json.dumps({"stderr": stderr}).encode() + b"\n")
        await asyncio.get_running_loop().sock_recv(self._connection, 1)

    def end(self, **order: Any) -> None:
        """End the program: it writes ``stderr``, then exits with code ``exit``, or is killed by ``signal`` instead.

        ``lingers``: seconds between closing its descriptors and its exit.
        """
        self._connection.setblocking(True)
        self._connection.sendall(json.dumps(order).encode() + b"\n")

    def close(self) -> None:
        """Close what is left."""
        self._connection.close()
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


class FakeMachine:
    """One QEMU and its guest. ``commands``: QMP commands. ``calls``: calls of the link. ``frames``: other frames.

    ``incoming``: the state from which the VM was restored.
    """

    def __init__(self, host: FakeHost, program: Puppet) -> None:
        self.program = program
        self.argv = program.argv
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.frames: list[Frame] = []
        self.running = "-incoming" not in self.argv
        self.incoming = b""
        self.ram = program.fds.pop(self._number("mem-path=/proc/self/fd/"))
        self._host = host
        self._qmp, self._link, self.console = (
            socket.socket(fileno=program.fds.pop(self._number(f"id={name},fd="))) for name in ("qmp", "link", "console")
        )
        self._given: dict[str, int] = {}
        self._waiting: list[int] = []
        self._copies = [self.ram]
        self._serving: list[asyncio.Task[None]] = []
        self._states: Iterator[str] = iter(["running"] if self.running else ["inmigrate", "inmigrate"])
        self._migrations = list(host.migrations)
        self._answers: set[asyncio.Task[None]] = set()

    def asked(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all calls of a method."""
        return [params for name, params in self.calls if name == method]

    def executed(self) -> list[str]:
        """The names of the QMP commands so far."""
        return [name for name, _ in self.commands]

    def tell(self, event: str, **params: Any) -> None:
        """Send an event of the guest."""
        self.write(messages.encode_event(event, params))

    def write(self, data: bytes) -> None:
        """Send bytes of the guest on the link."""
        self._link.setblocking(True)
        self._link.sendall(data)
        self._link.setblocking(False)

    async def flood(self, data: bytes) -> None:
        """Send bytes of the guest on the link as fast as they are read. Raises ConnectionError when the link ends."""
        await asyncio.get_running_loop().sock_sendall(self._link, data)

    def stop_reading(self) -> None:
        """Stop the guest's reading of its link."""
        self._serving[1].cancel()

    async def report(self, events: bytes) -> None:
        """Send events of QEMU. Raises ConnectionError when QMP ends."""
        await asyncio.get_running_loop().sock_sendall(self._qmp, events)

    def cut_link(self) -> None:
        """Close the guest's end of the link; QEMU keeps running."""
        self._link.shutdown(socket.SHUT_RDWR)

    def begin(self) -> None:
        """Answer."""
        self._serving = [asyncio.create_task(self._serve_qmp()), asyncio.create_task(self._serve_link())]

    async def end(self, **order: Any) -> None:
        """End QEMU as :meth:`Puppet.end` does. Its ends of the sockets are closed before, as the kernel does."""
        assert await self._release() is None
        self.program.end(**order)

    async def stop(self, state: str, *, stderr: str = "", reported: bool = True) -> None:
        """Stop the VM without a command, as QEMU does for an error; ``state`` is then its run state.

        ``reported``: with an event, as after the negotiation of QMP.
        """
        await self.program.write(stderr)
        self._states = itertools.repeat(state)
        if reported:
            await self._say({"event": "STOP", "data": {}, "timestamp": {}})

    async def close(self) -> BaseException | None:
        """Close everything that is left of the VM; returns errors of its tasks."""
        problem = await self._release()
        self.program.close()
        return problem

    async def _release(self) -> BaseException | None:
        tasks = [*self._serving, *self._answers]
        for task in tasks:
            task.cancel()
        problems = [await outcome(task) for task in tasks]
        for end in (self._link, self._qmp, self.console):
            end.close()
        while self._copies:
            os.close(self._copies.pop())
        return next(filter(None, problems), None)

    async def _serve_qmp(self) -> None:
        """Answer QMP commands until the connection ends (QEMU docs/interop/qmp-spec.rst)."""
        self._qmp.setblocking(False)
        if self._host.greets:
            await self._say(_GREETING)
        text = ""
        while True:
            data, fds = await receive(self._qmp, whole=False)
            if not data:
                return
            self._waiting += fds
            self._copies += fds
            text += data.decode()
            while text := text.lstrip():
                try:
                    request, length = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break  # the rest of the message is in transit
                text = text[length:]
                await self._command(request)

    async def _serve_link(self) -> None:
        """Answer calls as the agent does, once the guest has booted."""
        loop = asyncio.get_running_loop()
        self._link.setblocking(False)
        await until(lambda: self.running)
        if not self.incoming and self._host.reports:
            self.tell("hello", protocol=self._host.protocol)
        decoder = Decoder()
        while data := await loop.sock_recv(self._link, 65536):
            for frame in decoder.feed(data):
                if frame[1] == CALL:
                    self._begin(self._answer(*messages.decode_call(frame[2])))
                else:
                    self.frames.append(frame)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _migrate(self, fd: int) -> None:
        self._copies.remove(fd)
        with socket.socket(fileno=fd) as target:
            target.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(target, self._host.state)

    async def _answer(self, number: int, method: str, params: dict[str, Any]) -> None:
        self.calls.append((method, params))
        if method in self._host.held:
            await self._host.held[method].wait()
        if method in self._host.raw:
            self.write(self._host.raw[method](number))
        elif method in self._host.errors:
            self.write(messages.encode_error(number, self._host.errors[method]))
        else:
            self.write(messages.encode_result(number, self._host.answers.get(method)))

    async def _command(self, request: dict[str, Any]) -> None:
        name, arguments = str(request["execute"]), request.get("arguments", {})
        if name != "qmp_capabilities":
            self.commands.append((name, arguments))
        named = {"id": request["id"]} if "id" in request else {}
        if name in self._host.held:
            await self._host.held[name].wait()
        if name in self._host.refused:
            await self._say(named | {"error": {"class": "GenericError", "desc": self._host.refused[name]}})
            return
        await self._say(named | {"return": await self._carry_out(name, arguments)})
        if name == "device_del":
            await self._say({"event": "DEVICE_DELETED", "data": {"device": arguments["id"]}, "timestamp": {}})

    async def _carry_out(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        if name == "getfd":
            self._given[arguments["fdname"]] = self._waiting.pop(0)
        elif name in ("stop", "cont"):
            self.running = name == "cont"
        elif name == "query-status":
            state = next(self._states, "paused")
            if state == "inmigrate":
                with socket.socket(fileno=os.dup(self._given["state"])) as source:
                    source.setblocking(False)
                    while data := await loop.sock_recv(source, 65536):
                        self.incoming += data
            return {"status": state}
        elif name == "migrate":
            self._begin(self._migrate(self._given.pop("state")))
        elif name == "query-migrate":
            return {"status": self._migrations.pop(0)}
        return {}

    async def _say(self, message: dict[str, Any]) -> None:
        await asyncio.get_running_loop().sock_sendall(self._qmp, json.dumps(message).encode() + b"\n")

    def _number(self, before: str) -> int:
        [word] = [word for word in self.argv if before in word]
        return int(word.partition(before)[2].partition(",")[0])


async def receive(connection: socket.socket, *, whole: bool = True) -> tuple[bytes, list[int]]:
    """The next data of a socket, and the descriptors that arrive with them; ``whole``: read up to the end of a line."""
    data, fds = b"", array.array("i")
    while True:
        try:
            piece, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(256))
        except BlockingIOError:
            await _readable(connection)
            continue
        except ConnectionError:
            piece, ancillary = b"", []
        for _, _, rights in ancillary:
            fds.frombytes(rights)
        data += piece
        if not piece or not whole or data.endswith(b"\n"):
            return data, list(fds)


async def outcome(task: asyncio.Task[None]) -> BaseException | None:
    """The error of a cancelled task, unless it is caused by the end of its peer."""
    await asyncio.wait((task,))
    problem = None if task.cancelled() else task.exception()
    return None if isinstance(problem, ConnectionError) else problem


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
