"""A sandbox's time from the start of its programs to its end: made, reported, kept, undone."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hawse.errors import HawseError, StateError
from hawse.linux.processes import open_process
from hawse.log import Log
from hawse.monitor.devices import hotplug
from hawse.monitor.machine.bounded_log import with_last_words
from hawse.monitor.machine.machine import Machine, settled
from hawse.monitor.machine.restore import obtain
from hawse.monitor.machine.start import Launched
from hawse.monitor.network.host_network import Network
from hawse.monitor.privileges import Workers
from hawse.monitor.sandbox import Sandbox
from hawse.monitor.service import Service
from hawse.monitor.share.root import ShareRoot
from hawse.notes import Notes, warning
from hawse.plan.model import SandboxPlan
from hawse.state import timeline
from hawse.state.steps import DEVICES, GUEST, NETWORK, Steps
from hawse.state.store import Store

if TYPE_CHECKING:
    from hawse.monitor.report import Report

#: The guest has 5 s to let go of its devices; QEMU answers at once unless something is wrong with it.
_RELEASE_SECONDS = 6.0
#: Modules that code of the monitor imports where it needs them, since hot verbs do without them.
LOADED_LATE = (
    "hawse.linux.mountinfo", "hawse.host.network_namespace", "hawse.host.redirects", "hawse.host.cgroup.systemd",
    "hawse.vfio.bind.records", "hawse.vfio.bind.bind",
)  # fmt: skip


@dataclass(frozen=True)
class Making:
    """A sandbox that is being made: its plan, what runs of it already, and who is to be told."""

    plan: SandboxPlan
    launched: Launched
    share: ShareRoot
    network: Network
    store: Store
    report: Report
    steps: Steps
    notes: Notes


def run(making: Making, listener: socket.socket) -> None:
    """Live it."""
    asyncio.run(_monitor(making, listener))


async def _monitor(making: Making, listener: socket.socket) -> None:
    """Make the sandbox and keep it until its container, a signal, a deletion or its caller's death ends it."""
    report = making.report
    sandbox = Sandbox(making.plan, making.share, making.network, making.store, making.steps)
    # Not start_unix_server(), which from Python 3.13 on looks for the socket by the path that it was bound by
    # (asyncio/unix_events.py): that went through a descriptor of this process's parent.
    server = await asyncio.start_server(Service(sandbox).connection, sock=listener)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, sandbox.finished.set)
    living = asyncio.create_task(_live(making, sandbox))
    ends = [asyncio.create_task(end) for end in (_caller_gone(report), sandbox.finished.wait())]
    await asyncio.wait([living, *ends], return_when=asyncio.FIRST_COMPLETED)
    if not report.sent:
        living.cancel()
    with suppress(asyncio.CancelledError):
        await living
    for end in ends:
        end.cancel()
    if not report.sent:
        gone = StateError(f"container {making.plan.container.id} was deleted while it was created")
        report.send({"error": gone.to_wire()})
    sandbox.end()
    await sandbox.leave()
    await sandbox.processes.flush()
    server.close()


async def _caller_gone(report: Report) -> None:
    """Wait until the caller has closed its end, as it does when it is killed."""
    report.connection.setblocking(False)
    with suppress(OSError):
        await asyncio.get_running_loop().sock_recv(report.connection, 1)


class _EngineLog:
    """The monitor's log, and the engine's log file. Engines remove its directory when they forget the container."""

    def __init__(self, path: str, form: str) -> None:
        self._path = path
        self._log = Log(path or None, form=form)

    def warning(self, text: str) -> None:
        """Add a warning to both."""
        print(text, file=sys.stderr)
        self._add(partial(self._log.warning, text))

    def error(self, failure: HawseError) -> None:
        """Add the error for which the sandbox has ended to both."""
        print(failure.sentence(), file=sys.stderr)
        self._add(partial(self._log.error, failure.sentence()))

    def _add(self, entry: Callable[[], None]) -> None:
        with suppress(OSError):
            if self._path and os.path.isdir(os.path.dirname(self._path)):
                entry()


async def _live(making: Making, sandbox: Sandbox) -> None:
    """Acquire everything, report, and hold it until the sandbox is to end; the stack is the undo."""
    made, steps, notes = making.plan, making.steps, making.notes
    workers = Workers()
    log = _EngineLog(*made.log_file)
    making.launched.warn = log.warning
    try:
        async with AsyncExitStack() as undo:
            machine = await obtain(made.machine, making.launched, making.store.path, undo, steps, notes)
            # Its children are in the sandbox's cgroup, and the memory of a template has been charged there.
            leaving = asyncio.create_task(_leave(sandbox))
            undo.callback(leaving.cancel)
            work = asyncio.create_task(_furnish(machine, sandbox, steps))
            try:
                await _first(work, machine)
            finally:
                work.cancel()
            steps.save()
            notes += await leaving
            workers.give_up_privileges()
            making.report.send({"created": [*notes, *work.result()]})
            machine.failure.add_done_callback(lambda _: sandbox.finished.set())
            # Not in the event loop, which has a start to answer next.
            loading = asyncio.create_task(asyncio.to_thread(_load_all))
            undo.callback(loading.cancel)
            await sandbox.finished.wait()
            sandbox.hurry()
            if machine.failure.done():
                failure = _explained(machine)
                log.error(failure)
                sandbox.lose(failure)
            else:
                with steps.span(DEVICES, "released"), suppress(TimeoutError):
                    # A QEMU that does not answer is killed next, which releases its devices as well.
                    async with asyncio.timeout(_RELEASE_SECONDS):
                        await hotplug.release(sandbox.claims.plugs, machine.qmp)
            steps.save()
    except HawseError as error:
        if made.timeline:
            timeline.write(made.timeline, steps.done, name=made.container.id)
        making.report.send({"error": error.to_wire()})


def _load_all() -> None:
    """Load the modules of hawse that are not loaded yet and may be needed: 10 ms and 300 KiB.

    The installation may be updated while the sandbox runs, and this process would load modules of another version.
    """
    for name in LOADED_LATE:
        importlib.import_module(name)


async def _leave(sandbox: Sandbox) -> Notes:
    """Have the monitor outside its sandbox's share of CPU time; what to warn of."""
    # In a thread: a move between cgroups of version 1 waits for the kernel's RCU.
    process = open_process(os.getpid())
    return [warning(text) for text in await asyncio.to_thread(sandbox.control.enter, [process])]


async def _furnish(machine: Machine, sandbox: Sandbox, steps: Steps) -> Notes:
    """Give the machine its devices and its network, beside its files, which are on their way, then its container."""
    connecting = asyncio.create_task(_connect(machine, sandbox, steps))
    try:
        if sandbox.plan.container.native:  # whose drivers are among the files
            await machine.shared
        with steps.span(DEVICES, "attached"):
            await sandbox.first.begin(machine.qmp, machine.link)
        await machine.shared
        notes = await connecting
    finally:
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
    with steps.span(GUEST, "container created"):
        return [*notes, *await sandbox.create(machine)]


async def _connect(machine: Machine, sandbox: Sandbox, steps: Steps) -> Notes:
    with steps.span(NETWORK, "connected"):
        return await sandbox.nics.plug(machine.qmp, machine.link)


async def _first(work: asyncio.Task[Notes], machine: Machine) -> None:
    """Wait for the work; a machine that ends before it is the better reason, with the last words of its console."""
    try:
        await settled(work, machine)
    except HawseError:
        if machine.failure.done():
            raise _explained(machine) from None
        raise


def _explained(machine: Machine) -> HawseError:
    return with_last_words(machine.failure.result(), machine.console.tail())
