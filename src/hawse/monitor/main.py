"""The monitor's process: creates a sandbox from a plan, holds it until its container has ended, and removes it.

``python -c "from hawse.monitor.main import main; main()" ROOT ID LISTENER REPORT``: the last two are inherited
descriptors, of the bound monitor.sock and of a socket to the command. The monitor reads the plan from REPORT, and
writes one JSON line: ``{"created": [[level, text]...]}`` or ``{"error": ...}``. If the command ends before that, the
sandbox is removed.

This module contains only the steps before QEMU's start. The rest, :mod:`hawse.monitor.lifecycle` with asyncio and QMP,
is imported while QEMU starts.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress

from hawse.errors import HawseError, HostError
from hawse.host.mounts import open_sources
from hawse.host.vfio_functions import functions_bound
from hawse.linux import oom_score
from hawse.linux.processes import open_process
from hawse.monitor.machine.programs import lift_limits, limit_own_memory
from hawse.monitor.machine.qemu_jail import Jail
from hawse.monitor.machine.start_programs import begin
from hawse.monitor.network.host_network import Network
from hawse.monitor.report import Report
from hawse.monitor.share import share_root as share
from hawse.notes import Notes, warning
from hawse.plan import model
from hawse.state.steps import MONITOR, QEMU, SHARE, Steps, process_start
from hawse.state.store import Store
from hawse.vfio.host import dma_mappings
from hawse.vm.image.lock import hold


def main() -> None:
    """Run until the sandbox has ended."""
    root, name = sys.argv[1:3]
    listener, connection = (socket.socket(fileno=int(fd)) for fd in sys.argv[3:5])
    for inherited in (listener, connection):
        inherited.set_inheritable(False)
    store = Store(root, name)
    store.lock()
    # Processes in a user namespace must traverse the directories that this process creates.
    os.umask(0o022)
    lift_limits()
    limit_own_memory()
    loaded = (MONITOR, "ready", process_start(), time.monotonic())
    plan = model.decode(_read_plan(connection))
    steps = Steps(f"{store.path}/steps.json", [*plan.steps, loaded])
    report = Report(connection)
    try:
        hold(os.path.dirname(plan.machine.shape.kernel))  # until the end of this process
        with functions_bound(plan.container.binds, store, steps):
            _run_sandbox(plan, store, listener, report, steps)
    except HawseError as error:
        report.send({"error": error.to_wire()})
        print(error.sentence(), file=sys.stderr)
    # The kernel releases the lock when this process ends. `hawse delete` waits for the lock, so it leaves no process
    # behind. _exit() skips the interpreter's clean-up, which would only delay `hawse delete`.
    sys.stderr.flush()
    os._exit(0)


def _run_sandbox(plan: model.SandboxPlan, store: Store, listener: socket.socket, report: Report, steps: Steps) -> None:
    notes: Notes = []
    if plan.container.cgroup.path:
        with steps.span(MONITOR, "in its cgroup"):
            notes += [warning(text) for text in _enter_cgroup(plan, store)]
    # Before any thread is started: only a process with one thread can change its mount namespace.
    with steps.span(SHARE, "prepared"):
        share.enter_private_namespace()
        # Before the share is mounted, since its root may be below a shared directory.
        sources = open_sources.open_sources(plan.container.shares)
        try:
            root = share.ShareRoot(f"{store.path}/share")
            notes += [warning(text) for text in root.place(store.name, plan.container.shares, sources)]
        finally:
            open_sources.close(sources)
    network = Network(plan.container.network, store.path)
    try:
        dma_mappings.try_to_raise(plug.dma_entries for plug in plan.container.plugs if plug.cold)
        jail = _create_jail(plan, store, steps, notes)
        _lower_oom_score(plan.container.oom_score_adj)
        launched = begin(plan.machine, store.path, steps, notes, jail)
        notes += _check_oom_score(plan.container.oom_score_adj, launched.qemu.process.pid)
        with launched.undo:
            network.look()
            with steps.span(MONITOR, "loaded"):
                from hawse.monitor import lifecycle
            lifecycle.run(lifecycle.Creation(plan, launched, root, network, store, report, steps, notes), listener)
    finally:
        network.close()


def _create_jail(plan: model.SandboxPlan, store: Store, steps: Steps, notes: Notes) -> Jail | None:
    """Create QEMU's jail, with the devices that QEMU starts with. Returns None if the plan has no jail.

    If the jail cannot be created, raises :class:`HostError` if it is required; else adds a warning and returns None.
    Raises :class:`DeviceError`.
    """
    jail_plan, machine = plan.machine.jail, plan.machine
    if jail_plan is None:
        return None
    with steps.span(QEMU, "jail created"):
        try:
            jail = Jail(
                jail_plan,
                f"{store.path}/jail",
                name=store.name,
                kernel=machine.shape.kernel,
                initrd=machine.shape.initrd,
            )
        except HostError as error:
            if jail_plan.required:
                raise
            notes.append(warning(f"QEMU is not confined: {error.sentence()}"))
            return None
        jail.admit_cold(plan.container.plugs)
    return jail


def _enter_cgroup(plan: model.SandboxPlan, store: Store) -> list[str]:
    """Enter the sandbox's cgroup before the first child, so that all children and their memory are in it."""
    from hawse.host.cgroup.sandbox_cgroup import HostCgroup

    cgroup = HostCgroup(plan.container.cgroup, store.path)
    return cgroup.place(open_process(os.getpid()))


def _lower_oom_score(score: int) -> None:
    """Lower the oom_score_adj, so that the kernel kills the VM before this process, which reports the kill."""
    with suppress(OSError):
        if oom_score.read() > score:
            oom_score.write(score)


def _check_oom_score(score: int, qemu: int) -> Notes:
    """Check QEMU's oom_score_adj. Returns warnings."""
    try:
        actual = oom_score.read(qemu)
    except OSError:  # it has ended
        return []
    return [warning(oom_score.warning(score, actual))] if actual != score else []


def _read_plan(report: socket.socket) -> bytes:
    """Read the plan after four bytes of length. The caller keeps its end open: its close means that the caller died."""
    length = int.from_bytes(_read_exactly(report, 4), "big")
    return _read_exactly(report, length)


def _read_exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise SystemExit("the command ended before it had sent the plan")
        data += piece
    return bytes(data)
