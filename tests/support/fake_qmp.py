"""A QEMU and a guest of the test's own making, behind the seams that plugging uses.

Deadlines are those of the caller: a test that lets one pass runs in :mod:`tests.support.virtual_time`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from typing import Any

from hawse.errors import DeviceError, HawseError, RefusedError

Answer = Callable[[str, dict[str, Any]], HawseError | None]


class FakeNodes:
    """Notes which functions' nodes QEMU can open: ``open`` now, with how; ``refuse`` those that it cannot."""

    def __init__(self) -> None:
        self.open: dict[str, bool] = {}
        self.refused: set[str] = set()

    def admit(self, address: str, *, by_file: bool) -> None:
        if address in self.refused:
            raise DeviceError(f"{address} has no node")
        self.open[address] = by_file

    def dismiss(self, address: str) -> None:
        self.open.pop(address, None)


class FakeQmp:
    """Notes every command; ``refuse`` says which fail; a device that is asked to go goes after ``patience`` times."""

    def __init__(self, *, refuse: Answer = lambda _command, _arguments: None, patience: int = 1) -> None:
        self.commands: list[tuple[str, str]] = []
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.given: dict[str, int] = {}
        #: How many descriptors each set has.
        self.sets: dict[int, int] = {}
        self.plugged: set[str] = set()
        self.nodes = FakeNodes()
        self._asked: dict[str, int] = {}
        self._refuse = refuse
        self._patience = patience
        self._listeners: list[FakeEvents] = []
        self._filtering: list[FakeEvents] = []
        #: What query-rx-filter answers, by the NIC's name.
        self.rx_filters: dict[str, Any] = {}
        self.ended = False

    async def execute(self, command: str, arguments: dict[str, Any], *, timeout: float) -> object:
        assert timeout > 0
        name = str(arguments.get("id"))
        self.commands.append((command, name))
        self.sent.append((command, arguments))
        await asyncio.sleep(0)
        error = self._refuse(command, arguments)
        if error is not None:
            raise error
        if command == "device_add":
            self.plugged.add(name)
        elif command == "device_del":
            if name not in self.plugged:
                raise RefusedError(f"device_del: Device '{name}' not found")
            self._asked[name] = self._asked.get(name, 0) + 1
            if self._asked[name] >= self._patience:
                self.drop(name)
        elif command == "remove-fd" and self.sets.pop(arguments["fdset-id"], None) is None:
            raise RefusedError("remove-fd: File descriptor named 'fdset-id' not found")
        elif command == "query-rx-filter":
            return self.rx_filters[arguments["name"]]
        return {}

    async def give(self, fd: int, name: str, *, timeout: float) -> None:
        """Take a descriptor, which must be writable; ``given`` has its inode."""
        assert timeout > 0
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        self.given[name] = os.fstat(fd).st_ino

    async def add(self, fd: int, arguments: dict[str, Any], *, timeout: float) -> None:
        """Take a descriptor into a set, whose number is in the arguments."""
        os.fstat(fd)
        await self.execute("add-fd", arguments, timeout=timeout)
        number = arguments["fdset-id"]
        self.sets[number] = self.sets.get(number, 0) + 1

    def drop(self, name: str) -> None:
        """The guest has let go of a device."""
        self.plugged.discard(name)
        for listener in self._listeners:
            listener.queue.put_nowait({"device": name})

    @property
    def is_listening_to_filters(self) -> bool:
        return bool(self._filtering)

    def change_rx_filter(self, name: str) -> None:
        """The guest has changed the filter of a NIC."""
        for listener in self._filtering:
            listener.queue.put_nowait({"name": name})

    def listen(self, *names: str) -> FakeEvents:
        [name] = names
        return FakeEvents({"DEVICE_DELETED": self._listeners, "NIC_RX_FILTER_CHANGED": self._filtering}[name])


class FakeEvents:
    """Events from now on."""

    def __init__(self, listeners: list[FakeEvents]) -> None:
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._listeners = listeners

    def __enter__(self) -> FakeEvents:
        self._listeners.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._listeners.remove(self)

    async def wait(self, matches: Callable[[dict[str, Any]], bool], *, seconds: float) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(seconds):
                while not matches(data := await self.queue.get()):
                    continue
                return data
        except TimeoutError:
            return None


class FakeLink:
    """A guest that answers each call with what ``answers`` has for the method; a list is used up in order.

    ``seconds`` are those that the last call of a method might take.
    """

    def __init__(self, answers: dict[str, Any]) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.seconds: dict[str, float] = {}
        self._answers = answers

    async def call(self, method: str, params: dict[str, Any], *, seconds: float) -> object:
        assert seconds > 0
        self.calls.append((method, params))
        self.seconds[method] = seconds
        await asyncio.sleep(0.001)
        answer = self._answers[method]
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, HawseError):
            raise answer
        return answer
