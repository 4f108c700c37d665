"""A container of the real monitor whose guest is hostile: brought to a phase, and what has to hold whatever it did."""

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

from hawse.container.delete import delete
from hawse.errors import HawseError
from hawse.sandbox.plan import Share
from tests.fuzz.target import check_plain
from tests.support.async_wait import until
from tests.support.fake_machine import BOUND, FakeHost, FakeMachine
from tests.support.monitor import Monitor, heard, runs, tell
from tests.support.plans import machine_plan, sandbox_plan

#: The container's name server, on the loopback of its network on the host, where no program listens.
SERVER = "127.0.0.11"
#: KiB that the monitor's memory grows by from its beginning on, with all that it loads.
_MOST_GROWTH = 96 * 1024
#: The call of the link that a verb makes, where it has another name.
LINK_CALLS = {"pause": "freeze", "kill": "signal"}
#: The container's first process, as the monitor numbers it.
INIT = 1
_STATES = ("creating", "created", "running", "paused", "stopped")


@dataclass
class Scene:
    """A monitor, the host that plays QEMU and the guest, and the events that the container's first proxy receives."""

    monitor: Monitor
    host: FakeHost
    hearing: asyncio.Task[list[tuple[str, dict[str, Any]]]]

    async def machine(self) -> FakeMachine:
        """The one that was started."""
        return await self.host.machine()

    async def called(self, method: str) -> None:
        """The guest was asked."""
        machine = await self.machine()
        await until(lambda: bool(machine.asked(method)))

    async def executed(self, command: str) -> None:
        """QEMU was given a command."""
        machine = await self.machine()
        await until(lambda: command in machine.executed())

    async def begin(self, verb: str, **params: Any) -> asyncio.Task[object]:
        """A command line's call, which the guest was asked for. All but a start are of a container that runs."""
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
        """The container is created, and runs."""
        await self.monitor.report()
        await self.monitor.ask("start")
        return await self.machine()

    async def prove_running(self) -> None:
        """The sandbox goes on: all that the guest has sent was read, and the monitor answers."""
        assert await self.monitor.ask("listing") == []
        check(self.monitor)
        assert await self.monitor.ask("pids") == [os.getpid()]
        assert self.monitor.peak() - self.monitor.inherited < _MOST_GROWTH

    async def prove_ended(self, reason: str) -> None:
        """The sandbox has ended, its state has the reason, and its proxy exits with 255."""
        assert await self.monitor.ended() == 0, self.monitor.log()
        check(self.monitor)
        state = self.monitor.store.read()
        assert state["status"] == "stopped"
        assert state["failure"]["message"].startswith(reason)
        assert await self.hearing == [("exit", {"code": 255})]

    async def prove_refused(self, reason: str) -> HawseError:
        """The container was not created, for that reason."""
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
        """`delete --force` succeeds, and nothing is left."""
        assert await asyncio.to_thread(delete, self.monitor.store, force=True) == []
        assert await self.monitor.ended() == 0
        assert os.listdir(self.monitor.store.root) == []
        for machine in self.host.machines:
            assert not runs(machine.program.pid)


def check(monitor: Monitor) -> None:
    """The monitor's log has no traceback, and the state is strict JSON."""
    with suppress(FileNotFoundError):
        check_log(monitor.log())
        state = json.loads(Path(f"{monitor.store.path}/state.json").read_text(), parse_constant=_refuse)
        check_plain(state, most=200_000)
        assert state["status"] in _STATES
        assert state["id"] == "c1"


def check_log(log: str) -> None:
    """No exception went through the monitor, or was lost in it."""
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
    """Run a story of a container that is being created, then delete it. ``changes`` are of its plan.

    ``prepare`` sets the guest's answers before the guest starts. The container's name server is one that the monitor
    asks on the guest's behalf.
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
                made = Scene(monitor, host, hearing)
                await story(made)
                await made.prove_deletable()
                assert [name for name, _ in await hearing] == ["exit"]
                check_log(log.read())
        finally:
            hearing.cancel()

    tell(directory, whole)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in a state")
