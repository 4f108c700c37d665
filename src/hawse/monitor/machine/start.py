"""Starting a machine's programs: QEMU, and beside it virtiofsd and the copy of a template's memory.

No asyncio here: the monitor loads it, which takes as long as QEMU's start, while they run. Whatever ends the monitor
ends them (PR_SET_PDEATHSIG), and memory and sockets go with their last descriptor.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from hawse.errors import HostError, VmError
from hawse.host import leftovers, selinux
from hawse.linux.processes import Process
from hawse.monitor.machine.programs import Program
from hawse.monitor.machine.qemu_jail import Jail
from hawse.notes import Notes, warning
from hawse.plan import model
from hawse.state import sockets
from hawse.state.steps import MEMORY, QEMU, SHARE, Steps
from hawse.vm import host_hugepages, nvme_disks, ram_file
from hawse.vm.arguments import ADD_DISK, Ends, render
from hawse.vm.virtiofsd import filled

_MAX_STATE = 64 * ram_file.MIB


@dataclass(frozen=True)
class Saved:
    """A template's files: an open descriptor of its memory, and its state."""

    ram: int
    state: bytes


class Copy:
    """A template's memory on its way into a machine's, in a thread, which closes ``saved.ram`` at its end."""

    def __init__(self, saved: Saved, ram: int, steps: Steps) -> None:
        self._error: OSError | None = None

        def run() -> None:
            try:
                with steps.span(MEMORY, "copied"):
                    ram_file.restore(saved.ram, ram)
            except OSError as error:
                self._error = error
            finally:
                os.close(saved.ram)  # a template that is removed gives its room back

        self._thread = threading.Thread(target=run, name="memory copy")
        self._thread.start()

    def wait(self) -> None:
        """Wait for its end. Raises :class:`VmError` when it failed."""
        self._thread.join()
        if self._error is not None:
            raise VmError(f"cannot copy the template's memory: {self._error.strerror}")


@dataclass
class Launched:
    """Programs on their way, and our ends of QEMU's sockets. ``copy`` is None for a machine that boots."""

    qemu: Program
    virtiofsd: Program | None
    qmp: socket.socket
    link: socket.socket
    console: socket.socket
    ram: int
    share_plugged: bool
    saved: Saved | None
    copy: Copy | None
    jail: Jail | None
    undo: ExitStack
    #: What to do with a warning of QEMU's.
    warn: Callable[[str], object] = print

    def processes(self) -> list[Process]:
        """Those that run."""
        programs = (self.qemu,) if self.virtiofsd is None else (self.qemu, self.virtiofsd)
        return [process for program in programs for process in program.processes()]


def begin(machine: model.MachinePlan, directory: str, steps: Steps, notes: Notes, jail: Jail | None = None) -> Launched:
    """Start a machine's programs, to be restored or to boot. Raises :class:`HostError`; of templates only notes."""
    wanted = machine.template
    if wanted is not None and wanted.usable:
        try:
            saved = _open(f"{wanted.cache}/templates/{wanted.digest}")
        except OSError as error:
            notes.append(warning(f"the template {wanted.digest[:12]} cannot be opened: {describe(error)}"))
        else:
            try:
                return launch(machine, directory, steps, share_plugged=False, saved=saved, jail=jail)
            except HostError:
                os.close(saved.ram)
                raise
    return launch(machine, directory, steps, share_plugged=wanted is None, jail=jail)


def launch(
    machine: model.MachinePlan,
    directory: str,
    steps: Steps,
    *,
    share_plugged: bool,
    saved: Saved | None = None,
    jail: Jail | None = None,
    attribute: str = selinux.ATTRIBUTE,
) -> Launched:
    """Start everything; ``Launched.undo`` ends it. Raises :class:`HostError`, with nothing left.

    ``share_plugged``: the share's device is there from the start. ``saved``: restore that in place of booting.
    ``jail``: QEMU's, None for none. ``attribute`` is where the kernel is told of the programs' label.
    """
    with ExitStack() as undo:
        ram = _memory(machine)
        undo.callback(os.close, ram)
        ours, theirs = _pairs(undo)
        cold = [_disk(undo) for command, _ in machine.shape.cold if command == ADD_DISK]
        share = _share_sockets(directory) if machine.shape.share == "virtiofs" else ()
        for end in share:
            undo.callback(end.close)
        ends = Ends(
            memory=ram_file.path(ram),
            share_directory=f"{directory}/share",
            share_fd=share[1].fileno() if share else -1,
            qmp_fd=theirs["qmp"].fileno(),
            link_fd=theirs["link"].fileno(),
            console_fd=theirs["console"].fileno(),
            share_plugged=share_plugged,
            incoming=saved is not None,
            disks=cold,
        )
        inherited = [ram, ends.qmp_fd, ends.link_fd, ends.console_fd, *cold, *([ends.share_fd] if share else [])]
        with steps.span(QEMU, "process started"), selinux.executing_as(machine.label, attribute=attribute):
            qemu = _start_qemu(machine, ends, inherited, directory, jail)
            undo.callback(qemu.end)
            leftovers.note(directory, qemu.process.pid)
        for end in theirs.values():
            end.close()
        virtiofsd = None
        if share:
            with steps.span(SHARE, "virtiofsd started"), selinux.executing_as(machine.label, attribute=attribute):
                virtiofsd = _start_virtiofsd(machine, share[0].fileno(), directory)
                undo.callback(virtiofsd.end)
                leftovers.note(directory, virtiofsd.process.pid)
            for end in share:
                end.close()
        copy = None
        if saved is not None:
            # Beside QEMU's start: one that waits for its state writes no ROM into the memory (hw/core/loader.c,
            # rom_reset()). After the forks, which a process of several threads should not do.
            copy = Copy(saved, ram, steps)
            undo.callback(_wait_quietly, copy)
        plugged = share_plugged or machine.shape.share != "virtiofs"
        return Launched(
            qemu, virtiofsd, ours["qmp"], ours["link"], ours["console"], ram, plugged, saved, copy, jail, undo.pop_all()
        )


def _pairs(undo: ExitStack) -> tuple[dict[str, socket.socket], dict[str, socket.socket]]:
    """This process's and QEMU's ends of QEMU's sockets, by name; ``undo`` closes them."""
    pairs = {}
    for name in ("qmp", "link", "console"):
        pairs[name] = socket.socketpair()
        for end in pairs[name]:
            undo.callback(end.close)
    return {name: ours for name, (ours, _) in pairs.items()}, {name: theirs for name, (_, theirs) in pairs.items()}


def _start_qemu(
    machine: model.MachinePlan, ends: Ends, inherited: list[int], directory: str, jail: Jail | None
) -> Program:
    """QEMU, with these descriptors. Raises :class:`HostError`."""
    argv = render(machine.shape, ends)
    if jail is not None:
        if machine.shape.accel == "kvm":
            jail.nodes.admit_kvm()
        argv = render(jail.inside(machine.shape), ends) + jail.arguments
    log, score = f"{directory}/qemu.log", machine.oom_score_adj
    return Program("QEMU", argv, log=log, descriptors=inherited, lock_memory=True, jail=jail, oom_score_adj=score)


def _start_virtiofsd(machine: model.MachinePlan, fd: int, directory: str) -> Program:
    """virtiofsd, which gets QEMU's connections at the socket ``fd``. Raises :class:`HostError`."""
    return Program(
        "virtiofsd", filled(machine.virtiofsd, fd=fd, directory=f"{directory}/share"),
        log=f"{directory}/virtiofsd.log", descriptors=[fd], whole=True, oom_score_adj=machine.oom_score_adj,
        file_server=True,
    )  # fmt: skip


def _memory(machine: model.MachinePlan) -> int:
    """A descriptor of the guest's RAM. Raises :class:`HostError`."""
    try:
        return ram_file.make(machine.shape.memory_mib * ram_file.MIB, page_kib=machine.page_kib)
    except OSError as error:
        if not machine.page_kib:
            raise HostError(f"cannot make the virtual machine's memory: {error.strerror}") from None
        # Others may have taken them since the plan was made, which says more.
        host_hugepages.check(machine.shape.memory_mib, machine.page_kib)
        size = host_hugepages.size_name(machine.page_kib)
        raise HostError(f"cannot make the virtual machine's memory of huge pages of {size}: {error.strerror}") from None


def _disk(undo: ExitStack) -> int:
    """A disk of a device that is there from the start. Raises :class:`HostError`."""
    try:
        fd = nvme_disks.make()
    except OSError as error:
        raise HostError(f"cannot make the disk of an emulated device: {error.strerror}") from None
    undo.callback(os.close, fd)
    return fd


def _share_sockets(directory: str) -> tuple[socket.socket, socket.socket]:
    """A listening socket for virtiofsd, and QEMU's connected end of it; the name is needed in between alone."""
    listener = sockets.bind(directory, "share.sock")
    try:
        return listener, sockets.connect(directory, "share.sock")
    except BaseException:
        listener.close()
        raise
    finally:
        os.unlink(f"{directory}/share.sock")


def _wait_quietly(copy: Copy) -> None:
    try:
        copy.wait()
    except VmError:
        return


def _open(place: str) -> Saved:
    with open(f"{place}/state", "rb") as file:
        state = file.read(_MAX_STATE)
    return Saved(os.open(f"{place}/memory", os.O_RDONLY), state)


def describe(error: OSError) -> str:
    """What the system said, and of which file."""
    return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
