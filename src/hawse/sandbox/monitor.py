"""The monitor's process: makes a sandbox from a plan, keeps it until its container has ended, and undoes it.

``python -m hawse.sandbox.monitor ROOT ID LISTENER REPORT``: the last two are inherited descriptors, of the bound
monitor.sock and of a socket to the command line. The plan comes in over REPORT, then one JSON line goes out:
``{"created": [[level, text]...]}`` or ``{"error": ...}``. If the command line goes before that, everything is undone.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack, suppress

from hawse.errors import HawseError, StateError
from hawse.sandbox import devices, plan, share
from hawse.sandbox.machine import Machine, boot
from hawse.sandbox.sandbox import Sandbox
from hawse.sandbox.service import Service
from hawse.sandbox.state import Store
from hawse.sandbox.steps import Steps


class Report:
    """The command line that asked for the sandbox: told once how it went, and watched until then."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.sent = False

    def send(self, message: dict[str, object]) -> None:
        """Say how it went. A caller that is gone is no error here: see :meth:`caller_gone`."""
        self.sent = True
        self._connection.setblocking(True)
        with suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")
            self._connection.shutdown(socket.SHUT_WR)

    async def caller_gone(self) -> None:
        """Wait until the caller has closed its end, as it does when it is killed."""
        self._connection.setblocking(False)
        with suppress(OSError):
            await asyncio.get_running_loop().sock_recv(self._connection, 1)


def main() -> None:
    """Run until the sandbox has ended."""
    root, name = sys.argv[1:3]
    listener, connection = (socket.socket(fileno=int(fd)) for fd in sys.argv[3:5])
    for inherited in (listener, connection):
        inherited.set_inheritable(False)
    store = Store(root, name)
    lock = store.lock()
    made = plan.decode(_read_plan(connection))
    report = Report(connection)
    try:
        # Here, since a mount namespace can only be left for another by a process of one thread.
        share.enter_private_namespace()
        share.populate(made.shares, f"{store.path}/share/{name}")
    except HawseError as error:
        report.send({"error": error.to_wire()})
    else:
        asyncio.run(_monitor(made, store, listener, report))
    os.close(lock)


async def _monitor(made: plan.SandboxPlan, store: Store, listener: socket.socket, report: Report) -> None:
    """Make the sandbox and keep it until its container, a signal, a deletion or its caller's death ends it."""
    sandbox = Sandbox(made, store)
    server = await asyncio.start_unix_server(Service(sandbox).connection, sock=listener)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, sandbox.finished.set)
    living = asyncio.create_task(_live(made, store, sandbox, report))
    ends = [asyncio.create_task(end) for end in (report.caller_gone(), sandbox.finished.wait())]
    await asyncio.wait([living, *ends], return_when=asyncio.FIRST_COMPLETED)
    if not report.sent:
        living.cancel()
    with suppress(asyncio.CancelledError):
        await living
    for end in ends:
        end.cancel()
    if not report.sent:
        report.send({"error": StateError(f"container {made.id} was deleted while it was created").to_wire()})
    sandbox.end()
    server.close()


async def _live(made: plan.SandboxPlan, store: Store, sandbox: Sandbox, report: Report) -> None:
    """Acquire everything, report, and hold it until the sandbox is to end; the stack is the undo."""
    steps = Steps(f"{store.path}/steps.json", made.steps)
    steps.mark("monitor ready")
    try:
        async with AsyncExitStack() as undo:
            machine = await boot(made.machine, store.path, undo, steps)
            work = asyncio.create_task(_furnish(made, machine, sandbox, steps))
            try:
                await _first(work, machine)
            finally:
                work.cancel()
            steps.save()
            report.send({"created": work.result()})
            machine.failure.add_done_callback(lambda _: sandbox.finished.set())
            await sandbox.finished.wait()
            steps.mark("container ended")
            if machine.failure.done():
                sandbox.lose(_explained(machine))
            else:
                await devices.release(made.plugs, machine.qmp)
                steps.mark("devices released")
            steps.save()
    except HawseError as error:
        report.send({"error": error.to_wire()})


async def _furnish(made: plan.SandboxPlan, machine: Machine, sandbox: Sandbox, steps: Steps) -> list[tuple[str, str]]:
    if made.shares:
        await machine.link.call("mount_share", {"kind": made.machine.share, "tag": "hawse"}, seconds=60)
        steps.mark("share mounted")
    groups = await devices.attach(made.plugs, machine.qmp, machine.link, seconds=made.machine.device_seconds)
    steps.mark("devices attached")
    notes = await sandbox.create(machine.link, devices.guest_nodes(made.nodes, groups))
    steps.mark("container created")
    return notes


async def _first(work: asyncio.Task[list[tuple[str, str]]], machine: Machine) -> None:
    """Wait for the work; a machine that ends before it is the better reason, with the last words of its console."""
    await asyncio.wait((work, machine.failure), return_when=asyncio.FIRST_COMPLETED)
    if machine.failure.done() and not (work.done() and work.exception() is None):
        raise _explained(machine)
    await work


def _explained(machine: Machine) -> HawseError:
    """Why the machine ended, with the last words of its console where nothing else is shown."""
    reason = machine.failure.result()
    reason.evidence = reason.evidence or machine.console.tail()
    return reason


def _read_plan(report: socket.socket) -> bytes:
    """Four bytes of length, then the plan; the caller keeps its end open, since its end is its death."""
    length = int.from_bytes(_read_exactly(report, 4), "big")
    return _read_exactly(report, length)


def _read_exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise SystemExit("the command line ended before it had sent its plan")
        data += piece
    return bytes(data)


if __name__ == "__main__":
    main()
