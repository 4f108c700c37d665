"""The virtual machine of a sandbox: virtiofsd, QEMU, its console and QMP, and the link to the agent that answers.

It boots, or it is restored from a template. Either way its RAM is a file of its own, and nothing in it is shared with
another sandbox.
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
from hawse.monitor.machine.qemu_warnings import Complaints
from hawse.monitor.machine.start import Launched
from hawse.plan import model
from hawse.state.steps import GUEST, QEMU, SHARE, Steps
from hawse.vm.arguments import SHARE_TAG, plug_share

if TYPE_CHECKING:
    from collections.abc import Callable

    from hawse.linux.processes import Process
    from hawse.vm.qmp import Qmp

_QMP_SECONDS = 60.0
_DEATH_SECONDS = 1.0
#: More than the end of the link takes to become the failure.
_REASON_SECONDS = 5.0
_POLL_SECONDS = 0.003
#: What a call may take longer than the wait in the guest that it asks for.
_MARGIN = 5.0
Value = TypeVar("Value")


@dataclass
class Machine:
    """A guest whose agent answers. ``failure`` gets a result when QEMU, virtiofsd or the link ends.

    ``ram`` is a descriptor of its memory; ``share_plugged`` tells whether the share's device is there, and ``shared``
    is done when the agent has mounted it.
    """

    link: GuestLink
    qmp: Qmp
    console: BoundedLog
    failure: asyncio.Future[HawseError]
    ram: int
    share_plugged: bool
    #: Its programs on the host that run, each time anew.
    processes: Callable[[], list[Process]] = list
    shared: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def give_up(self, reason: HawseError) -> None:
        """End it for this reason, unless it has ended for another."""
        if not self.failure.done():
            self.failure.set_result(reason)

    async def end(self) -> HawseError | None:
        """Why the machine has ended, None while it runs."""
        if self.link.ended.done() or self.qmp.ended:
            # They end a moment before QEMU's process does. What was asked of it has failed of that, and explains less.
            await asyncio.wait((self.failure,), timeout=_REASON_SECONDS)
        return self.failure.result() if self.failure.done() else None


async def boot(
    machine: model.MachinePlan, launched: Launched, directory: str, undo: AsyncExitStack, steps: Steps
) -> Machine:
    """Wait for the agent of a machine that boots; what was acquired is on ``undo``, in order.

    Raises :class:`VmError` with the tail of the console, or of the stderr of the program that died.
    """
    made = await _adopt(machine, launched, directory, undo, steps)
    try:
        with steps.span(GUEST, "boots"):
            await _settle([made.link.hello], made.failure, machine.boot_seconds)
        if not made.link.hello.done():
            raise VmError(
                f"the guest did not report within {machine.boot_seconds:g} s",
                hint="the end of its console follows; vm.boot_seconds sets the time",
            )
        await _wake(made, steps, seconds=machine.boot_seconds)
    except HawseError as error:
        raise error.with_context(evidence=made.console.tail()) from None
    return made


async def restore(
    machine: model.MachinePlan, launched: Launched, directory: str, undo: AsyncExitStack, steps: Steps
) -> Machine:
    """Give a machine that waits for its state the template's, and make it one of its own. Raises as :func:`boot`."""
    made = await _adopt(machine, launched, directory, undo, steps)
    try:
        loading = asyncio.create_task(_load(launched, made, steps))
        try:
            await settled(loading, made)
        except OSError as error:
            # A state that QEMU stops reading is one that it dies of: its own words are worth a moment.
            await asyncio.wait([made.failure], timeout=_DEATH_SECONDS)
            reason = made.failure.result() if made.failure.done() else VmError(f"QEMU takes no state: {error.strerror}")
            raise reason from None
        finally:
            loading.cancel()
        # The calls are sent in this order, and the agent takes the first alone: the share may be plugged meanwhile.
        waking = asyncio.create_task(_wake(made, steps, seconds=machine.boot_seconds))
        begin_sharing(machine, made, undo, steps)
        await waking
    except HawseError as error:
        raise error.with_context(evidence=made.console.tail()) from None
    return made


async def settled(work: asyncio.Task[Value], made: Machine) -> Value:
    """The result of work that needs the machine. Raises the machine's failure where it ends before the work is done."""
    await asyncio.wait((work, made.failure), return_when=asyncio.FIRST_COMPLETED)
    if not _succeeded(work) and (reason := await made.end()) is not None:
        raise reason
    return await work


def begin_sharing(machine: model.MachinePlan, made: Machine, undo: AsyncExitStack, steps: Steps) -> None:
    """Have the share plugged, where it is not there yet, and mounted: ``made.shared`` is done when it is."""
    made.shared = asyncio.create_task(_share(machine, made, steps))
    undo.push_async_callback(_ended, made.shared)
    undo.callback(made.shared.cancel)


async def _share(machine: model.MachinePlan, made: Machine, steps: Steps) -> None:
    if not made.share_plugged:
        with steps.span(SHARE, "plugged"):
            command, arguments = plug_share()
            await made.qmp.execute(command, arguments, timeout=_QMP_SECONDS)
    seconds = machine.device_seconds
    call = MountShare(
        kind=machine.shape.share,
        tag=SHARE_TAG,
        address=machine.share_address,
        seconds=seconds,
        protected=attributes.protected_files(),
        modules=machine.modules,
        load=machine.load_modules,
    )
    with steps.span(SHARE, "mounted"):
        await made.link.call(call, seconds=seconds + _MARGIN)


async def _load(launched: Launched, made: Machine, steps: Steps) -> None:
    """Give QEMU the state, after the memory, which loading it reads (virtio's rings), and let the guest go on."""
    await made.qmp.leave_memory_alone(timeout=_QMP_SECONDS)
    assert launched.saved is not None and launched.copy is not None
    await asyncio.to_thread(launched.copy.wait)
    with steps.span(QEMU, "state loaded"):
        feed, source = socket.socketpair()
        with feed:
            with source:
                await made.qmp.give(source.fileno(), "state", timeout=_QMP_SECONDS)
            await made.qmp.execute("migrate-incoming", {"uri": "fd:state"}, timeout=_QMP_SECONDS)
            feed.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(feed, launched.saved.state)
        while await made.qmp.status(timeout=_QMP_SECONDS) == "inmigrate":
            await asyncio.sleep(_POLL_SECONDS)
        await made.qmp.execute("cont", {}, timeout=_QMP_SECONDS)


async def _ended(task: asyncio.Future[None]) -> None:
    """Wait for a task without a way to stop it; its descriptors are closed next."""
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


async def _wake(made: Machine, steps: Steps, *, seconds: float) -> None:
    """What every machine is told before anything else, and a clone above all."""
    waking = asyncio.create_task(wake(made.link, steps, seconds=seconds))
    try:
        await settled(waking, made)
    finally:
        waking.cancel()


async def _adopt(
    machine: model.MachinePlan, launched: Launched, directory: str, undo: AsyncExitStack, steps: Steps
) -> Machine:
    """Programs that were started as a machine whose QMP answers."""
    undo.push(launched.undo)
    failure: asyncio.Future[HawseError] = asyncio.get_running_loop().create_future()
    complaints = Complaints(
        launched.warn,
        lambda error: None if failure.done() else failure.set_result(error),
        address_bits=machine.shape.address_bits,
    )
    _watch(launched.qemu, failure, undo, complaints)
    if launched.virtiofsd is not None:
        _watch(launched.virtiofsd, failure, undo)
    console = BoundedLog(f"{directory}/console.log")
    undo.callback(console.close)
    reader, writer = await asyncio.open_connection(sock=launched.console)
    undo.callback(writer.close)
    reading = asyncio.create_task(collect(reader, console))
    undo.callback(reading.cancel)

    # Here, since the library takes a sixteenth of a second to load: QEMU starts meanwhile.
    from hawse.vm.qmp import EveryNode, Qmp

    qmp_log = BoundedLog(f"{directory}/qmp.log")
    undo.callback(qmp_log.close)
    nodes = EveryNode() if launched.jail is None else launched.jail.nodes
    qmp = Qmp(
        nodes=nodes, log=qmp_log.write, on_flood=lambda error: None if failure.done() else failure.set_result(error)
    )
    undo.push_async_callback(qmp.close)
    link_reader, link_writer = await asyncio.open_connection(sock=launched.link)
    undo.callback(link_writer.close)
    link = GuestLink(link_reader, link_writer)
    serving = asyncio.create_task(link.run())
    undo.callback(serving.cancel)
    watching = asyncio.create_task(_watch_link(link, failure))
    undo.callback(watching.cancel)

    greeting = asyncio.create_task(qmp.open(launched.qmp, seconds=_QMP_SECONDS))
    try:
        with steps.span(QEMU, "QMP answers"):
            await _settle([greeting], failure, _QMP_SECONDS)
            await greeting
    except HawseError as error:
        # A monitor that closes is a QEMU that dies: its own words are worth a moment.
        await asyncio.wait([failure], timeout=_DEATH_SECONDS)
        reason = failure.result() if failure.done() else error
        raise reason.with_context(evidence=console.tail()) from None
    finally:
        greeting.cancel()
    if launched.jail is not None:
        launched.jail.nodes.dismiss_kvm()
    return Machine(link, qmp, console, failure, launched.ram, launched.share_plugged, launched.processes)


async def _watch_link(link: GuestLink, failure: asyncio.Future[HawseError]) -> None:
    """The end of the link is a failure; where it came of QEMU's, that is the reason to give."""
    reason = await link.ended
    if not isinstance(reason, LinkError):
        await asyncio.wait([failure], timeout=_DEATH_SECONDS)
    if not failure.done():
        failure.set_result(reason)


def _watch(
    program: Program,
    failure: asyncio.Future[HawseError],
    undo: AsyncExitStack,
    complaints: Complaints | None = None,
) -> None:
    watched = Watched(program, complaints)
    undo.callback(watched.close)

    async def watch() -> None:
        death = await watched.death()
        # Exit code 0 is a guest that powered itself off: the link knows more of it.
        if death is not None and not failure.done():
            failure.set_result(death)

    task = asyncio.create_task(watch())
    undo.callback(task.cancel)


def _succeeded(work: asyncio.Task[Value]) -> bool:
    return work.done() and not work.cancelled() and work.exception() is None


async def _settle(
    work: list[asyncio.Task[None]] | list[asyncio.Future[None]],
    failure: asyncio.Future[HawseError],
    seconds: float,
) -> None:
    """Wait for the work, the failure or the deadline; raises the failure."""
    await asyncio.wait([*work, failure], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if failure.done():
        raise failure.result()
