"""Start the two kinds of host processes that outlive a command: the monitor and the proxies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hawse.errors import HostError, VmError, from_wire
from hawse.host.own_programs import PACKAGES, environment, program
from hawse.link.streams import STDIO
from hawse.linux import oom_score
from hawse.linux.processes import ChildrenApart
from hawse.state import sockets
from hawse.state.store import Store

if TYPE_CHECKING:
    from hawse.host.notify import Relay

_MAX_REPORT = 1024 * 1024
_MAX_TITLE = 4096
#: How long a monitor may take to undo what it has made, as for a deletion.
_UNDO_SECONDS = 30.0
_MONITOR = program("hawse.monitor.main")


class MonitorProcess:
    """A monitor that creates a sandbox. It is started before the plan exists, since its startup takes as long as
    planning."""

    def __init__(self, store: Store) -> None:
        self._planned = False
        self._connection, theirs = socket.socketpair()
        with (
            sockets.bind(store.path, "monitor.sock") as listener,
            theirs,
            open(f"{store.path}/monitor.log", "wb") as log,
        ):
            arguments = [store.root, store.name, str(listener.fileno()), str(theirs.fileno())]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _MONITOR, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(listener.fileno(), theirs.fileno()),
                start_new_session=True,
                cwd="/",
                env=environment(),
            )
        self._log = f"{store.path}/monitor.log"

    def send(self, plan: bytes) -> None:
        """Send the plan, with which the monitor creates the sandbox."""
        self._planned = True
        with suppress(ConnectionError):  # the monitor died; await_created() raises the reason
            self._connection.sendall(len(plan).to_bytes(4, "big") + plan)

    def await_created(self) -> list[tuple[str, str]]:
        """Wait until the container is created. Returns notes about its devices to log, as (level, text).

        Raises the monitor's error, after the monitor has undone everything and ended.
        """
        data = bytearray()
        with suppress(ConnectionError):  # the monitor died before it had read the plan
            while len(data) < _MAX_REPORT and (piece := self._connection.recv(65536)):
                data += piece
        try:
            message = json.loads(data)
        except ValueError:
            message = {}
        if "created" in message:
            return [(str(level), str(text)) for level, text in message["created"]]
        code = self._process.wait()
        if "error" in message:
            raise from_wire(message["error"])
        killed = code == -signal.SIGKILL
        with open(self._log, errors="replace") as log:
            raise VmError(
                f"the monitor {'was killed' if killed else 'died'} while it created the sandbox",
                hint="the memory limit of a cgroup may be too low: `dmesg` shows what the host kernel killed"
                if killed
                else "",
                evidence=log.read()[-4096:],
            )

    def abort(self) -> None:
        """Abort the creation: the monitor sees the closed connection, undoes everything and ends.

        A monitor without a plan has changed nothing and is killed. One that is stuck is killed, too: its children end
        with it, and the deletion of its directory undoes the rest.
        """
        if not self._planned:
            self._process.kill()
        self._connection.close()
        try:
            self._process.wait(_UNDO_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def detach(self) -> None:
        """Leave the sandbox and its monitor running when this process ends."""
        self._connection.close()
        self._process.returncode = 0  # otherwise Popen would warn about a child that was not waited for


@dataclass(frozen=True)
class Namespaces:
    """The namespaces of a proxy: programs of the host enter them by its pid, which the engine gets.

    ``network``: the path of the network namespace, where engines create interfaces; "" for a new one. ``view``: the
    descriptor that :func:`hawse.proxy.view.encode` returns.
    """

    network: str
    view: int


class ProxyProcess:
    """A proxy. It has no children; when the command ends, the system's reaper of orphans becomes its parent."""

    # Large: the proxies of create, exec and attach differ in each parameter.
    def __init__(
        self,
        store: Store,
        key: str,
        *,
        stdio: Sequence[int] = (0, 1, 2),
        terminal: int,
        command: Sequence[str],
        namespaces: Namespaces | None = None,
        preserved: Sequence[str] = (),
        notify: int = -1,
        oom_score_adj: int | None = None,
    ) -> None:
        """Start the proxy.

        ``command``: the command line that ps shows after the container's name. ``terminal``: the descriptor of the
        terminal whose size the process's terminal gets, -1 without one.

        ``oom_score_adj``: the value of the container's processes, set as far as the kernel allows; None: unchanged.

        ``preserved``: the directions of the descriptors from 3 on. They are closed in this process, so that the peers
        at their other ends see when the container's process closes them. ``notify``: a socket for the process's
        notifications, -1 without one; the caller closes it.
        """
        self.relay: Relay | None = None
        self._ended = False
        program = (
            f"import sys; sys.path.insert(0, {PACKAGES!r}); from hawse.proxy.main import main; main()"
        )  # fmt: skip
        stdin, stdout, stderr = stdio
        title = f"hawse[{store.name}]: {' '.join(command)[:_MAX_TITLE]}".replace("\0", " ")
        name = f"{store.name}/{key}"
        # The proxy connects to the monitor itself, so that the kernel reports the proxy's pid to the monitor.
        fd = os.open(store.path, os.O_DIRECTORY)
        view = -1 if namespaces is None else namespaces.view
        preserved_fds = range(len(STDIO), len(STDIO) + len(preserved))
        words = [str(fd), name, str(terminal), str(view), ",".join(preserved), str(notify), title]
        try:
            with nullcontext() if namespaces is None else ChildrenApart():
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", program, *words],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=(fd, *(each for each in (view, notify, terminal) if each >= 0), *preserved_fds),
                    start_new_session=True,
                    cwd="/",
                    env=environment(),
                    preexec_fn=None if namespaces is None else _mover(namespaces.network),
                )
        except (subprocess.SubprocessError, PermissionError):
            raise HostError(
                "cannot move the container's process into its namespaces on the host",
                hint="run hawse as root with CAP_SYS_ADMIN",
            ) from None
        finally:
            for each in (fd, *preserved_fds):
                os.close(each)
        if oom_score_adj is not None:
            with suppress(OSError):
                oom_score.write(oom_score_adj, self._process.pid)

    @property
    def pid(self) -> int:
        """The pid that the engine gets."""
        return self._process.pid

    def wait(self) -> int:
        """Wait until the process has ended; returns its exit code."""
        # Leave it waitable (waitid(2), WNOWAIT), so that a signal handler does not forward to a reused pid.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._ended = True
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def forward(self, number: int) -> None:
        """Pass a signal on. Called by signal handlers, also between two steps of :meth:`wait`."""
        if not self._ended:
            os.kill(self._process.pid, number)

    def abort(self) -> None:
        """Kill the proxy of a process that was not created."""
        self._ended = True
        self._process.kill()
        self._process.wait()

    def detach(self) -> None:
        """Leave the proxy running when this process ends."""
        self._ended = True
        self._process.returncode = 0


def _mover(network: str) -> Callable[[], None]:
    """A function for a new process that moves it into the network namespace at this path, "" for a new one."""
    from hawse.host import network_namespace as namespaces

    def move() -> None:
        if network:
            namespaces.enter(os.open(network, os.O_RDONLY))
        else:
            namespaces.leave()

    return move


FORWARDED = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGCONT", "SIGALRM")
)
