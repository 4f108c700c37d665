"""The life of a sandbox after the start of its programs: create it, report the result, hold it, and undo it."""

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
from hawse.monitor.machine.bounded_log import with_console_tail
from hawse.monitor.machine.machine import Machine, result_or_failure
from hawse.monitor.machine.restore import obtain
from hawse.monitor.machine.start_programs import Launched
from hawse.monitor.network.host_network import Network
from hawse.monitor.privileges import Workers
from hawse.monitor.sandbox import Sandbox
from hawse.monitor.service import Service
from hawse.monitor.share.share_root import ShareRoot
from hawse.notes import Notes, warning
from hawse.plan.model import SandboxPlan
from hawse.state import timeline
from hawse.state.steps import DEVICES, GUEST, NETWORK, Steps
from hawse.state.store import Store

if TYPE_CHECKING:
    from hawse.monitor.report import Report

#: The guest has 5 s to release its devices. QEMU answers at once unless it fails.
_RELEASE_SECONDS = 6.0
#: Modules that the monitor's code imports inside functions, since the hot verbs do not need them.
LOADED_LATE = (
    "hawse.linux.mountinfo", "hawse.host.network_namespace", "hawse.host.redirects", "hawse.host.cgroup.systemd",
    "hawse.vfio.bind.records", "hawse.vfio.bind.bind",
)  # fmt: skip


@dataclass(frozen=True)
class Creation:
    """A sandbox during its creation: the plan, the started programs, and the caller's connection."""

    plan: SandboxPlan
    launched: Launched
    share: ShareRoot
    network: Network
    store: Store
    report: Report
    steps: Steps
    notes: Notes


def run(creation: Creation, listener: socket.socket) -> None:
    """Run the sandbox to its end."""
    asyncio.run(_monitor(creation, listener))


async def _monitor(creation: Creation, listener: socket.socket) -> None:
    """Create the sandbox, and hold it until the end of its container, a signal, a deletion or its caller's death."""
    report = creation.report
    sandbox = Sandbox(creation.plan, creation.share, creation.network, creation.store, creation.steps)
    # Not start_unix_server(): from Python 3.13 on it opens the path to which the socket is bound
    # (asyncio/unix_events.py), and this path contains a descriptor of the parent process.
    server = await asyncio.start_server(Service(sandbox).connection, sock=listener)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, sandbox.finished.set)
    running = asyncio.create_task(_hold(creation, sandbox))
    ends = [asyncio.create_task(end) for end in (_caller_gone(report), sandbox.finished.wait())]
    await asyncio.wait([running, *ends], return_when=asyncio.FIRST_COMPLETED)
    if not report.sent:
        running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    for end in ends:
        end.cancel()
    if not report.sent:
        gone = StateError(f"container {creation.plan.container.id} was deleted while it was created")
        report.send({"error": gone.to_wire()})
    sandbox.end()
    await sandbox.restore_functions()
    await sandbox.processes.flush()
    server.close()


async def _caller_gone(report: Report) -> None:
    """Wait until the caller has closed its end, for example because it was killed."""
    report.connection.setblocking(False)
    with suppress(OSError):
        await asyncio.get_running_loop().sock_recv(report.connection, 1)


class _EngineLog:
    """The monitor's log and the engine's log file. Engines remove the latter's directory with the container."""

    def __init__(self, path: str, form: str) -> None:
        self._path = path
        self._log = Log(path or None, form=form)

    def warning(self, text: str) -> None:
        """Log a warning in both."""
        print(text, file=sys.stderr)
        self._add(partial(self._log.warning, text))

    def error(self, failure: HawseError) -> None:
        """Log the error that ended the sandbox in both."""
        print(failure.sentence(), file=sys.stderr)
        self._add(partial(self._log.error, failure.sentence()))

    def _add(self, entry: Callable[[], None]) -> None:
        with suppress(OSError):
            if self._path and os.path.isdir(os.path.dirname(self._path)):
                entry()


async def _hold(creation: Creation, sandbox: Sandbox) -> None:
    """Create the sandbox, report the result, and hold it until it must end. The exit stack undoes each step."""
    plan, steps, notes = creation.plan, creation.steps, creation.notes
    workers = Workers()
    log = _EngineLog(*plan.log_file)
    creation.launched.warn = log.warning
    try:
        async with AsyncExitStack() as undo:
            machine = await obtain(plan.machine, creation.launched, creation.store.path, undo, steps, notes)
            # The monitor can leave the sandbox's cgroup now: its children are in it, and it was charged for the
            # template's memory.
            entering = asyncio.create_task(_enter_control_cgroup(sandbox))
            undo.callback(entering.cancel)
            work = asyncio.create_task(_create_first(machine, sandbox, steps))
            try:
                await _wait_with_console(work, machine)
            finally:
                work.cancel()
            steps.save()
            notes += await entering
            workers.drop_privileges()
            creation.report.send({"created": [*notes, *work.result()]})
            machine.failure.add_done_callback(lambda _: sandbox.finished.set())
            # In a thread, since the event loop must answer a start next.
            loading = asyncio.create_task(asyncio.to_thread(_load_all))
            undo.callback(loading.cancel)
            await sandbox.finished.wait()
            sandbox.boost()
            if machine.failure.done():
                failure = _failure(machine)
                log.error(failure)
                sandbox.record_failure(failure)
            else:
                with steps.span(DEVICES, "released"), suppress(TimeoutError):
                    # If QEMU does not answer, it is killed next, which also releases its devices.
                    async with asyncio.timeout(_RELEASE_SECONDS):
                        await hotplug.release(sandbox.claims.plugs, machine.qmp)
            steps.save()
    except HawseError as error:
        if plan.timeline:
            timeline.write(plan.timeline, steps.done, name=plan.container.id)
        creation.report.send({"error": error.to_wire()})


def _load_all() -> None:
    """Import the modules that this process may need later, in 10 ms and 300 KiB.

    Otherwise, after an update of the installation, this process would import modules of another version.
    """
    for name in LOADED_LATE:
        importlib.import_module(name)


async def _enter_control_cgroup(sandbox: Sandbox) -> Notes:
    """Move the monitor to the control cgroup, out of the sandbox's CPU limit. Returns warnings."""
    # In a thread: a move between cgroups of version 1 waits for the kernel's RCU.
    process = open_process(os.getpid())
    return [warning(text) for text in await asyncio.to_thread(sandbox.control.enter, [process])]


async def _create_first(machine: Machine, sandbox: Sandbox, steps: Steps) -> Notes:
    """Plug devices and network interfaces, while the share is mounted. Then create the first container."""
    connecting = asyncio.create_task(_connect(machine, sandbox, steps))
    try:
        if sandbox.plan.container.native:  # their drivers are in the share
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


async def _wait_with_console(work: asyncio.Task[Notes], machine: Machine) -> None:
    """Wait for the work. If the VM ends first, its failure is raised, with the tail of its console."""
    try:
        await result_or_failure(work, machine)
    except HawseError:
        if machine.failure.done():
            raise _failure(machine) from None
        raise


def _failure(machine: Machine) -> HawseError:
    return with_console_tail(machine.failure.result(), machine.console.tail())
