"""The VM of a sandbox: virtiofsd, QEMU, its console and QMP, and the link to the agent.

The VM boots, or it is restored from a template. In both cases its RAM is a private file, which it shares with no other
sandbox.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from hawse.errors import HawseError, LinkError, VmError
from hawse.linux import attributes
from hawse.monitor.agent.calls import MountShare
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.agent.identity import wake
from hawse.monitor.machine.bounded_log import BoundedLog, collect
from hawse.monitor.machine.programs import Program, Watched
from hawse.monitor.machine.qemu_warnings import STOPPED_FOR_GOOD, QemuWarnings
from hawse.monitor.machine.start_programs import Launched
from hawse.plan import model
from hawse.state.steps import GUEST, QEMU, SHARE, Steps
from hawse.vm.arguments import SHARE_TAG, plug_share

if TYPE_CHECKING:
    from collections.abc import Callable

    from hawse.linux.processes import Process
    from hawse.vm.qmp import Qmp

_QMP_SECONDS = 60.0
#: Time from the end of QEMU's sockets to the report of its exit. In between, the kernel ends its namespaces, which
#: waits for RCU (Linux kernel/exit.c, do_exit()): more than a second on a busy host.
_DEATH_SECONDS = 4.0
#: More than the time between the end of the link and the result of ``Machine.failure``.
_REASON_SECONDS = 5.0
_POLL_SECONDS = 0.003
#: Seconds that a call may take in addition to its wait in the guest.
_MARGIN = 5.0
Value = TypeVar("Value")


@dataclass
class Machine:
    """A VM whose agent answers. ``failure`` gets a result when QEMU, virtiofsd or the link ends.

    ``ram`` is a descriptor of its memory. ``share_plugged``: the share's device is plugged. ``shared`` is done when the
    agent has mounted the share.
    """

    link: GuestLink
    qmp: Qmp
    console: BoundedLog
    failure: asyncio.Future[HawseError]
    ram: int
    share_plugged: bool
    #: Returns its running programs on the host.
    processes: Callable[[], list[Process]] = list
    shared: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, reason: HawseError) -> None:
        """End the VM for this reason, unless it has ended for another."""
        if not self.failure.done():
            self.failure.set_result(reason)

    async def end(self) -> HawseError | None:
        """The reason why the VM has ended; None while it runs."""
        if self.link.ended.done() or self.qmp.ended:
            # They end a moment before QEMU's process, whose failure explains more than those of pending calls.
            await asyncio.wait((self.failure,), timeout=_REASON_SECONDS)
        return self.failure.result() if self.failure.done() else None


async def boot(
    plan: model.MachinePlan, launched: Launched, directory: str, undo: AsyncExitStack, steps: Steps
) -> Machine:
    """Wait for the agent of a VM that boots. Its resources are released by ``undo``, in reverse order.

    Raises :class:`VmError` with the tail of the console, or of the stderr of the program that ended.
    """
    machine = await _adopt(plan, launched, directory, undo, steps)
    # The VM runs already, and QEMU reports no event before QMP answers (QEMU monitor/monitor.c,
    # monitor_qapi_event_emit()).
    machine.qmp.stopped.set()
    try:
        with steps.span(GUEST, "boots"):
            await _wait([machine.link.hello], machine.failure, plan.boot_seconds)
        if not machine.link.hello.done():
            raise VmError(
                f"the guest did not report within {plan.boot_seconds:g} s",
                hint="the end of the console log follows; vm.boot_seconds sets the limit",
            )
        await _wake(machine, steps, seconds=plan.boot_seconds)
    except HawseError as error:
        raise error.with_context(evidence=machine.console.tail()) from None
    return machine


async def restore(
    plan: model.MachinePlan, launched: Launched, directory: str, undo: AsyncExitStack, steps: Steps
) -> Machine:
    """Load the template's state into a VM that waits for it, and set the VM's identity. Raises as :func:`boot`."""
    machine = await _adopt(plan, launched, directory, undo, steps)
    try:
        loading = asyncio.create_task(_load(launched, machine, steps))
        try:
            await result_or_failure(loading, machine)
        except OSError as error:
            # QEMU stops reading its state when it dies: wait for its stderr.
            await asyncio.wait([machine.failure], timeout=_DEATH_SECONDS)
            reason = (
                machine.failure.result()
                if machine.failure.done()
                else VmError(f"QEMU stopped reading its state: {error.strerror}")
            )
            raise reason from None
        finally:
            loading.cancel()
        # The calls are sent in this order. The agent completes the first before it reads the second. The share may be
        # plugged meanwhile.
        waking = asyncio.create_task(_wake(machine, steps, seconds=plan.boot_seconds))
        begin_sharing(plan, machine, undo, steps)
        await waking
    except HawseError as error:
        raise error.with_context(evidence=machine.console.tail()) from None
    return machine


async def result_or_failure(work: asyncio.Task[Value], machine: Machine) -> Value:
    """The result of work that needs the VM. If the VM ends before the work is complete, its failure is raised."""
    await asyncio.wait((work, machine.failure), return_when=asyncio.FIRST_COMPLETED)
    if not _has_result(work) and (reason := await machine.end()) is not None:
        raise reason
    return await work


def begin_sharing(plan: model.MachinePlan, machine: Machine, undo: AsyncExitStack, steps: Steps) -> None:
    """Start to plug the share, unless it is plugged, and to mount it. ``machine.shared`` is done when it is mounted."""
    machine.shared = asyncio.create_task(_share(plan, machine, steps))
    undo.push_async_callback(_ended, machine.shared)
    undo.callback(machine.shared.cancel)


async def _share(plan: model.MachinePlan, machine: Machine, steps: Steps) -> None:
    if not machine.share_plugged:
        with steps.span(SHARE, "plugged"):
            command, arguments = plug_share()
            await machine.qmp.execute(command, arguments, timeout=_QMP_SECONDS)
    seconds = plan.device_seconds
    call = MountShare(
        kind=plan.shape.share,
        tag=SHARE_TAG,
        address=plan.share_address,
        seconds=seconds,
        protected=attributes.protected_files(),
        modules=plan.modules,
        load=plan.load_modules,
    )
    with steps.span(SHARE, "mounted"):
        await machine.link.call(call, seconds=seconds + _MARGIN)


async def _load(launched: Launched, machine: Machine, steps: Steps) -> None:
    """Load the state into QEMU, and start the guest. The memory must be complete: the load reads virtio's rings."""
    await machine.qmp.leave_memory_alone(timeout=_QMP_SECONDS)
    assert launched.saved is not None and launched.copy is not None
    await asyncio.to_thread(launched.copy.wait)
    with steps.span(QEMU, "state loaded"):
        feed, source = socket.socketpair()
        with feed:
            with source:
                await machine.qmp.give(source.fileno(), "state", timeout=_QMP_SECONDS)
            await machine.qmp.execute("migrate-incoming", {"uri": "fd:state"}, timeout=_QMP_SECONDS)
            feed.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(feed, launched.saved.state)
        while await machine.qmp.status(timeout=_QMP_SECONDS) == "inmigrate":
            await asyncio.sleep(_POLL_SECONDS)
        await machine.qmp.execute("cont", {}, timeout=_QMP_SECONDS)


async def _ended(task: asyncio.Future[None]) -> None:
    """Wait for the end of a task, before its descriptors are closed."""
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


async def _wake(machine: Machine, steps: Steps, *, seconds: float) -> None:
    """Send the first call, which sets the VM's identity. Clones of a template need it most."""
    waking = asyncio.create_task(wake(machine.link, steps, seconds=seconds))
    try:
        await result_or_failure(waking, machine)
    finally:
        waking.cancel()


async def _adopt(
    plan: model.MachinePlan, launched: Launched, directory: str, undo: AsyncExitStack, steps: Steps
) -> Machine:
    """Connect to the started programs. Returns when QMP answers."""
    undo.push(launched.undo)
    failure: asyncio.Future[HawseError] = asyncio.get_running_loop().create_future()

    def fail(error: HawseError) -> None:
        if not failure.done():
            failure.set_result(error)

    qemu_warnings = QemuWarnings(launched.warn, fail, address_bits=plan.shape.address_bits)
    _watch(launched.qemu, failure, undo, qemu_warnings)
    if launched.virtiofsd is not None:
        _watch(launched.virtiofsd, failure, undo)
    console = BoundedLog(f"{directory}/console.log")
    undo.callback(console.close)
    reader, writer = await asyncio.open_connection(sock=launched.console)
    undo.callback(writer.close)
    reading = asyncio.create_task(collect(reader, console))
    undo.callback(reading.cancel)

    # Imported here, since the library takes 60 ms to load: QEMU starts meanwhile.
    from hawse.vm.qmp import EveryNode, Qmp

    qmp_log = BoundedLog(f"{directory}/qmp.log")
    undo.callback(qmp_log.close)
    nodes = EveryNode() if launched.jail is None else launched.jail.nodes
    qmp = Qmp(nodes=nodes, log=qmp_log.write, on_flood=fail)
    undo.push_async_callback(qmp.close)
    undo.callback(asyncio.create_task(_watch_stops(qmp, qemu_warnings, fail)).cancel)
    link_reader, link_writer = await asyncio.open_connection(sock=launched.link)
    undo.callback(link_writer.close)
    link = GuestLink(link_reader, link_writer)
    serving = asyncio.create_task(link.run())
    undo.callback(serving.cancel)
    undo.callback(asyncio.create_task(_watch_link(link, failure)).cancel)

    greeting = asyncio.create_task(qmp.open(launched.qmp, seconds=_QMP_SECONDS))
    try:
        with steps.span(QEMU, "QMP answers"):
            await _wait([greeting], failure, _QMP_SECONDS)
            await greeting
    except HawseError as error:
        # QEMU closes its monitor when it dies: wait for its stderr.
        await asyncio.wait([failure], timeout=_DEATH_SECONDS)
        reason = failure.result() if failure.done() else error
        raise reason.with_context(evidence=console.tail()) from None
    finally:
        greeting.cancel()
    if launched.jail is not None:
        launched.jail.nodes.dismiss_kvm()
    return Machine(link, qmp, console, failure, launched.ram, launched.share_plugged, launched.processes)


async def _watch_link(link: GuestLink, failure: asyncio.Future[HawseError]) -> None:
    """Report the end of the link as a failure, unless QEMU's end is the cause: that failure is reported instead."""
    reason = await link.ended
    if not isinstance(reason, LinkError):
        await asyncio.wait([failure], timeout=_DEATH_SECONDS)
    if not failure.done():
        failure.set_result(reason)


async def _watch_stops(qmp: Qmp, qemu_warnings: QemuWarnings, fail: Callable[[HawseError], object]) -> None:
    """Report a VM that QEMU has stopped for an error: QEMU does not exit, and the guest would never answer again."""
    while True:
        await qmp.stopped.wait()
        qmp.stopped.clear()
        try:
            status = await qmp.status(timeout=_QMP_SECONDS)
        except VmError:
            continue  # its end, or its silence, is reported elsewhere
        if status in STOPPED_FOR_GOOD:
            fail(qemu_warnings.stop_error(status))


def _watch(
    program: Program,
    failure: asyncio.Future[HawseError],
    undo: AsyncExitStack,
    qemu_warnings: QemuWarnings | None = None,
) -> None:
    watched = Watched(program, qemu_warnings)
    undo.callback(watched.close)

    async def watch() -> None:
        death = await watched.death()
        # With exit code 0 the guest powered off: the end of the link explains more.
        if death is not None and not failure.done():
            failure.set_result(death)

    task = asyncio.create_task(watch())
    undo.callback(task.cancel)


def _has_result(work: asyncio.Task[Value]) -> bool:
    return work.done() and not work.cancelled() and work.exception() is None


async def _wait(
    work: list[asyncio.Task[None]] | list[asyncio.Future[None]],
    failure: asyncio.Future[HawseError],
    seconds: float,
) -> None:
    """Wait for the work, the failure or the deadline. Raises the failure."""
    await asyncio.wait([*work, failure], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if failure.done():
        raise failure.result()
