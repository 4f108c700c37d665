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
    listener, report = (socket.socket(fileno=int(fd)) for fd in sys.argv[3:5])
    for inherited in (listener, report):
        inherited.set_inheritable(False)
    store = Store(root, name)
    lock = store.lock()
    made = plan.decode(_read_plan(report))
    error: HawseError | None = None
    try:
        share.enter_private_namespace()
        share.populate(made.shares, f"{store.path}/share/{name}")
    except HawseError as reason:
        error = reason
    asyncio.run(_monitor(made, store, listener, Report(report), error))
    os.close(lock)


async def _monitor(
    made: plan.SandboxPlan, store: Store, listener: socket.socket, report: Report, error: HawseError | None
) -> None:
    sandbox = Sandbox(made, store)
    service = Service(sandbox)
    server = await asyncio.start_unix_server(service.connection, sock=listener)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    creating = asyncio.create_task(_create(made, store, sandbox, report, error, ended, service))
    orders = [
        asyncio.create_task(order) for order in (report.caller_gone(), ended.wait(), service.delete_requested.wait())
    ]
    await asyncio.wait([creating, *orders], return_when=asyncio.FIRST_COMPLETED)
    if not creating.done() and not report.sent:
        creating.cancel()
    with suppress(asyncio.CancelledError):
        await creating
    for order in orders:
        order.cancel()
    if not report.sent:
        report.send({"error": StateError(f"container {made.id} was deleted while it was created").to_wire()})
    sandbox.end()
    server.close()


async def _create(
    made: plan.SandboxPlan,
    store: Store,
    sandbox: Sandbox,
    report: Report,
    error: HawseError | None,
    ended: asyncio.Event,
    service: Service,
) -> None:
    """Acquire everything, report, and hold it until the sandbox is to end; the stack is the undo."""
    steps = Steps(f"{store.path}/steps.json", made.steps)
    steps.mark("monitor ready")
    try:
        if error is not None:
            raise error
        async with AsyncExitStack() as undo:
            machine = await boot(made.machine, store.path, undo, steps)
            work = asyncio.create_task(_furnish(made, machine, sandbox, steps))
            try:
                await _first(work, machine)
            finally:
                work.cancel()
            steps.save()
            report.send({"created": work.result()})
            if await _until_end(machine, sandbox.finished, ended, service.delete_requested):
                steps.mark("container ended")
                await devices.release(made.plugs, machine.qmp)
                steps.mark("devices released")
            else:
                reason = machine.failure.result()
                reason.evidence = reason.evidence or machine.console.tail()
                sandbox.lose(reason)
            steps.save()
    except HawseError as reason:
        report.send({"error": reason.to_wire()})


async def _until_end(machine: Machine, *events: asyncio.Event) -> bool:
    """Wait until one of the events asks for the end; False when the machine ended first."""
    waits = [asyncio.create_task(event.wait()) for event in events]

    def wake(_: object) -> None:
        for wait in waits:
            wait.cancel()

    machine.failure.add_done_callback(wake)
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    return any(not wait.cancelled() for wait in done) and not machine.failure.done()


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
        reason = machine.failure.result()
        reason.evidence = reason.evidence or machine.console.tail()
        raise reason
    await work


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
