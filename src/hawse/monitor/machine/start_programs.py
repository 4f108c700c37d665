"""Start a VM's programs, QEMU and virtiofsd, and the copy of a template's memory.

This module does not import asyncio: the monitor imports it while these programs start, which takes equally long. The
programs end when the monitor ends for any reason (PR_SET_PDEATHSIG). Memory and sockets are released with their last
descriptor.
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
    """Copies a template's memory into a VM's, in a thread, which closes ``saved.ram`` at its end."""

    def __init__(self, saved: Saved, ram: int, steps: Steps) -> None:
        self._error: OSError | None = None

        def run() -> None:
            try:
                with steps.span(MEMORY, "copied"):
                    ram_file.restore(saved.ram, ram)
            except OSError as error:
                self._error = error
            finally:
                os.close(saved.ram)  # frees the space of a template that was removed

        self._thread = threading.Thread(target=run, name="memory copy")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the copy. Raises :class:`VmError` if it failed."""
        self._thread.join()
        if self._error is not None:
            raise VmError(f"cannot copy the template's memory: {self._error.strerror}")


@dataclass
class Launched:
    """Started programs, and our ends of QEMU's sockets. ``copy`` is None for a VM that boots."""

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
    #: Called with each warning of QEMU.
    warn: Callable[[str], object] = print

    def processes(self) -> list[Process]:
        """The running programs and their children."""
        programs = (self.qemu,) if self.virtiofsd is None else (self.qemu, self.virtiofsd)
        return [process for program in programs for process in program.processes()]


def begin(machine: model.MachinePlan, directory: str, steps: Steps, notes: Notes, jail: Jail | None = None) -> Launched:
    """Start a VM's programs, to restore or to boot it. Raises :class:`HostError`; errors of templates only give
    notes."""
    template = machine.template
    if template is not None and template.usable:
        try:
            saved = _open(f"{template.cache}/templates/{template.digest}")
        except OSError as error:
            notes.append(warning(f"cannot open the template {template.digest[:12]}: {describe(error)}"))
        else:
            try:
                return launch(machine, directory, steps, share_plugged=False, saved=saved, jail=jail)
            except HostError:
                os.close(saved.ram)
                raise
    return launch(machine, directory, steps, share_plugged=template is None, jail=jail)


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
    """Start all programs; ``Launched.undo`` ends them. If it raises :class:`HostError`, no program is left.

    ``share_plugged``: QEMU starts with the share's device. ``saved``: restore this template instead of booting.
    ``jail``: QEMU's jail, if any. ``attribute`` is the file in /proc in which the programs' SELinux label is set.
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
            # While QEMU starts: it writes no ROM into the memory while it waits for its state (hw/core/loader.c,
            # rom_reset()). After the forks, since a process with several threads should not fork.
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
    """Start QEMU with these descriptors. Raises :class:`HostError`."""
    argv = render(machine.shape, ends)
    if jail is not None:
        if machine.shape.accel == "kvm":
            jail.nodes.admit_kvm()
        argv = render(jail.inside(machine.shape), ends) + jail.arguments
    log, score = f"{directory}/qemu.log", machine.oom_score_adj
    return Program("QEMU", argv, log=log, descriptors=inherited, lock_memory=True, jail=jail, oom_score_adj=score)


def _start_virtiofsd(machine: model.MachinePlan, fd: int, directory: str) -> Program:
    """Start virtiofsd, which accepts QEMU's connections on the socket ``fd``. Raises :class:`HostError`."""
    return Program(
        "virtiofsd", filled(machine.virtiofsd, fd=fd, directory=f"{directory}/share"),
        log=f"{directory}/virtiofsd.log", descriptors=[fd], whole=True, oom_score_adj=machine.oom_score_adj,
        file_server=True,
    )  # fmt: skip


def _memory(machine: model.MachinePlan) -> int:
    """Allocate the guest's RAM, and return its descriptor. Raises :class:`HostError`."""
    try:
        return ram_file.make(machine.shape.memory_mib * ram_file.MIB, page_kib=machine.page_kib)
    except OSError as error:
        if not machine.page_kib:
            raise HostError(f"cannot allocate the virtual machine's memory: {error.strerror}") from None
        # Another process may have taken the pages since the plan was made: this error explains more.
        host_hugepages.check(machine.shape.memory_mib, machine.page_kib)
        size = host_hugepages.size_name(machine.page_kib)
        raise HostError(
            f"cannot allocate the virtual machine's memory of huge pages of {size}: {error.strerror}"
        ) from None


def _disk(undo: ExitStack) -> int:
    """Create the disk of a device that QEMU starts with. Raises :class:`HostError`."""
    try:
        fd = nvme_disks.make()
    except OSError as error:
        raise HostError(f"cannot create the disk of an emulated device: {error.strerror}") from None
    undo.callback(os.close, fd)
    return fd


def _share_sockets(directory: str) -> tuple[socket.socket, socket.socket]:
    """A listening socket for virtiofsd, and QEMU's connection to it. The socket's path is removed afterwards."""
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
    """The system's error message, with the file if it has one."""
    return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
