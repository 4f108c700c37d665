"""The programs of a sandbox: QEMU and virtiofsd. Each dies with the monitor. It is ended by SIGTERM, then by SIGKILL.

They are started without asyncio, so that they start while the monitor imports it.
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
from hawse.linux import oom_score, process_capabilities
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
    from hawse.monitor.machine.qemu_warnings import QemuWarnings

_SOFT_SECONDS = 3.0
#: The limit of the monitor's heap in bytes. It needs some 30 MiB, and less than 100 MiB if a guest floods it.
_MOST_DATA = 1 << 30
_CONFINE = "see docs/security.md for what a jail needs; vm.confine in the configuration turns it off"


class Program:
    """A running program. ``log`` is the log file of its stderr."""

    # Large: QEMU and virtiofsd differ in each parameter; one start, one cleanup.
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
        """Raises :class:`HostError` if the program cannot be confined or executed.

        ``lock_memory`` raises RLIMIT_MEMLOCK as far as permitted: VFIO counts the guest memory that it maps. ``whole``:
        the program is the first process of a PID namespace, and :meth:`end` kills it at once. Then all of its children
        end as well (pid_namespaces(7)). ``oom_score_adj`` is set if the kernel permits it. ``file_server``: the program
        keeps its capabilities while it acts for a user, if this process can permit that.
        """
        self._soft = not whole
        errors, report = os.pipe()
        monitor = os.pidfd_open(os.getpid())

        def prepare() -> None:
            try:
                _configure_child(lock_memory=lock_memory, oom_score_adj=oom_score_adj, file_server=file_server)
                if jail is None:
                    give_up_privileges()
                    die_with(monitor)
                else:
                    jail.enter()
            except Exception as error:
                os.write(report, str(getattr(error, "strerror", None) or error).encode())
                raise

        self.name = name
        self.log = log
        null = subprocess.DEVNULL
        namespace = ChildrenApart() if jail is not None or whole else nullcontext()
        try:
            with namespace:
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
            os.close(report)
            report = -1
            reason = os.read(errors, 4096).decode(errors="replace")
            raise HostError(f"cannot confine {name}: {reason}", hint=_CONFINE) from None
        except OSError as error:
            raise HostError(
                f"cannot run {name}: {argv[0]}: {error.strerror}",
                hint="install it, or set its path in the configuration",
            ) from None
        finally:
            os.close(errors)
            os.close(monitor)
            if report >= 0:
                os.close(report)

    def processes(self) -> list[Process]:
        """The program and its children, since virtiofsd works in a child. Empty if the program has ended."""
        if self.process.poll() is not None:
            return []
        parent = open_process(self.process.pid)
        return [parent, *children_of(parent)]

    def end(self) -> None:
        """End the program by SIGTERM, except for ``whole``, then by SIGKILL. Waits for a limited time.

        A process that cannot be signalled (kill(2), EPERM) or that hangs in the kernel is left behind.
        """
        for number in (signal.SIGTERM, signal.SIGKILL) if self._soft else (signal.SIGKILL,):
            with suppress(OSError, subprocess.TimeoutExpired):
                self.process.send_signal(number)
                self.process.wait(_SOFT_SECONDS)
                break
        assert self.process.stderr is not None
        self.process.stderr.close()


def _configure_child(*, lock_memory: bool, oom_score_adj: int | None, file_server: bool) -> None:
    """Set limits and privileges in a new child, as documented for :class:`Program`. Raises OSError."""
    # A core dump of QEMU or virtiofsd contains the guest's memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lift_data()
    if oom_score_adj is not None:
        with suppress(OSError):  # the monitor compares the actual value, and warns
            oom_score.write(oom_score_adj)
    if lock_memory:
        _lift(resource.RLIMIT_MEMLOCK)
    if file_server:
        with suppress(OSError):  # the plan warns where CAP_SETPCAP is missing
            process_capabilities.keep_through_user_changes()


def limit_own_memory() -> None:
    """Limit this process's heap, so that a guest that exploits a bug cannot exhaust the host's memory.

    Allocations above the limit fail (setrlimit(2), RLIMIT_DATA). The limit is soft: programs are started without it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > _MOST_DATA:
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_DATA, hard))


def lift_limits() -> None:
    """Raise limits of the caller that are meant for the container and would end its VM.

    The container inherits them in the guest (:mod:`hawse.oci.process.inherited`). On the host, QEMU and virtiofsd write
    files of any size, run for years and map more than the guest's memory. The sandbox's cgroup limits them.
    """
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU, resource.RLIMIT_AS):
        _lift(limit)


def _lift_data() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _lift(limit: int) -> None:
    """Remove a limit. Without CAP_SYS_RESOURCE it can only be raised to the hard limit (setrlimit(2))."""
    _, hard = resource.getrlimit(limit)
    try:
        resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        resource.setrlimit(limit, (hard, hard))


class Watched:
    """A program whose stderr and end the event loop watches.

    ``qemu_warnings`` also receives its stderr.
    """

    def __init__(self, program: Program, qemu_warnings: QemuWarnings | None = None) -> None:
        import asyncio

        self.program = program
        self._qemu_warnings = qemu_warnings
        self._output = BoundedLog(program.log)
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        assert program.process.stderr is not None
        self._stderr = program.process.stderr
        os.set_blocking(self._stderr.fileno(), False)
        self._loop.add_reader(self._stderr, self._read)
        # The pid is not reused: the child was not waited for.
        self._pidfd = os.pidfd_open(program.process.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    async def death(self) -> VmError | None:
        """Wait for the program's end. Returns an error with its stderr as evidence, or None for exit code 0."""
        await self._gone.wait()
        code = self.program.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if self._qemu_warnings is not None and self._qemu_warnings.reason:
            how += f": {self._qemu_warnings.reason}"
        evidence = self._output.tail()
        return (
            VmError(f"{self.program.name} {how}", hint="the end of its stderr follows", evidence=evidence)
            if code
            else None
        )

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
        if self._qemu_warnings is not None:
            self._qemu_warnings.feed(piece)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.program.process.poll()
        for _ in range(64):  # read the rest; limited, since a child may hold the pipe open
            before = self._output.tail()
            self._read()
            if self._output.tail() == before:
                break
        self._gone.set()
