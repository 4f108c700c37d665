"""A guest that floods the real monitor in every possible way: the monitor's memory hardly grows.

A flood ends with the VM, or has no effect. QEMU and the guest are fakes.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hawse.commands.client import MonitorGoneError
from hawse.errors import VmError
from hawse.link import messages
from hawse.link.agreed import PROTOCOL
from hawse.link.frames import DATA, EOF, FROM_GUEST, REPLY, encode
from hawse.link.streams import STREAMS
from hawse.monitor.machine.bounded_log import FILE_LIMIT
from hawse.oci.guest.share import Share
from tests.support.async_wait import until
from tests.support.fake_machine import FakeHost, FakeMachine
from tests.support.monitor import Monitor, heard, new_network, runs, tell
from tests.support.plans import machine_plan, sandbox_plan

#: How much the monitor's memory may grow, in KiB, in a flood of small messages and in one of large replies.
LITTLE, MUCH = 8 * 1024, 64 * 1024
#: The container's name server: an address on the loopback of its network namespace on the host, without a server.
SERVER = "127.0.0.11"


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    with new_network() as path:
        yield path


def process(machine: FakeMachine) -> int:
    """The number of the container's first process."""
    return int(machine.asked("create")[0]["process"])


async def small_frames(machine: FakeMachine) -> None:
    """Data of a stream whose proxy has ended. The monitor answers with credit, which the guest does not read."""
    machine.stop_reading()
    piece = encode(process(machine) * STREAMS + 1, DATA, b"x") * 6000
    for _ in range(200):
        await machine.flood(piece)


async def events(machine: FakeMachine) -> None:
    """Each write to a register of CPU hotplug makes QEMU send an event."""
    event = {"event": "ACPI_DEVICE_OST", "data": {"info": {}}, "timestamp": {}}
    piece = (json.dumps(event).encode() + b"\n") * 1000
    for _ in range(100):
        await machine.report(piece)


async def replies(machine: FakeMachine) -> None:
    """Replies to no call, each of the maximum size."""
    head = b'{"id":1,"result":[[]'
    most = FROM_GUEST[REPLY]
    frame = encode(0, REPLY, (head + b",[]" * ((most - len(head) - 2) // 3) + b"]}").ljust(most))
    for _ in range(20):
        await machine.flood(frame)


async def kills_for_memory(machine: FakeMachine) -> None:
    for first in range(1, 5000, 100):
        await machine.flood(
            b"".join(messages.encode_event("oom", {"container": "c1", "kills": first + n}) for n in range(100))
        )


async def queries(machine: FakeMachine) -> None:
    """For names, more than an agent announces."""
    query = {"server": SERVER, "transport": "tcp", "connection": 1}
    piece = messages.encode_event("query", query) * 10
    for _ in range(100):
        await machine.flood(piece)


async def ends(machine: FakeMachine) -> None:
    """Announcements of one stream, again and again."""
    await machine.flood(encode(process(machine) * STREAMS + 1, EOF) * 100_000)


async def greetings(machine: FakeMachine) -> None:
    await machine.flood(messages.encode_event("hello", {"protocol": PROTOCOL, "more": "x" * 10_000}) * 1000)


@pytest.mark.parametrize(
    ("flood", "most", "reason"),
    [
        (small_frames, LITTLE, ""),
        (events, LITTLE, "QEMU reported more than 1000 events in a second"),
        (replies, MUCH, ""),
        (kills_for_memory, LITTLE, ""),
        (queries, LITTLE, "protocol violation by the guest agent: link: more than 64 connections to name servers"),
        (ends, LITTLE, "protocol violation by the guest agent: link: "),
        (greetings, LITTLE, "protocol violation by the guest agent: link: a second hello"),
    ],
)
def test_flood_does_not_fill_the_memory_of_the_host(
    tmp_path: Path, network: str, flood: Callable[[FakeMachine], Awaitable[None]], most: int, reason: str
) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        (tmp_path / "resolv.conf").write_text(f"nameserver {SERVER}\n")
        mounts = [{"destination": "/etc/resolv.conf", "source": "/run/hawse/share/c1/names"}]
        shares = [Share(name="names", source=f"{tmp_path}/resolv.conf", is_dir=False, readonly=True)]
        spec = {"process": {"args": ["x"]}, "mounts": mounts}
        machine_of_ours = machine_plan(qemu=host.qemu)
        changes: dict[str, Any] = {"network": network, "shares": shares, "spec": spec}
        monitor.send(sandbox_plan(machine_of_ours, bundle=str(tmp_path), **changes))
        proxy = await monitor.announce()
        await monitor.report()
        machine = await host.machine()
        await monitor.ask("start")
        if flood is small_frames:
            proxy.close()
            await until(lambda: machine.asked("signal") != [])
        before = highest = monitor.peak()

        async def watch() -> None:
            nonlocal highest
            while True:
                with suppress(OSError, AssertionError):  # the monitor has ended
                    highest = max(highest, monitor.peak())
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        try:
            await flood(machine)
        except ConnectionError:
            assert reason, "it ended"
        if reason:
            assert await monitor.ended() == 0
            failure = json.loads(Path(f"{monitor.store.path}/state.json").read_text())["failure"]
            assert failure["message"].startswith(reason)
        else:
            assert await monitor.ask("pids") is not None, "it answers"
            highest = max(highest, monitor.peak())
        watching.cancel()
        print(f"{flood.__name__}: the monitor had {highest} KiB at most, {before} before")
        assert highest - before < most

    tell(tmp_path, story)


def test_guest_that_writes_to_its_console_does_not_fill_the_state_directory(tmp_path: Path, network: str) -> None:
    """The directory is on the host's /run, a tmpfs. QEMU's commands are logged there as well."""

    async def story(monitor: Monitor, host: FakeHost) -> None:
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        await monitor.announce()
        await monitor.report()
        machine = await host.machine()
        await monitor.ask("start")
        machine.console.setblocking(False)
        written = 0
        while written < 16 << 20:
            await asyncio.get_running_loop().sock_sendall(machine.console, b"x" * 65536)
            written += 65536
        await monitor.ask("pids")
        sizes = {path.name: path.stat().st_size for path in Path(monitor.store.path).rglob("*") if path.is_file()}
        print(f"a guest that wrote {written >> 20} MiB to its console: {sizes}")
        assert sizes["console.log.old"] > FILE_LIMIT - 65536 * 2
        assert sizes["console.log"] + sizes["console.log.old"] <= 2 * FILE_LIMIT
        assert 4 * 2 * FILE_LIMIT < 1 << 20, "four logs, with their previous files"
        assert sum(sizes.values()) < 1 << 20

    tell(tmp_path, story)


@pytest.mark.parametrize("way", ["kill", "kill of all", "the proxy is killed"])
def test_agent_that_does_not_react_does_not_prevent_a_kill(tmp_path: Path, network: str, way: str) -> None:
    """The host ends the VM, and the container counts as killed by SIGKILL."""

    async def story(monitor: Monitor, host: FakeHost) -> None:
        host.held["signal"] = asyncio.Event()
        machine_of_ours = machine_plan(qemu=host.qemu)
        monitor.send(sandbox_plan(machine_of_ours, bundle=str(tmp_path), network=network))
        proxy = await monitor.announce()
        await monitor.report()
        machine = await host.machine()
        await monitor.ask("start")
        began = time.monotonic()
        if way == "the proxy is killed":
            proxy.close()
        else:
            with suppress(MonitorGoneError):  # the sandbox may end before it has answered
                await monitor.ask("kill", signal=signal.SIGKILL, all=way == "kill of all")
            assert await heard(proxy) == [("exit", {"code": 137})]
        assert await monitor.ended() == 0
        print(f"{way}: the machine had ended after {time.monotonic() - began:.1f} s")
        assert not runs(machine.program.pid)
        assert "failure" not in monitor.store.read(), "a requested kill is not a failure"

    tell(tmp_path, story)


def test_agent_that_does_not_pause_is_awaited_for_ten_seconds(tmp_path: Path, network: str) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        host.held["freeze"] = asyncio.Event()
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        await monitor.announce()
        await monitor.report()
        await monitor.ask("start")
        with pytest.raises(VmError, match="the agent in the guest did not answer freeze within 10 s"):
            await monitor.ask("pause")
        assert monitor.store.read()["status"] == "running"

    tell(tmp_path, story)
