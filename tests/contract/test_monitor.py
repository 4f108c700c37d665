"""The real monitor from its plan to its end, with a fake QEMU and a fake guest.

Tests hawse.monitor.main, hawse.monitor.lifecycle and hawse.monitor.machine.machine together, as a separate process.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import termios
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import StateError
from hawse.link import messages
from hawse.link.flow import WINDOW
from hawse.link.frames import DATA, MAX_DATA, Decoder, encode
from hawse.link.streams import STREAMS
from hawse.state.interface import INTERFACE
from hawse.state.steps import DEVICES, GUEST, MONITOR, NETWORK, QEMU, SHARE
from hawse.version import VERSION
from hawse.vfio.node import file_node, group_node
from tests.support.async_wait import until
from tests.support.fake_machine import BOUND, FakeHost, FakeMachine
from tests.support.monitor import Monitor, heard, new_network, runs, tell
from tests.support.plans import EDU, machine_plan, sandbox_plan


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    with new_network() as path:
        yield path


def test_sandbox_from_its_plan_to_the_exit_of_its_container(tmp_path: Path, network: str) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        proxy = await monitor.announce()
        assert await monitor.report() == []
        machine = await host.machine()
        assert [name for name, _ in machine.calls] == ["wake", "mount_share", "create"]
        assert (machine.asked("mount_share")[0]["kind"], machine.executed()) == ("9p", ["query-status"])
        assert monitor.store.read()["status"] == "created"
        assert sorted(monitor.steps()) == sorted(
            [
                (MONITOR, "ready"), (SHARE, "prepared"), (QEMU, "process started"), (MONITOR, "loaded"),
                (QEMU, "QMP answers"), (GUEST, "boots"), (GUEST, "woken"), (DEVICES, "attached"),
                (NETWORK, "connected"), (SHARE, "mounted"), (NETWORK, "connected again"), (GUEST, "container created"),
            ]
        )  # fmt: skip
        machine.console.send(b"Linux version 6\r\n")
        await monitor.ask("start")
        assert monitor.store.read()["status"] == "running"
        machine.tell("exit", process=machine.asked("create")[0]["process"], code=5)
        assert await heard(proxy) == [("exit", {"code": 5})]
        assert await monitor.ended() == 0
        state = monitor.store.read()
        assert (state["status"], "failure" in state, monitor.log()) == ("stopped", False, "")
        assert not runs(machine.program.pid)
        assert Path(f"{monitor.store.path}/console.log").read_bytes() == b"Linux version 6\r\n"
        assert not os.path.exists(f"{monitor.store.path}/network"), "the record of the interfaces"
        assert monitor.steps()[-2:] == [(GUEST, "container started"), (DEVICES, "released")]

    tell(tmp_path, story)


def test_last_output_is_forwarded_to_a_slow_proxy(tmp_path: Path, network: str) -> None:
    """The proxy does not read before everything else of the sandbox has ended."""

    async def story(monitor: Monitor, host: FakeHost) -> None:
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        proxy = await monitor.announce()
        await monitor.report()
        machine = await host.machine()
        await monitor.ask("start")
        process = machine.asked("create")[0]["process"]
        output = [encode(process * STREAMS + number, DATA, bytes(MAX_DATA)) for number in (1, 2)] * (WINDOW // MAX_DATA)
        machine.write(b"".join(output))
        machine.tell("exit", process=process, code=5)
        await until(lambda: not runs(machine.program.pid))
        await until(lambda: monitor.steps()[-1:] == [(DEVICES, "released")])
        data, decoder = 0, Decoder()
        while piece := await asyncio.get_running_loop().sock_recv(proxy, 65536):
            for _, kind, payload in decoder.feed(piece):
                data += len(payload) if kind == DATA else 0
                last = payload
        assert (data, messages.decode_event(last)) == (2 * WINDOW, ("exit", {"code": 5}))
        assert await monitor.ended() == 0

    tell(tmp_path, story)


def test_only_calls_that_end_a_sandbox_reach_a_monitor_of_another_version(tmp_path: Path, network: str) -> None:
    """For example after an update of hawse: the version is in the file that the monitor has locked."""

    async def story(monitor: Monitor, host: FakeHost) -> None:
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        await monitor.announce()
        await monitor.report()
        machine = await host.machine()
        assert monitor.store.monitor_interface() == (INTERFACE, VERSION)
        Path(f"{monitor.store.path}/lock").write_text(f"{INTERFACE + 1} 9.0.0\n")
        asked = len(machine.calls)
        with pytest.raises(StateError, match=r"its monitor is of hawse 9\.0\.0, with interface"):
            await monitor.ask("start")
        assert len(machine.calls) == asked
        await monitor.ask("kill", signal=15, all=False)
        assert machine.asked("signal")
        await monitor.ask("delete", until_end=True)
        assert await monitor.ended() == 0
        assert not monitor.store.monitor_lives()

    tell(tmp_path, story)


def test_plan_may_arrive_in_pieces(tmp_path: Path, network: str) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        data = sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network).encode()
        whole = len(data).to_bytes(4, "big") + data
        for begin, end in ((0, 2), (2, 9), (9, len(whole))):
            monitor.connection.sendall(whole[begin:end])
            await until(lambda: fcntl.ioctl(monitor.connection, termios.TIOCOUTQ, bytes(4)) == bytes(4))
        await monitor.announce()
        assert await monitor.report() == []

    tell(tmp_path, story)


def test_delete_releases_the_devices_and_returns_after_the_end_of_the_monitor(tmp_path: Path, network: str) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        host.answers["bind_vfio"] = BOUND
        machine_of_edu = machine_plan([EDU], qemu=host.qemu)
        monitor.send(sandbox_plan(machine_of_edu, bundle=str(tmp_path), groups=[EDU], network=network))
        proxy = await monitor.announce()
        await monitor.report()
        machine = await host.machine()
        assert [entry["guest"]["group"] for entry in monitor.store.read()["vfio"]] == [3]
        await monitor.ask("delete", until_end=True)
        assert machine.executed() == ["query-status", "device_add", "device_del"]
        assert not runs(machine.program.pid)
        assert await monitor.ended() == 0
        assert await heard(proxy) == [("exit", {"code": 255})], "the exit code of the process is unknown"

    tell(tmp_path, story)


def test_lock_is_held_until_the_process_ends(tmp_path: Path, network: str) -> None:
    """`hawse delete` waits for the lock: a process that outlived it would be a remainder of a deleted container."""

    async def story(monitor: Monitor, host: FakeHost) -> None:
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        await monitor.announce()
        assert await monitor.report() == []
        lock = os.open(f"{monitor.store.path}/lock", os.O_RDWR)
        machine = await host.machine()
        machine.tell("exit", process=machine.asked("create")[0]["process"], code=0)
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_SH)
        # The kernel frees a process's memory, and with it the command line, before it closes the files.
        assert Path(f"/proc/{monitor.pid}/cmdline").read_bytes() == b""
        os.close(lock)

    tell(tmp_path, story)


def test_native_groups_wait_for_the_share(tmp_path: Path, network: str) -> None:
    """Drivers of the guest kernel are modules, which are among the shared files."""

    async def story(monitor: Monitor, host: FakeHost) -> None:
        host.held["mount_share"] = asyncio.Event()
        native = sandbox_plan(
            machine_plan([EDU], qemu=host.qemu), bundle=str(tmp_path), groups=[EDU], network=network, native={5: {}}
        )
        monitor.send(native)
        await monitor.announce()
        machine = await host.machine()
        await until(lambda: bool(machine.asked("mount_share")))
        # Its answer shows that all calls that do not wait for the share were processed.
        await monitor.ask("room")
        assert machine.executed() == ["query-status"]
        host.held["mount_share"].set()
        await until(lambda: "device_add" in machine.executed())

    tell(tmp_path, story)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_sandbox_in_order(tmp_path: Path, network: str, number: int) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        await monitor.announce()
        await monitor.report()
        os.kill(monitor.pid, number)
        assert await monitor.ended() == 0
        assert monitor.store.read()["status"] == "stopped"
        assert not runs((await host.machine()).program.pid)

    tell(tmp_path, story)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"exit": 1, "stderr": "qemu: aborted\n"}, "QEMU ended with exit code 1"),
        ({"signal": 9, "stderr": "qemu: aborted\n"}, "QEMU was killed by signal 9"),
    ],
)
def test_death_of_qemu_is_recorded_as_the_failure_of_the_container(
    tmp_path: Path, network: str, order: dict[str, object], message: str
) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        proxy = await monitor.announce()
        await monitor.report()
        await (await host.machine()).end(**order)
        assert await heard(proxy) == [("exit", {"code": 255})]
        assert await monitor.ended() == 0
        failure = json.loads(Path(f"{monitor.store.path}/state.json").read_text())["failure"]
        assert (failure["message"], failure["evidence"]) == (message, "qemu: aborted")
        assert Path(f"{monitor.store.path}/qemu.log").read_text() == "qemu: aborted\n"
        assert (DEVICES, "released") not in monitor.steps(), "no QEMU can be queried"

    tell(tmp_path, story)


async def speak_nonsense(machine: FakeMachine) -> None:
    machine.write(b"\xff" * 9)


async def power_off(machine: FakeMachine) -> None:
    await machine.end(exit=0)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (speak_nonsense, "protocol violation by the guest agent: link: "),
        (power_off, "the guest closed the link"),
    ],
)
def test_error_at_the_end_of_the_link_has_the_last_console_lines(
    tmp_path: Path, network: str, ends: Callable[[FakeMachine], Awaitable[None]], message: str
) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        await monitor.announce()
        await monitor.report()
        machine = await host.machine()
        machine.console.send(b"Kernel panic\n")
        await until(lambda: Path(f"{monitor.store.path}/console.log").read_bytes() != b"")
        await ends(machine)
        assert await monitor.ended() == 0
        failure = json.loads(Path(f"{monitor.store.path}/state.json").read_text())["failure"]
        assert failure["message"].startswith(message)
        assert (failure["evidence"], failure["hint"]) == ("Kernel panic", "the end of the console log follows")

    tell(tmp_path, story)


def test_hooks_run_between_the_creation_of_the_vm_and_of_the_container(tmp_path: Path, network: str) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        hooks = {"createRuntime": [{"path": "/bin/true"}]}
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network, hooks=hooks))
        await monitor.announce()
        await monitor.ask("await_machine")
        machine = await host.machine()
        assert machine.asked("create") == []
        await monitor.ask("go_on")
        assert await monitor.report() == []
        assert len(machine.asked("create")) == 1

    tell(tmp_path, story)


def test_notes_of_the_creation_and_the_timeline_reach_the_caller(tmp_path: Path, network: str) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        host.answers["bind_vfio"] = BOUND
        host.answers["trace"] = [{"name": "mounted", "began_ns": 5_000_000_000, "ended_ns": 6_000_000_000}]
        drawn = tmp_path / "trace.json"
        devices = [{"path": path, "type": "c", "major": 0, "minor": 5} for path in ("/dev/vfio/5", "/dev/iommu")]
        changes: dict[str, Any] = {
            "spec": {"process": {"args": ["x"]}, "linux": {"devices": devices}}, "timeline": str(drawn),
            "nodes": [group_node(EDU.number), file_node(None, path="/dev/iommu", major=0, minor=5)],
        }  # fmt: skip
        machine = machine_plan([EDU], qemu=host.qemu)
        monitor.send(sandbox_plan(machine, bundle=str(tmp_path), groups=[EDU], network=network, **changes))
        await monitor.announce()
        assert await monitor.report() == [
            ("debug", "/dev/vfio/5 is /dev/vfio/3 in the guest: both paths exist"),
            ("warning", "/dev/iommu: the guest's kernel has no VFIO device files: use /dev/vfio/vfio instead"),
        ]
        await monitor.ask("start")
        names = {event["name"] for event in json.loads(drawn.read_text())["traceEvents"]}
        assert {"mounted", "container created", "container started"} <= names

    tell(tmp_path, story)
