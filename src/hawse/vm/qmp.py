"""QMP: the seam over the library qemu.qmp, with deadlines, a log, and the project's errors."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient, QMPError
from qemu.qmp.protocol import StateError as NotConnectedError

from hawse.errors import MAX_TEXT, RefusedError, VmError, printable

Event = dict[str, Any]
#: More events than this within a second are a guest's doing. QEMU limits the rate of some events, which a guest can
#: cause as often as it likes, and not of all (monitor/monitor.c, monitor_qapi_event_conf): ACPI_DEVICE_OST comes with
#: each write to a register of CPU hotplug (hw/acpi/cpu.c, cpu_hotplug_wr()).
MOST_EVENTS = 1000


class Nodes(Protocol):
    """The device nodes of the host that a QEMU can open."""

    def admit(self, address: str, *, by_file: bool) -> None:
        """Let it open a PCI function's: its group's or its device file. Raises :class:`DeviceError`."""

    def dismiss(self, address: str) -> None:
        """Let it open them no more."""


class EveryNode:
    """Those of a QEMU that runs with the host's own /dev."""

    def admit(self, address: str, *, by_file: bool) -> None:
        """It can open them already."""

    def dismiss(self, address: str) -> None:
        """They stay."""


class Qmp:
    """A connection to one QEMU."""

    def __init__(
        self,
        *,
        nodes: Nodes | None = None,
        log: Callable[[bytes], object] = lambda _line: None,
        on_flood: Callable[[VmError], object] = lambda _error: None,
    ) -> None:
        """``nodes`` are those that this QEMU can open. ``log`` takes each command and answer.

        ``on_flood`` is called once, when more than :data:`MOST_EVENTS` come in a second: QEMU's memory grows with each
        event that is not read in time.
        """
        self.nodes = nodes or EveryNode()
        self._client = QMPClient("hawse")
        # The client's own listener would keep every event for ever (qemu.qmp 0.0.6, events.py).
        self._client.events.event_filter = self._count
        # QEMU drops a descriptor that no command has taken when the next one comes (chardev/char-socket.c,
        # tcp_chr_recv()).
        self._giving = asyncio.Lock()
        self._log = log
        self._on_flood = on_flood
        self._events, self._since, self._flooded = 0, 0.0, False
        #: Whether a command was not answered since the connection had ended.
        self.ended = False

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
            reason = str(error) or "right after its greeting"
            raise VmError(f"QEMU's monitor closed before it answered: {reason}") from None

    async def execute(self, command: str, arguments: dict[str, Any], *, timeout: float) -> object:
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
        except (QMPError, NotConnectedError, OSError) as error:
            self.ended = True
            raise VmError(f"QEMU ended before it answered {command} ({type(error).__name__})") from None
        self._write({"return": answer})
        return answer

    async def status(self, *, timeout: float) -> str:
        """The machine's run state: "running", "paused", "inmigrate"... (QEMU qapi/run-state.json, RunState)."""
        answer = await self.execute("query-status", {}, timeout=timeout)
        return str(answer.get("status")) if isinstance(answer, dict) else ""

    async def migration(self, *, timeout: float) -> str:
        """How far the last migration is: "active", "completed", "failed"... (QEMU qapi/migration.json)."""
        answer = await self.execute("query-migrate", {}, timeout=timeout)
        return str(answer.get("status")) if isinstance(answer, dict) else ""

    async def leave_memory_alone(self, *, timeout: float) -> None:
        """Of what is migrated, leave out memory that is a shared file."""
        capabilities = [{"capability": "x-ignore-shared", "state": True}]
        await self.execute("migrate-set-capabilities", {"capabilities": capabilities}, timeout=timeout)

    async def give(self, fd: int, name: str, *, timeout: float) -> None:
        """Hand QEMU a descriptor, which it knows by the name from now on."""
        async with self._giving:
            self._client.send_fd_scm(fd)
            await self.execute("getfd", {"fdname": name}, timeout=timeout)

    async def add(self, fd: int, arguments: dict[str, Any], *, timeout: float) -> None:
        """Hand QEMU a descriptor for a set of descriptors, whose number is in the arguments of add-fd."""
        async with self._giving:
            self._client.send_fd_scm(fd)
            await self.execute("add-fd", arguments, timeout=timeout)

    def listen(self, *names: str) -> Events:
        """Events from now on; open it before the command that causes them."""
        return Events(self._client, names)

    async def close(self) -> None:
        """End the connection; QEMU may be gone already.

        The library raises here what ended its reader. Messages of a QEMU that a guest took over cause any exception
        (qemu.qmp 0.0.6: UnicodeDecodeError, RecursionError, TypeError for an id that is a list).
        """
        with suppress(Exception):
            await self._client.disconnect()

    def _count(self, _event: object) -> bool:
        """Note an event; False, so that it is not kept."""
        now = asyncio.get_running_loop().time()
        if now - self._since >= 1:
            self._since, self._events = now, 0
        self._events += 1
        if self._events > MOST_EVENTS and not self._flooded:
            self._flooded = True
            self._on_flood(
                VmError(
                    f"QEMU reported more than {MOST_EVENTS} events in a second",
                    hint="a program in the guest causes them; the virtual machine is ended, since they fill memory",
                )
            )
        return False

    def _write(self, message: dict[str, object]) -> None:
        self._log(json.dumps(message, default=str).encode() + b"\n")


class Events:
    """A subscription, as a context."""

    def __init__(self, client: QMPClient, names: tuple[str, ...]) -> None:
        self._client = client
        self._listener = EventListener(names)

    def __enter__(self) -> Events:
        self._client.register_listener(self._listener)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.remove_listener(self._listener)

    async def wait(self, matches: Callable[[Event], bool], *, seconds: float) -> Event | None:
        """The first event whose data matches; None at the deadline."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    data = dict(await self._listener.get()).get("data", {})
                    if isinstance(data, dict) and matches(data):
                        return data
        except TimeoutError:
            return None
