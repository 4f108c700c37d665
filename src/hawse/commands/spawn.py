"""Starting the two kinds of host process that outlive a command: the monitor and the proxies."""

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
from hawse.host.programs import PACKAGES, environment, program
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
    """A monitor that is making a sandbox: started before there is a plan, since it takes as long to be ready."""

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
        with suppress(ConnectionError):  # it died; await_created() tells why
            self._connection.sendall(len(plan).to_bytes(4, "big") + plan)

    def await_created(self) -> list[tuple[str, str]]:
        """What to log of the devices, as (level, text), once the container is created.

        Raises what the monitor raised, after the monitor has undone everything and ended.
        """
        data = bytearray()
        with suppress(ConnectionError):  # it died with the plan unread
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
                f"the monitor {'was killed' if killed else 'died'} while it made the sandbox",
                hint="the host's kernel does that where a cgroup allows too little memory: `dmesg` says which"
                if killed
                else "",
                evidence=log.read()[-4096:],
            )

    def abort(self) -> None:
        """Give up: the monitor notices, undoes everything and ends. Without a plan it has done nothing.

        One that is stuck is killed; its children die with it, and the deletion of its directory undoes the rest.
        """
        if not self._planned:
            self._process.kill()
        self._connection.close()
        try:
            self._process.wait(_UNDO_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def let_go(self) -> None:
        """The sandbox stays; its monitor goes on without this process."""
        self._connection.close()
        self._process.returncode = 0  # not this process's to wait for: Popen would warn about it


@dataclass(frozen=True)
class Namespaces:
    """Where programs of the host find the container at the pid that the engine is told.

    ``network`` is the path of its network namespace, "" for a new one: engines put interfaces there. ``view`` is
    :func:`hawse.proxy.view.encode`'s descriptor.
    """

    network: str
    view: int


class ProxyProcess:
    """A proxy that waits for its process, as the parent of nothing and the child of whoever adopts orphans."""

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
        """Start it; ``command`` is what ps shows beside the container's name. ``terminal`` is the descriptor whose size
        is the size of the process's terminal, -1 for none.

        ``oom_score_adj`` is that of the container's processes, as far as the kernel lets it be set; None changes
        nothing.

        ``preserved`` are the directions of the descriptors from 3 on, which the proxy alone has from then on: whoever
        is at their other ends shall see when the process closes them. ``notify`` is a socket for its notifications, -1
        for none; it stays the caller's to close.
        """
        self.relay: Relay | None = None
        self._ended = False
        program = (
            f"import sys; sys.path.insert(0, {PACKAGES!r}); from hawse.proxy.main import main; main()"
        )  # fmt: skip
        stdin, stdout, stderr = stdio
        title = f"hawse[{store.name}]: {' '.join(command)[:_MAX_TITLE]}".replace("\0", " ")
        name = f"{store.name}/{key}"
        # It connects itself: the kernel then tells the monitor its pid.
        fd = os.open(store.path, os.O_DIRECTORY)
        view = -1 if namespaces is None else namespaces.view
        handed = range(len(STDIO), len(STDIO) + len(preserved))
        words = [str(fd), name, str(terminal), str(view), ",".join(preserved), str(notify), title]
        try:
            with nullcontext() if namespaces is None else ChildrenApart():
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", program, *words],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=(fd, *(each for each in (view, notify, terminal) if each >= 0), *handed),
                    start_new_session=True,
                    cwd="/",
                    env=environment(),
                    preexec_fn=None if namespaces is None else _mover(namespaces.network),
                )
        except (subprocess.SubprocessError, PermissionError):
            raise HostError(
                "the container's process cannot be put into its namespaces on the host",
                hint="hawse needs root, with CAP_SYS_ADMIN",
            ) from None
        finally:
            for each in (fd, *handed):
                os.close(each)
        if oom_score_adj is not None:
            with suppress(OSError):
                oom_score.write(oom_score_adj, self._process.pid)

    @property
    def pid(self) -> int:
        """What the engine is told."""
        return self._process.pid

    def wait(self) -> int:
        """The exit code of the process that it stands for."""
        # Not waited for yet (waitid(2), WNOWAIT): a signal that arrives meanwhile is forwarded to this very process.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._ended = True
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def forward(self, number: int) -> None:
        """Pass a signal on. Called by signal handlers, also between two steps of :meth:`wait`."""
        if not self._ended:
            os.kill(self._process.pid, number)

    def abort(self) -> None:
        """The process never came to be."""
        self._ended = True
        self._process.kill()
        self._process.wait()

    def let_go(self) -> None:
        """Leave it to who adopts orphans."""
        self._ended = True
        self._process.returncode = 0


def _mover(network: str) -> Callable[[], None]:
    """What a new process does first to be in that namespace."""
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
