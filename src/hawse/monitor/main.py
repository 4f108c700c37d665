"""The monitor's process: makes a sandbox from a plan, keeps it until its container has ended, and undoes it.

``python -c "from hawse.monitor.main import main; main()" ROOT ID LISTENER REPORT``: the last two are inherited
descriptors, of the bound monitor.sock and of a socket to the command line. The plan comes in over REPORT, then one JSON
line goes out: ``{"created": [[level, text]...]}`` or ``{"error": ...}``. If the command line goes before that,
everything is undone.

What is here is on the way of QEMU's start; the rest, :mod:`hawse.monitor.lifecycle` with asyncio and QMP, is loaded
while QEMU starts.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress

from hawse.errors import HawseError, HostError
from hawse.host.mounts import bind_sources
from hawse.host.vfio_functions import bound
from hawse.linux import oom_score
from hawse.linux.processes import open_process
from hawse.monitor.machine.programs import lift_limits, limit_own_memory
from hawse.monitor.machine.qemu_jail import Jail
from hawse.monitor.machine.start import Notes, begin
from hawse.monitor.network.host_network import Network
from hawse.monitor.report import Report
from hawse.monitor.share import root as share
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
    # Users of a user namespace look for their root file system through directories that this process makes.
    os.umask(0o022)
    lift_limits()
    limit_own_memory()
    loaded = (MONITOR, "ready", process_start(), time.monotonic())
    made = model.decode(_read_plan(connection))
    steps = Steps(f"{store.path}/steps.json", [*made.steps, loaded])
    report = Report(connection)
    try:
        hold(os.path.dirname(made.machine.kernel))  # until the end of this process
        with bound(made.binds, store, steps):
            _live(made, store, listener, report, steps)
    except HawseError as error:
        report.send({"error": error.to_wire()})
        print(error.sentence(), file=sys.stderr)
    # The kernel releases the lock when this process ends, so that `hawse delete`, which waits for the lock, leaves no
    # process behind. It ends at once: the interpreter's own clean-up would only keep `hawse delete` waiting.
    sys.stderr.flush()
    os._exit(0)


def _live(made: model.SandboxPlan, store: Store, listener: socket.socket, report: Report, steps: Steps) -> None:
    notes: Notes = []
    if made.cgroup.path:
        with steps.span(MONITOR, "in its cgroup"):
            notes += [("warning", text) for text in _enter_cgroup(made, store)]
    # Here, since a mount namespace can only be left for another by a process of one thread.
    with steps.span(SHARE, "prepared"):
        share.enter_private_namespace()
        # Before the share is mounted, which may be below what is shared.
        sources = bind_sources.open_sources(made.shares)
        try:
            root = share.ShareRoot(f"{store.path}/share")
            notes += [("warning", text) for text in root.place(store.name, made.shares, sources)]
        finally:
            bind_sources.close(sources)
    network = Network(made.network, store.path)
    try:
        dma_mappings.try_to_raise(plug.dma_entries for plug in made.plugs if plug.cold)
        jail = _jail(made, store, steps, notes)
        _outlive(made.oom_score_adj)
        launched = begin(made.machine, store.path, steps, notes, jail)
        notes += _rate(made.oom_score_adj, launched.qemu.process.pid)
        with launched.undo:
            network.look()
            with steps.span(MONITOR, "loaded"):
                from hawse.monitor import lifecycle
            lifecycle.run(lifecycle.Making(made, launched, root, network, store, report, steps, notes), listener)
    finally:
        network.close()


def _jail(made: model.SandboxPlan, store: Store, steps: Steps, notes: Notes) -> Jail | None:
    """QEMU's jail, with the devices that it starts with. None, with a warning, if one is neither possible nor required.

    Raises :class:`HostError` if it is required, and :class:`DeviceError`.
    """
    wanted, machine = made.machine.jail, made.machine
    if wanted is None:
        return None
    with steps.span(QEMU, "jail made"):
        try:
            jail = Jail(wanted, f"{store.path}/jail", name=store.name, kernel=machine.kernel, initrd=machine.initrd)
        except HostError as error:
            if wanted.required:
                raise
            notes.append(("warning", f"QEMU is not confined: {error.sentence()}"))
            return None
        jail.admit_cold(made.plugs)
    return jail


def _enter_cgroup(made: model.SandboxPlan, store: Store) -> list[str]:
    """Be in it before there is a child: whatever this process starts, and the memory that it takes, is in it too."""
    from hawse.host.cgroup.sandbox_cgroup import HostCgroup

    cgroup = HostCgroup(made.cgroup, store.path)
    return cgroup.place(open_process(os.getpid()))


def _outlive(score: int) -> None:
    """Have the kernel kill the virtual machine before this process, which tells of that."""
    with suppress(OSError):
        if oom_score.read() > score:
            oom_score.write(score)


def _rate(score: int, qemu: int) -> Notes:
    """What to warn of the value that a child of this process has."""
    try:
        actual = oom_score.read(qemu)
    except OSError:  # it has ended
        return []
    return [("warning", oom_score.warning(score, actual))] if actual != score else []


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
