"""Programs that a sandbox runs: QEMU and virtiofsd. Each dies with the monitor, and is ended softly, then hard.

They are started without asyncio, so that they are on their way before the monitor has loaded it.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from hawse.errors import HostError, VmError
from hawse.linux import capabilities, oom_score
from hawse.linux.processes import (
    ChildrenApart,
    NamespaceError,
    Process,
    children_of,
    die_with,
    give_up_privileges,
    open_process,
)
from hawse.monitor.machine.bounded_log import BoundedLog

if TYPE_CHECKING:
    from hawse.monitor.machine.qemu_jail import Jail
    from hawse.monitor.machine.qemu_warnings import Complaints

_SOFT_SECONDS = 3.0
#: Bytes of the monitor's heap: it needs some 30 MiB, and less than 100 MiB in the worst flood of a guest.
_MOST_DATA = 1 << 30
_CONFINE = "see docs/security.md for what a jail needs; vm.confine in the configuration turns it off"


class Program:
    """A running program; ``log`` is the file for what it writes to stderr."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: str,
        descriptors: Sequence[int] = (),
        lock_memory: bool = False,
        jail: Jail | None = None,
        whole: bool = False,
        oom_score_adj: int | None = None,
        file_server: bool = False,
    ) -> None:
        """Raises :class:`HostError` when it cannot be confined or executed.

        ``lock_memory`` lifts RLIMIT_MEMLOCK as far as this process may: VFIO counts the guest memory that it maps.
        ``whole``: it is the first process of a PID namespace, and is killed at once at its end, so that the processes
        which it has started end with it, whatever they do (pid_namespaces(7)). ``oom_score_adj`` is set as far as the
        kernel allows it. ``file_server``: it keeps its capabilities while it acts for a user, if this process may
        allow that.
        """
        self._soft = not whole
        trouble, tell = os.pipe()
        monitor = os.pidfd_open(os.getpid())

        def prepare() -> None:
            try:
                _settle_in(lock_memory=lock_memory, oom_score_adj=oom_score_adj, file_server=file_server)
                if jail is None:
                    give_up_privileges()
                    die_with(monitor)
                else:
                    jail.enter()
            except Exception as error:
                os.write(tell, str(getattr(error, "strerror", None) or error).encode())
                raise

        self.name = name
        self.log = log
        null = subprocess.DEVNULL
        apart = ChildrenApart() if jail is not None or whole else nullcontext()
        try:
            with apart:
                self.process = subprocess.Popen(
                    argv, stdin=null, stdout=null, stderr=subprocess.PIPE, pass_fds=descriptors, preexec_fn=prepare,
                    start_new_session=True, env={},
                )  # fmt: skip
        except NamespaceError as error:
            raise HostError(
                f"cannot start {name} in a PID namespace: {error.strerror}",
                hint="hawse needs CAP_SYS_ADMIN, and a service that may call unshare(2)",
            ) from None
        except subprocess.SubprocessError:
            os.close(tell)
            tell = -1
            reason = os.read(trouble, 4096).decode(errors="replace")
            raise HostError(f"cannot confine {name}: {reason}", hint=_CONFINE) from None
        except OSError as error:
            raise HostError(
                f"cannot run {name}: {argv[0]}: {error.strerror}", hint="install it, or name it in the configuration"
            ) from None
        finally:
            os.close(trouble)
            os.close(monitor)
            if tell >= 0:
                os.close(tell)

    def processes(self) -> list[Process]:
        """It and its children: virtiofsd works in a child. None once it has ended."""
        if self.process.poll() is not None:
            return []
        parent = open_process(self.process.pid)
        return [parent, *children_of(parent)]

    def end(self) -> None:
        """End it: by SIGTERM first unless it is ``whole``, then by SIGKILL. The wait for its end is bounded.

        A process that this one may not signal (kill(2), EPERM) or that the kernel keeps is left behind.
        """
        for number in (signal.SIGTERM, signal.SIGKILL) if self._soft else (signal.SIGKILL,):
            with suppress(OSError, subprocess.TimeoutExpired):
                self.process.send_signal(number)
                self.process.wait(_SOFT_SECONDS)
                break
        assert self.process.stderr is not None
        self.process.stderr.close()


def _settle_in(*, lock_memory: bool, oom_score_adj: int | None, file_server: bool) -> None:
    """Set limits and rights of a new child, as :class:`Program` documents them. Raises OSError."""
    # A core dump of QEMU or virtiofsd contains the guest's memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lift_data()
    if oom_score_adj is not None:
        with suppress(OSError):  # the monitor looks at what it has, and warns
            oom_score.write(oom_score_adj)
    if lock_memory:
        _lift(resource.RLIMIT_MEMLOCK)
    if file_server:
        with suppress(OSError):  # the plan warns where CAP_SETPCAP is missing
            capabilities.keep_through_user_changes()


def limit_own_memory() -> None:
    """Limit this process's heap, so that a defect that a guest can use does not take the host's memory.

    An allocation beyond it fails (setrlimit(2), RLIMIT_DATA). The limit is soft: programs are started without it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > _MOST_DATA:
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_DATA, hard))


def lift_limits() -> None:
    """Raise limits of the caller that are meant for the container and would end its virtual machine.

    The container inherits them in the guest (:mod:`hawse.oci.process.inherited`). On the host, QEMU and virtiofsd write
    files of any size, run for years and map more than the guest's memory. The sandbox's cgroup limits them.
    """
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU, resource.RLIMIT_AS):
        _lift(limit)


def _lift_data() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _lift(limit: int) -> None:
    """Without CAP_SYS_RESOURCE a limit can be raised to the hard one only (setrlimit(2))."""
    _, hard = resource.getrlimit(limit)
    try:
        resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        resource.setrlimit(limit, (hard, hard))


class Watched:
    """A program with the event loop as its reader: what it says, and when it ends.

    ``complaints`` receive its stderr as well.
    """

    def __init__(self, program: Program, complaints: Complaints | None = None) -> None:
        import asyncio

        self.program = program
        self._complaints = complaints
        self._output = BoundedLog(program.log)
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        assert program.process.stderr is not None
        self._stderr = program.process.stderr
        os.set_blocking(self._stderr.fileno(), False)
        self._loop.add_reader(self._stderr, self._read)
        # Its pid is its own: it is a child that was not waited for.
        self._pidfd = os.pidfd_open(program.process.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    async def death(self) -> VmError | None:
        """Wait for the program's end; the error that tells of it, with its stderr as evidence, None for exit code 0."""
        await self._gone.wait()
        code = self.program.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if self._complaints is not None and self._complaints.reason:
            how += f": {self._complaints.reason}"
        evidence = self._output.tail()
        return VmError(f"{self.program.name} {how}", hint="its last words follow", evidence=evidence) if code else None

    def close(self) -> None:
        """End the program, and stop reading."""
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._stderr)
        os.close(self._pidfd)
        self.program.end()
        self._output.close()

    def _read(self) -> None:
        try:
            piece = os.read(self._stderr.fileno(), 65536)
        except BlockingIOError:
            return
        if not piece:
            self._loop.remove_reader(self._stderr)
            return
        with suppress(OSError):  # a log that cannot be written must not stop the guest
            self._output.write(piece)
        if self._complaints is not None:
            self._complaints.feed(piece)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.program.process.poll()
        for _ in range(64):  # what it wrote last; bounded, since a child of its own may hold the pipe
            before = self._output.tail()
            self._read()
            if self._output.tail() == before:
                break
        self._gone.set()
