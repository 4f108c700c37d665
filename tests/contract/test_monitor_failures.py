"""The real monitor when a sandbox cannot be created or is deleted meanwhile: the report, and the undoing.

Tests hawse.monitor.main, hawse.monitor.lifecycle and hawse.monitor.machine.machine together, as a separate process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError, HostError, StateError, VmError
from hawse.oci.guest.share import Share
from tests.support.async_wait import until
from tests.support.fake_machine import BOUND, FakeHost
from tests.support.hostile import Scene, play
from tests.support.monitor import Monitor, heard, new_network, runs, tell
from tests.support.plans import EDU, machine_plan, sandbox_plan


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    with new_network() as path:
        yield path


async def prove_undone(monitor: Monitor, host: FakeHost) -> None:
    """Check that the monitor has ended in order, and its programs with it."""
    assert await monitor.ended() == 0
    assert monitor.store.read()["status"] == "stopped"
    for machine in host.machines:
        assert not runs(machine.program.pid)
    assert not os.path.exists(f"{monitor.store.path}/network")


def test_caller_that_ends_before_its_plan_leaves_nothing(tmp_path: Path) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        monitor.connection.sendall(b"\0\0\0\x09half")
        monitor.connection.close()
        assert await monitor.ended() == 1
        assert "the command ended before it had sent the plan" in monitor.log()
        assert host.machines == []

    tell(tmp_path, story)


def test_qemu_that_cannot_be_executed_is_reported(tmp_path: Path, network: str) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        monitor.send(sandbox_plan(machine_plan(qemu="/no/qemu"), bundle=str(tmp_path), network=network))
        with pytest.raises(HostError, match="cannot run QEMU: /no/qemu: No such file or directory"):
            await monitor.report()
        await prove_undone(monitor, host)
        assert "cannot run QEMU" in monitor.log()

    tell(tmp_path, story)


def test_share_that_cannot_be_bound_is_reported(tmp_path: Path, network: str) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        share = Share(name="rootfs", source="/no/rootfs", is_dir=True, readonly=False)
        machine = machine_plan(qemu=host.qemu)
        monitor.send(sandbox_plan(machine, bundle=str(tmp_path), network=network, shares=[share]))
        with pytest.raises(ConfigError, match="cannot share /no/rootfs with the guest: No such file"):
            await monitor.report()
        await prove_undone(monitor, host)
        assert host.machines == []

    tell(tmp_path, story)


@pytest.mark.parametrize("moment", ["greeting", "hello", "wake", "mount_share", "device_add", "create"])
def test_death_of_qemu_during_the_creation_is_the_reported_reason(tmp_path: Path, network: str, moment: str) -> None:
    """The kernel closes its link and QMP first, and pending calls fail with an error that explains less."""

    async def story(monitor: Monitor, host: FakeHost) -> None:
        host.greets, host.reports = moment != "greeting", moment != "hello"
        host.held[moment] = asyncio.Event()
        host.answers["bind_vfio"] = BOUND
        drawn = tmp_path / "trace.json"
        planned = machine_plan([EDU], qemu=host.qemu)
        monitor.send(sandbox_plan(planned, bundle=str(tmp_path), groups=[EDU], network=network, timeline=str(drawn)))
        proxy = await monitor.announce()
        machine = await host.machine()
        if moment not in ("greeting", "hello"):
            await until(lambda: moment in [*machine.executed(), *(name for name, _ in machine.calls)])
        await machine.end(exit=3, stderr="qemu: no such device\n", lingers=0.05)
        with pytest.raises(VmError) as caught:
            await monitor.report()
        assert caught.value.message == "QEMU ended with exit code 3"
        assert caught.value.evidence == "qemu: no such device"
        await prove_undone(monitor, host)
        assert await heard(proxy) == [("exit", {"code": 255})]
        assert "process started" in {event["name"] for event in json.loads(drawn.read_text())["traceEvents"]}

    tell(tmp_path, story)


_AER = "qemu: vfio_err_notifier_handler(0000:3b:00.0) Unrecoverable error detected. Please collect any data possible\n"


@pytest.mark.parametrize(
    ("state", "stderr", "reason"),
    [
        ("internal-error", _AER, "QEMU stopped the virtual machine: 0000:3b:00.0, or a port above it, reported an"),
        ("internal-error", "KVM internal error. Suberror: 1\n", "the host's KVM cannot continue the virtual machine: "),
        ("guest-panicked", "", "QEMU stopped the virtual machine: guest-panicked"),
    ],
)
def test_sandbox_ends_when_qemu_stops_its_vm_for_an_error(
    tmp_path: Path, network: str, state: str, stderr: str, reason: str
) -> None:
    """QEMU does not exit then, and without the end of the sandbox its containers would hang forever."""

    async def story(scene: Scene) -> None:
        machine = await scene.start()
        await machine.stop(state, stderr=stderr)
        await scene.prove_ended(reason)

    play(tmp_path, network, story)


def test_error_that_stops_the_vm_during_the_creation_is_the_reported_reason(tmp_path: Path, network: str) -> None:
    def prepare(host: FakeHost) -> None:
        host.held["wake"] = asyncio.Event()

    async def story(scene: Scene) -> None:
        machine = await scene.machine()
        await scene.called("wake")
        await machine.stop("internal-error", stderr="KVM internal error. Suberror: 1\n")
        await scene.prove_refused(
            "^the host's KVM cannot continue the virtual machine: KVM internal error. Suberror: 1$"
        )

    play(tmp_path, network, story, prepare=prepare)


def test_error_that_stops_the_vm_before_qmp_answers_is_the_reported_reason(tmp_path: Path, network: str) -> None:
    """As in the guest's firmware. QEMU sends no event before the negotiation."""

    def prepare(host: FakeHost) -> None:
        host.reports = False
        host.held["qmp_capabilities"] = asyncio.Event()

    async def story(scene: Scene) -> None:
        machine = await scene.machine()
        await machine.stop("internal-error", stderr="KVM: entry failed, hardware error 0x80000021\n", reported=False)
        scene.host.held["qmp_capabilities"].set()
        await scene.prove_refused("^the host's KVM cannot continue the virtual machine: KVM: entry failed")

    play(tmp_path, network, story, prepare=prepare)


def test_vm_that_is_stopped_without_an_error_continues(tmp_path: Path, network: str) -> None:
    """As by QMP's command stop. The run state tells the difference."""

    async def story(scene: Scene) -> None:
        machine = await scene.start()
        before = machine.executed().count("query-status")
        await machine.stop("paused")
        await until(lambda: machine.executed().count("query-status") > before)
        await scene.prove_running()

    play(tmp_path, network, story)


@pytest.mark.parametrize("moment", ["hello", "create"])
def test_sandbox_of_a_killed_caller_is_undone(tmp_path: Path, network: str, moment: str) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        host.reports = moment != "hello"
        host.held[moment] = asyncio.Event()
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        await monitor.announce()
        machine = await host.machine()
        if moment != "hello":
            await until(lambda: bool(machine.asked(moment)))
        monitor.connection.close()
        if moment in host.held:
            host.held[moment].set()
        await prove_undone(monitor, host)

    tell(tmp_path, story)


async def by_delete(monitor: Monitor) -> None:
    await monitor.ask("delete", until_end=True)


async def by_signal(monitor: Monitor) -> None:
    os.kill(monitor.pid, signal.SIGTERM)


@pytest.mark.parametrize("end", [by_delete, by_signal])
def test_container_deleted_during_its_creation_is_reported_as_deleted(tmp_path: Path, network: str, end: Any) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        host.reports = False
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        await monitor.announce()
        await host.machine()
        await monitor.ask("room")  # it serves calls, so its signal handlers are installed
        await end(monitor)
        with pytest.raises(StateError, match="container c1 was deleted while it was created"):
            await monitor.report()
        await prove_undone(monitor, host)

    tell(tmp_path, story)


def test_error_has_the_console_of_a_guest_that_does_not_report_in_time(tmp_path: Path, network: str) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        host.reports = False
        monitor.send(
            sandbox_plan(machine_plan(qemu=host.qemu, boot_seconds=0.3), bundle=str(tmp_path), network=network)
        )
        await monitor.announce()
        (await host.machine()).console.send(b"Loading initrd\n")
        with pytest.raises(VmError, match=r"the guest did not report within 0\.3 s") as caught:
            await monitor.report()
        assert caught.value.evidence == "Loading initrd"
        assert "vm.boot_seconds" in caught.value.hint
        await prove_undone(monitor, host)

    tell(tmp_path, story)


def test_error_of_the_guest_is_sent_to_the_caller(tmp_path: Path, network: str) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        host.errors["create"] = ConfigError("process.args: no such program", exit_code=127)
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        proxy = await monitor.announce()
        with pytest.raises(ConfigError, match=r"process\.args: no such program") as caught:
            await monitor.report()
        assert caught.value.exit_code == 127
        await prove_undone(monitor, host)
        assert await heard(proxy) == [("exit", {"code": 255})]
        assert "failure" not in monitor.store.read()

    tell(tmp_path, story)


def test_agent_with_another_protocol_version_is_refused(tmp_path: Path, network: str) -> None:
    async def story(monitor: Monitor, host: FakeHost) -> None:
        host.protocol = 1
        monitor.send(sandbox_plan(machine_plan(qemu=host.qemu), bundle=str(tmp_path), network=network))
        with pytest.raises(VmError, match="the agent speaks protocol 1, not 2"):
            await monitor.report()
        await prove_undone(monitor, host)

    tell(tmp_path, story)
