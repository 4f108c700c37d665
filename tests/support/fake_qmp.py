"""A fake QEMU and a fake guest for the interfaces that the code for plugging uses.

Deadlines are the caller's: a test that waits for one runs in :mod:`tests.support.virtual_time`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

from hawse.errors import DeviceError, HawseError, RefusedError
from hawse.monitor.agent import calls

Answer = Callable[[str, dict[str, Any]], HawseError | None]
#: The hardware address of the NIC in :func:`rx_filter`.
MAC = "0a:00:00:00:00:02"


def rx_filter(**changed: Any) -> dict[str, Any]:
    """An answer to query-rx-filter (QEMU qapi/net.json, RxFilterInfo) of a NIC that receives only unicast frames."""
    usual = {
        "name": "nic-net0", "promiscuous": False, "multicast": "normal", "unicast": "normal", "vlan": "all",
        "broadcast-allowed": True, "multicast-overflow": False, "unicast-overflow": False, "main-mac": MAC,
        "vlan-table": [], "unicast-table": [], "multicast-table": [],
    }  # fmt: skip
    return usual | {key.replace("_", "-"): value for key, value in changed.items()}


class FakeNodes:
    """Records the functions whose nodes QEMU can open: ``open`` now, and how. ``refused``: functions that fail."""

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
    """Records every command. ``refuse``: which commands fail. A device is removed after ``patience`` requests."""

    def __init__(self, *, refuse: Answer = lambda _command, _arguments: None, patience: int = 1) -> None:
        self.commands: list[tuple[str, str]] = []
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.given: dict[str, int] = {}
        #: The number of descriptors in each fd set.
        self.sets: dict[int, int] = {}
        self.plugged: set[str] = set()
        self.nodes = FakeNodes()
        self._asked: dict[str, int] = {}
        self._refuse = refuse
        self.patience = patience
        self._listeners: list[FakeEvents] = []
        self._filtering: list[FakeEvents] = []
        #: The results of query-rx-filter, by the name of the NIC.
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
            if name in self.plugged:
                raise RefusedError(f"device_add: Duplicate device ID '{name}'")
            self.plugged.add(name)
        elif command == "device_del":
            if name not in self.plugged:
                raise RefusedError(f"device_del: Device '{name}' not found")
            self._asked[name] = self._asked.get(name, 0) + 1
            if self._asked[name] >= self.patience:
                self.drop(name)
        elif command == "remove-fd" and self.sets.pop(arguments["fdset-id"], None) is None:
            raise RefusedError(f"remove-fd: File descriptor named 'fdset-id:{arguments['fdset-id']}' not found")
        elif command == "query-rx-filter":
            return self.rx_filters[arguments["name"]]
        return {}

    async def give(self, fd: int, name: str, *, timeout: float) -> None:
        """Record a passed descriptor, which must be writable; ``given`` contains its inode."""
        assert timeout > 0
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        self.given[name] = os.fstat(fd).st_ino

    async def add(self, fd: int, arguments: dict[str, Any], *, timeout: float) -> None:
        """Record a descriptor that is added to the fd set in the arguments."""
        os.fstat(fd)
        await self.execute("add-fd", arguments, timeout=timeout)
        number = arguments["fdset-id"]
        self.sets[number] = self.sets.get(number, 0) + 1

    def drop(self, name: str) -> None:
        """Simulate that the guest has released a device."""
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
    """A subscription to events."""

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
    """A guest that answers each call with the entry of ``answers`` for its name; a list is consumed in order.

    The answers are checked as the link checks them. ``calls``: names and fields. ``seconds``: the time limit of the
    last call of each name.
    """

    def __init__(self, answers: dict[str, Any]) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.seconds: dict[str, float] = {}
        self._answers = answers

    @cached_property
    def ended(self) -> asyncio.Future[HawseError]:
        """The link never ends."""
        return asyncio.get_running_loop().create_future()

    async def call(self, call: calls.Call[calls.Answer], *, seconds: float) -> calls.Answer:
        assert seconds > 0
        method = calls.name_of(call)
        self.calls.append((method, calls.parameters(call)))
        self.seconds[method] = seconds
        await asyncio.sleep(0)
        answer = self._answers[method]
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, HawseError):
            raise answer
        return calls.read_answer(call, answer)


def fails_at(number: int, error: HawseError) -> Any:
    """The answers to the commands; the command with that number fails."""
    count = iter(range(1000))
    return lambda _command, _arguments: error if next(count) == number else None
