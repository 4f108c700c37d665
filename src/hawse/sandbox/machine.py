"""The virtual machine of a sandbox: virtiofsd, QEMU, its console and QMP, and the link to the agent that booted."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hawse.errors import HawseError, LinkError, VmError
from hawse.sandbox import plan, sockets
from hawse.sandbox.children import Child, running
from hawse.sandbox.evidence import BoundedLog, collect
from hawse.sandbox.guest import GuestLink
from hawse.sandbox.steps import Steps
from hawse.vm.arguments import VmShape, render

if TYPE_CHECKING:
    from hawse.vm.qmp import Qmp

_QMP_SECONDS = 60.0
_DEATH_SECONDS = 1.0


@dataclass
class Machine:
    """A guest whose agent answers. ``failure`` gets a result when QEMU, virtiofsd or the link ends."""

    link: GuestLink
    qmp: Qmp
    console: BoundedLog
    failure: asyncio.Future[HawseError]


async def boot(machine: plan.MachinePlan, directory: str, undo: AsyncExitStack, steps: Steps) -> Machine:
    """Start everything and wait for the agent; what was acquired is on ``undo``, in order.

    Raises :class:`VmError` with the tail of the console, or of the stderr of the program that died.
    """
    pairs = {name: socket.socketpair() for name in ("qmp", "link", "console")}
    for ours, theirs in pairs.values():
        undo.callback(ours.close)
        undo.callback(theirs.close)
    failure: asyncio.Future[HawseError] = asyncio.get_running_loop().create_future()
    share_fd = -1
    if machine.share == "virtiofs":
        share_fd = await _start_virtiofsd(machine, directory, undo, failure)
    console = BoundedLog(f"{directory}/console.log")
    undo.callback(console.close)
    reader, writer = await asyncio.open_connection(sock=pairs["console"][0])
    undo.callback(writer.close)
    reading = asyncio.create_task(collect(reader, console))
    undo.callback(reading.cancel)

    fds = {name: theirs.fileno() for name, (_, theirs) in pairs.items()}
    argv = render(_shape(machine, f"{directory}/share", share_fd, fds))
    inherited = [*fds.values(), *([share_fd] if share_fd >= 0 else [])]
    qemu = await undo.enter_async_context(
        running("QEMU", argv, log=f"{directory}/qemu.log", descriptors=inherited, lock_memory=True)
    )
    _watch(qemu, failure, undo)
    steps.mark("QEMU started")
    for _, theirs in pairs.values():
        theirs.close()

    # Here, since the library takes a sixteenth of a second to load: QEMU starts meanwhile.
    from hawse.vm.qmp import Qmp

    qmp_log = BoundedLog(f"{directory}/qmp.log")
    undo.callback(qmp_log.close)
    qmp = Qmp(log=qmp_log.write)
    undo.push_async_callback(qmp.close)
    link_reader, link_writer = await asyncio.open_connection(sock=pairs["link"][0])
    undo.callback(link_writer.close)
    link = GuestLink(link_reader, link_writer)
    serving = asyncio.create_task(link.run())
    undo.callback(serving.cancel)
    watching = asyncio.create_task(_watch_link(link, failure))
    undo.callback(watching.cancel)

    greeting = asyncio.create_task(qmp.open(pairs["qmp"][0], seconds=_QMP_SECONDS))
    try:
        await _settle([greeting], failure, _QMP_SECONDS)
        await greeting
        steps.mark("QMP answers")
        await _settle([link.hello], failure, machine.boot_seconds)
        if not link.hello.done():
            raise VmError(
                f"the guest did not report within {machine.boot_seconds:g} s",
                hint="the end of its console follows; vm.boot_seconds sets the time",
            )
    except HawseError as error:
        error.evidence = error.evidence or console.tail()
        raise
    finally:
        greeting.cancel()
    steps.mark("guest reports")
    return Machine(link, qmp, console, failure)


async def _start_virtiofsd(
    machine: plan.MachinePlan, directory: str, undo: AsyncExitStack, failure: asyncio.Future[HawseError]
) -> int:
    """Run virtiofsd on a socket that is bound here; QEMU's connected end of it, to be inherited."""
    listener = sockets.bind(directory, "share.sock")
    undo.callback(listener.close)
    client = sockets.connect(directory, "share.sock")
    undo.callback(client.close)
    fd, share = str(listener.fileno()), f"{directory}/share"
    argv = [part.replace("{fd}", fd).replace("{directory}", share) for part in machine.virtiofsd]
    child = await undo.enter_async_context(
        running("virtiofsd", argv, log=f"{directory}/virtiofsd.log", descriptors=[listener.fileno()])
    )
    _watch(child, failure, undo)
    return client.fileno()


async def _watch_link(link: GuestLink, failure: asyncio.Future[HawseError]) -> None:
    """The end of the link is a failure; where it came of QEMU's, that is the reason to give."""
    reason = await link.ended
    if not isinstance(reason, LinkError):
        await asyncio.wait([failure], timeout=_DEATH_SECONDS)
    if not failure.done():
        failure.set_result(reason)


def _watch(child: Child, failure: asyncio.Future[HawseError], undo: AsyncExitStack) -> None:
    async def watch() -> None:
        death = await child.death()
        # Exit code 0 is a guest that powered itself off: the link knows more of it.
        if child.process.returncode and not failure.done():
            failure.set_result(death)

    task = asyncio.create_task(watch())
    undo.callback(task.cancel)


async def _settle(
    work: list[asyncio.Future[object]] | list[asyncio.Task[None]] | list[asyncio.Future[dict[str, object]]],
    failure: asyncio.Future[HawseError],
    seconds: float,
) -> None:
    """Wait for the work, the failure or the deadline; raises the failure."""
    await asyncio.wait([*work, failure], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if failure.done():
        raise failure.result()


def _shape(machine: plan.MachinePlan, share: str, share_fd: int, fds: dict[str, int]) -> VmShape:
    return VmShape(
        qemu=machine.qemu,
        accel=machine.accel,
        memory_mib=machine.memory_mib,
        cpus=machine.cpus,
        kernel=machine.kernel,
        initrd=machine.initrd,
        kernel_append=machine.kernel_append,
        bridges=machine.bridges,
        share=machine.share,
        share_directory=share,
        share_fd=share_fd,
        qmp_fd=fds["qmp"],
        link_fd=fds["link"],
        console_fd=fds["console"],
        machine_properties=frozenset(machine.machine_properties),
    )
