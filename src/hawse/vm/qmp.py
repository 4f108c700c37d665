"""QMP: a wrapper around the library qemu.qmp that adds deadlines, a log and hawse's errors."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, Protocol

from qemu.qmp import ConnectError, EventListener, ExecuteError, Message, QMPClient, QMPError
from qemu.qmp.protocol import StateError as NotConnectedError

from hawse.errors import MAX_TEXT, RefusedError, VmError, printable
from hawse.json_text import Document

Event = Document
#: Maximum number of events in a second; only a hostile guest causes more. QEMU limits the rate of some events that a
#: guest can cause, but not of all (monitor/monitor.c, monitor_qapi_event_conf): each write to a CPU hotplug register
#: causes ACPI_DEVICE_OST (hw/acpi/cpu.c, cpu_hotplug_wr()).
MOST_EVENTS = 1000


class Nodes(Protocol):
    """The host's device nodes that a QEMU can open."""

    def admit(self, address: str, *, by_file: bool) -> None:
        """Allow QEMU to open a PCI function's node: its group's, or its device file. Raises :class:`DeviceError`."""

    def dismiss(self, address: str) -> None:
        """Revoke QEMU's access to the nodes of a PCI function."""


class EveryNode:
    """The nodes of a QEMU that is not jailed and sees the host's /dev."""

    def admit(self, address: str, *, by_file: bool) -> None:
        """Nothing to do: QEMU can open every node."""

    def dismiss(self, address: str) -> None:
        """Nothing to do: QEMU's access stays."""


class Qmp:
    """A connection to one QEMU."""

    def __init__(
        self,
        *,
        nodes: Nodes | None = None,
        log: Callable[[bytes], object] = lambda _line: None,
        on_flood: Callable[[VmError], object] = lambda _error: None,
    ) -> None:
        """``nodes``: the device nodes that this QEMU can open. ``log`` is called with each command and each answer.

        ``on_flood`` is called once, when more than :data:`MOST_EVENTS` arrive in a second: QEMU's memory grows with
        each event that is not read in time.
        """
        self.nodes = nodes or EveryNode()
        self._client = QMPClient("hawse")
        # The client's default listener would store every event forever (qemu.qmp 0.0.6, events.py).
        self._client.events.event_filter = self._take
        # A file descriptor and the command that uses it must not be interleaved with others: QEMU closes an unused
        # descriptor when the next one arrives (chardev/char-socket.c, tcp_chr_recv()).
        self._giving = asyncio.Lock()
        self._log = log
        self._on_flood = on_flood
        self._events, self._since, self._flooded = 0, 0.0, False
        #: Whether a command remained without an answer because the connection ended.
        self.ended = False
        #: Set by each event STOP: QEMU has stopped the VM, and :meth:`status` returns the reason.
        self.stopped = asyncio.Event()

    async def open(self, connection: socket.socket, *, seconds: float) -> None:
        """Negotiate over a connected socket, which this object then owns. Raises :class:`VmError`."""
        connection.setblocking(False)
        try:
            async with asyncio.timeout(seconds):
                await self._client.connect(connection)
        except TimeoutError:
            raise VmError(f"QEMU's monitor did not answer within {seconds:g} s") from None
        except (ConnectError, AssertionError) as error:
            # AssertionError: the connection ended right after the greeting (qemu.qmp 0.0.6, AsyncProtocol.connect()).
            reason = f": {error.exc}" if isinstance(error, ConnectError) and isinstance(error.exc, QMPError) else ""
            raise VmError(f"QEMU's monitor closed before it answered{reason}") from None

    async def execute(self, command: str, arguments: Document, *, timeout: float) -> object:
        """The command's result. Raises :class:`RefusedError` with QEMU's own description, or :class:`VmError`."""
        self._write({"execute": command, "arguments": arguments})
        try:
            async with asyncio.timeout(timeout):
                answer: object = await self._client.execute(command, arguments)
        except TimeoutError:
            raise VmError(f"QEMU did not answer {command} within {timeout:g} s") from None
        except ExecuteError as error:
            self._write({"error": str(error)})
            raise RefusedError(f"{command}: {printable(str(error)[:MAX_TEXT])}") from None
        except (QMPError, NotConnectedError, OSError):
            self._end(command)
        self._write({"return": answer})
        return answer

    async def status(self, *, timeout: float) -> str:
        """The VM's run state: "running", "paused", "inmigrate"... (QEMU qapi/run-state.json, RunState)."""
        answer = await self.execute("query-status", {}, timeout=timeout)
        return str(answer.get("status")) if isinstance(answer, dict) else ""

    async def migration(self, *, timeout: float) -> str:
        """The status of the last migration: "active", "completed", "failed"... (QEMU qapi/migration.json)."""
        answer = await self.execute("query-migrate", {}, timeout=timeout)
        return str(answer.get("status")) if isinstance(answer, dict) else ""

    async def leave_memory_alone(self, *, timeout: float) -> None:
        """Exclude memory that is a shared file from migration."""
        capabilities = [{"capability": "x-ignore-shared", "state": True}]
        await self.execute("migrate-set-capabilities", {"capabilities": capabilities}, timeout=timeout)

    async def give(self, fd: int, name: str, *, timeout: float) -> None:
        """Pass a file descriptor to QEMU, under a name that later commands use."""
        async with self._giving:
            self._send(fd, "getfd")
            await self.execute("getfd", {"fdname": name}, timeout=timeout)

    async def add(self, fd: int, arguments: Document, *, timeout: float) -> None:
        """Pass a file descriptor to QEMU with add-fd, whose arguments contain the number of the fd set."""
        async with self._giving:
            self._send(fd, "add-fd")
            await self.execute("add-fd", arguments, timeout=timeout)

    def listen(self, *names: str) -> Events:
        """Subscribe to events; enter the context before the command that causes them."""
        return Events(self._client, names)

    async def close(self) -> None:
        """Close the connection; QEMU may have exited already.

        The library raises here the exception that ended its reader. A QEMU that a guest has taken over can cause any
        exception by its messages (qemu.qmp 0.0.6: UnicodeDecodeError, RecursionError, TypeError for an id that is a
        list).
        """
        with suppress(Exception):
            await self._client.disconnect()

    def _send(self, fd: int, command: str) -> None:
        try:
            self._client.send_fd_scm(fd)
        except (QMPError, NotConnectedError, OSError):
            self._end(command)

    def _end(self, command: str) -> NoReturn:
        self.ended = True
        raise VmError(f"QEMU ended before it answered {command}") from None

    def _take(self, event: Message) -> bool:
        """Count an event, and note a stop of the VM. Returns False, so that the library does not store the event."""
        if event.get("event") == "STOP":
            self.stopped.set()
        now = asyncio.get_running_loop().time()
        if now - self._since >= 1:
            self._since, self._events = now, 0
        self._events += 1
        if self._events > MOST_EVENTS and not self._flooded:
            self._flooded = True
            self._on_flood(
                VmError(
                    f"QEMU reported more than {MOST_EVENTS} events in a second",
                    hint="a program in the guest causes them; the virtual machine is stopped, since they fill memory",
                )
            )
        return False

    def _write(self, message: dict[str, object]) -> None:
        self._log(json.dumps(message, default=str).encode() + b"\n")


class Events:
    """An event subscription, as a context manager."""

    def __init__(self, client: QMPClient, names: tuple[str, ...]) -> None:
        self._client = client
        self._listener = EventListener(names)

    def __enter__(self) -> Events:
        self._client.register_listener(self._listener)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.remove_listener(self._listener)

    async def wait(self, matches: Callable[[Event], bool], *, seconds: float) -> Event | None:
        """Wait for the first event whose data match; None after ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    data = dict(await self._listener.get()).get("data", {})
                    if isinstance(data, dict) and matches(data):
                        return data
        except TimeoutError:
            return None
