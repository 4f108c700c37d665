"""A container of the real monitor with a hostile guest: bring it to a phase, then check what must hold in any case."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawse.commands.delete import delete
from hawse.errors import HawseError
from hawse.oci.guest.share import Share
from tests.fuzz.target import check_plain
from tests.support.async_wait import until
from tests.support.fake_machine import BOUND, FakeHost, FakeMachine
from tests.support.monitor import Monitor, heard, runs, tell
from tests.support.plans import machine_plan, sandbox_plan

#: The container's name server, on the loopback of its network on the host, where no program listens.
SERVER = "127.0.0.11"
#: KiB by which the monitor's memory grows after its start, including the modules that it loads.
_MOST_GROWTH = 96 * 1024
#: The link's method for a verb, where its name differs.
LINK_CALLS = {"pause": "freeze", "kill": "signal"}
#: The container's first process, as the monitor numbers it.
INIT = 1
_STATES = ("creating", "created", "running", "paused", "stopped")


@dataclass
class Scene:
    """A monitor, the fake host with QEMU and the guest, and the events that the container's first proxy receives."""

    monitor: Monitor
    host: FakeHost
    hearing: asyncio.Task[list[tuple[str, dict[str, Any]]]]

    async def machine(self) -> FakeMachine:
        """The VM that was started."""
        return await self.host.machine()

    async def called(self, method: str) -> None:
        """Wait until the guest has received a call of a method."""
        machine = await self.machine()
        await until(lambda: bool(machine.asked(method)))

    async def executed(self, command: str) -> None:
        """Wait until QEMU has received a command."""
        machine = await self.machine()
        await until(lambda: command in machine.executed())

    async def begin(self, verb: str, **params: Any) -> asyncio.Task[object]:
        """Begin a verb and wait for its call of the guest. All verbs except a start need a running container."""
        await self.monitor.report()
        if verb != "start":
            await self.monitor.ask("start")
        if verb == "exec":
            await self.monitor.announce(f"c1/{params['key']}")
        asking = asyncio.create_task(self.monitor.ask(verb, **params))
        machine = await self.machine()
        await until(lambda: any(name in (verb, LINK_CALLS.get(verb)) for name, _ in machine.calls))
        return asking

    async def start(self) -> FakeMachine:
        """Create and start the container."""
        await self.monitor.report()
        await self.monitor.ask("start")
        return await self.machine()

    async def prove_running(self) -> None:
        """Check that the sandbox runs: everything that the guest has sent was read, and the monitor answers."""
        assert await self.monitor.ask("listing") == []
        check(self.monitor)
        assert await self.monitor.ask("pids") == [os.getpid()]
        assert self.monitor.peak() - self.monitor.inherited < _MOST_GROWTH

    async def prove_ended(self, reason: str) -> None:
        """Check that the sandbox has ended, that its state contains the reason, and that its proxy exits with 255."""
        assert await self.monitor.ended() == 0, self.monitor.log()
        check(self.monitor)
        state = self.monitor.store.read()
        assert state["status"] == "stopped"
        assert state["failure"]["message"].startswith(reason)
        assert await self.hearing == [("exit", {"code": 255})]

    async def prove_refused(self, reason: str) -> HawseError:
        """Check that the container was not created, for that reason."""
        try:
            await self.monitor.report()
        except HawseError as error:
            assert re.search(reason, error.message), error.message
            assert error.message.isprintable()
            assert len(error.sentence()) < 40_000
            await self.monitor.ended()
            return error
        raise AssertionError("it was created")

    async def prove_deletable(self) -> None:
        """Check that `delete --force` succeeds and that nothing is left."""
        assert await asyncio.to_thread(delete, self.monitor.store, force=True) == []
        assert await self.monitor.ended() == 0
        assert os.listdir(self.monitor.store.root) == []
        for machine in self.host.machines:
            assert not runs(machine.program.pid)


def check(monitor: Monitor) -> None:
    """Check that the monitor's log has no traceback and that the state is strict JSON."""
    with suppress(FileNotFoundError):
        check_log(monitor.log())
        state = json.loads(Path(f"{monitor.store.path}/state.json").read_text(), parse_constant=_refuse)
        check_plain(state, most=200_000)
        assert state["status"] in _STATES
        assert state["id"] == "c1"


def check_log(log: str) -> None:
    """Check that no exception ended a task of the monitor or was lost in it."""
    assert "Traceback" not in log, log
    assert "never retrieved" not in log, log
    check_plain(log, most=100_000)


def play(
    directory: Path,
    network: str,
    story: Callable[[Scene], Awaitable[None]],
    *,
    prepare: Callable[[FakeHost], None] = lambda _host: None,
    **changes: Any,
) -> None:
    """Run a story with a container that is being created, then delete it. ``changes``: fields of its plan.

    ``prepare`` sets the guest's answers before the guest starts. The container's name server is one to which the
    monitor forwards the guest's queries.
    """

    async def whole(monitor: Monitor, host: FakeHost) -> None:
        host.answers |= {"listing": [], "statistics": {}, "bind_vfio": BOUND}
        prepare(host)
        (directory / "resolv.conf").write_text(f"nameserver {SERVER}\n")
        mounts = [{"destination": "/etc/resolv.conf", "source": "/run/hawse/share/c1/names"}]
        shares = [Share(name="names", source=f"{directory}/resolv.conf", is_dir=False, readonly=True)]
        spec = {"process": {"args": ["x"]}, "mounts": mounts}
        defaults: dict[str, Any] = {"network": network, "shares": shares, "spec": spec}
        machine = machine_plan(changes.get("groups", ()), qemu=host.qemu)
        monitor.send(sandbox_plan(machine, bundle=str(directory), **defaults | changes))
        hearing = asyncio.create_task(heard(await monitor.announce()))
        await until(lambda: os.path.exists(f"{monitor.store.path}/monitor.log"))
        try:
            with open(f"{monitor.store.path}/monitor.log") as log:
                scene = Scene(monitor, host, hearing)
                await story(scene)
                await scene.prove_deletable()
                assert [name for name, _ in await hearing] == ["exit"]
                check_log(log.read())
        finally:
            hearing.cancel()

    tell(directory, whole)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in a state")
