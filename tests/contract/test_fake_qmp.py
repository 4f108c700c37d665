"""The fakes of QEMU answer the commands that hawse sends as a real QEMU does.

The same assertions run with a real QEMU, whose CPU is stopped, with FakeQmp, and with QmpServer and fake_qemu.py as far
as they go.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from hawse.config import Vm
from hawse.errors import RefusedError
from hawse.vm.qmp import Qmp
from tests.support.fake_qmp import MAC, FakeQmp, rx_filter
from tests.support.patience import patience
from tests.support.qmp_server import QmpServer, serving

SECONDS = patience(10)
FAKE_QEMU = Path(__file__).parents[1] / "support" / "fake_qemu.py"
#: A port and a NIC. Native hotplug: the slot of an empty port has no power, so a device is unplugged without a guest.
MACHINE = [
    "-machine", "q35", "-accel", "tcg", "-S", "-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
    "-device", "pcie-root-port,id=port0,bus=pcie.0,chassis=1", "-device", f"virtio-net-pci,id=nic-net0,mac={MAC}",
]  # fmt: skip


class Monitor(Protocol):
    """The interface of Qmp that the code for devices uses."""

    async def execute(self, command: str, arguments: dict[str, Any], *, timeout: float) -> object: ...
    async def give(self, fd: int, name: str, *, timeout: float) -> None: ...
    async def add(self, fd: int, arguments: dict[str, Any], *, timeout: float) -> None: ...
    def listen(self, *names: str) -> Any: ...


@asynccontextmanager
async def program(argv: list[str]) -> AsyncIterator[Monitor]:
    """A program with the command line of QEMU."""
    ours, theirs = socket.socketpair()
    link, its_link = socket.socketpair()
    argv = [*argv, "-nodefaults", "-display", "none"]
    argv += ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
    argv += ["-chardev", f"socket,id=link,fd={its_link.fileno()}"]
    with link, subprocess.Popen(argv, pass_fds=[theirs.fileno(), its_link.fileno()]) as process:
        theirs.close()
        its_link.close()
        qmp = Qmp()
        await qmp.open(ours, seconds=SECONDS)
        try:
            yield qmp
        finally:
            await qmp.close()
            process.kill()


@asynccontextmanager
async def real() -> AsyncIterator[Monitor]:
    async with program([Vm().qemu, *MACHINE]) as monitor:
        yield monitor


@asynccontextmanager
async def fake_program() -> AsyncIterator[Monitor]:
    async with program([sys.executable, str(FAKE_QEMU)]) as monitor:
        yield monitor


@asynccontextmanager
async def fake() -> AsyncIterator[Monitor]:
    monitor = FakeQmp()
    monitor.rx_filters["nic-net0"] = [rx_filter()]
    yield monitor


@asynccontextmanager
async def server() -> AsyncIterator[Monitor]:
    async with serving(QmpServer(lambda _name, _arguments: {"return": {}})) as connection:
        qmp = Qmp()
        await qmp.open(connection, seconds=SECONDS)
        yield qmp
        await qmp.close()


Backend = Callable[[], Any]
WITH_DEVICES = pytest.mark.parametrize("backend", [real, fake])
ALL = pytest.mark.parametrize("backend", [real, fake, fake_program, server])


def run(backend: Backend, scenario: Callable[[Monitor], Awaitable[None]]) -> None:
    async def story() -> None:
        async with backend() as monitor:
            await scenario(monitor)

    asyncio.run(story())


async def refusal(monitor: Monitor, command: str, **arguments: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        await monitor.execute(command, arguments, timeout=SECONDS)
    return caught.value.message


@ALL
def test_commands_without_a_result_return_an_empty_object(backend: Backend) -> None:
    async def scenario(monitor: Monitor) -> None:
        device = {"driver": "edu", "id": "dev0", "bus": "port0"}
        assert await monitor.execute("device_add", device, timeout=SECONDS) == {}

    run(backend, scenario)


@ALL
def test_descriptors_are_passed_by_name_and_to_sets(backend: Backend) -> None:
    async def scenario(monitor: Monitor) -> None:
        fd = os.open("/dev/null", os.O_RDWR)
        try:
            await monitor.give(fd, "tap0", timeout=SECONDS)
            await monitor.add(fd, {"fdset-id": 7}, timeout=SECONDS)
        finally:
            os.close(fd)
        assert await monitor.execute("remove-fd", {"fdset-id": 7}, timeout=SECONDS) == {}

    run(backend, scenario)


@WITH_DEVICES
def test_removing_a_missing_set_of_descriptors_is_refused(backend: Backend) -> None:
    async def scenario(monitor: Monitor) -> None:
        assert await refusal(monitor, "remove-fd", **{"fdset-id": 9}) == (
            "remove-fd: File descriptor named 'fdset-id:9' not found"
        )

    run(backend, scenario)


@WITH_DEVICES
def test_unplugged_device_causes_an_event_and_is_gone(backend: Backend) -> None:
    async def scenario(monitor: Monitor) -> None:
        device = {"driver": "edu", "id": "dev0", "bus": "port0"}
        assert await refusal(monitor, "device_del", id="dev0") == "device_del: Device 'dev0' not found"
        await monitor.execute("device_add", device, timeout=SECONDS)
        with monitor.listen("DEVICE_DELETED") as events:
            await monitor.execute("device_del", {"id": "dev0"}, timeout=SECONDS)
            event = await events.wait(lambda data: data.get("device") == "dev0", seconds=SECONDS)
        assert event["device"] == "dev0"
        assert await refusal(monitor, "device_del", id="dev0") == "device_del: Device 'dev0' not found"
        await monitor.execute("device_add", device, timeout=SECONDS)

    run(backend, scenario)


@WITH_DEVICES
def test_device_whose_name_is_in_use_is_refused(backend: Backend) -> None:
    async def scenario(monitor: Monitor) -> None:
        await monitor.execute("device_add", {"driver": "edu", "id": "dev0", "bus": "port0"}, timeout=SECONDS)
        message = await refusal(monitor, "device_add", driver="edu", id="dev0", bus="port0")
        assert message == "device_add: Duplicate device ID 'dev0'"

    run(backend, scenario)


@WITH_DEVICES
def test_event_that_does_not_arrive_is_none(backend: Backend) -> None:
    async def scenario(monitor: Monitor) -> None:
        with monitor.listen("DEVICE_DELETED") as events:
            assert await events.wait(lambda _data: True, seconds=0) is None

    run(backend, scenario)


@WITH_DEVICES
def test_filter_of_a_nic_has_all_fields(backend: Backend) -> None:
    async def scenario(monitor: Monitor) -> None:
        filters: Any = await monitor.execute("query-rx-filter", {"name": "nic-net0"}, timeout=SECONDS)
        [entry] = filters
        assert entry.keys() >= rx_filter().keys()
        assert (entry["name"], entry["main-mac"]) == ("nic-net0", MAC)
        assert {key: type(value) for key, value in entry.items()} == {k: type(v) for k, v in rx_filter().items()}

    run(backend, scenario)
