"""Run crun, and translate its errors to the phrases that engines look for."""

from __future__ import annotations

import os
import re

from hawse.agent.system.reaper import Reaper
from hawse.errors import CommandError, HawseError, VmError
from hawse.json_text import parse

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable

CRUN = "/usr/bin/crun"
ROOT = "/run/crun"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_MAX_LOG = 64 * 1024


class Crun:
    """Runs crun commands for one container, one at a time; reads the error of a failed command from its log file."""

    def __init__(self, reaper: Reaper, *, directory: str, program: str = CRUN, root: str = ROOT) -> None:
        self.reaper = reaper
        self.directory = directory
        self.root = root
        self._globals = [program, f"--root={root}", "--cgroup-manager=cgroupfs", "--log-format=json"]

    def run(
        self,
        *arguments: str,
        descriptors: dict[int, int] | None = None,
        command: str = "",
        log: str = "log",
        oom_score_adj: int = 0,
        meanwhile: Callable[[int], None] = lambda _pid: None,
    ) -> None:
        """Run one command to its end. ``descriptors`` are crun's own, by their numbers in crun; ``create`` and ``exec``
        pass them and ``oom_score_adj`` to the process that they create. ``meanwhile`` is called with crun's pid.

        Raises :class:`CommandError` if ``command``, the program in the container, cannot be executed, otherwise
        :class:`VmError` with crun's message.
        """
        pid = self.begin(*arguments, descriptors=descriptors, log=log, oom_score_adj=oom_score_adj)
        meanwhile(pid)
        self.finish(pid, verb=arguments[0], command=command, log=log)

    def begin(
        self, *arguments: str, descriptors: dict[int, int] | None = None, log: str = "log", oom_score_adj: int = 0
    ) -> int:
        """Start a command. Returns its pid."""
        with open("/dev/null", "r+b") as null:
            fds = {0: null.fileno(), 1: null.fileno(), 2: null.fileno()} | (descriptors or {})
            return self.reaper.spawn(
                [*self._globals, f"--log=file:{self.directory}/{log}", *arguments],
                environment=_ENVIRONMENT,
                descriptors=fds,
                oom_score_adj=oom_score_adj,
            )

    def finish(self, pid: int, *, verb: str, command: str = "", log: str = "log") -> None:
        """Wait for a command that :meth:`begin` has started. Raises as :meth:`run` does."""
        path = f"{self.directory}/{log}"
        code = self.reaper.wait(pid)
        if code:
            raise explain(read_log(path) or f"exit code {code}", verb=verb, command=command)
        if os.path.exists(path):
            os.unlink(path)

    def exec_lacks_setsid(self) -> bool:
        """Whether this crun does not call setsid(2) for a process of `exec` without a terminal."""
        from hawse.agent.container import sessions  # imported here: a guest without an exec does not need it

        return sessions.lacks_setsid(self._globals[0], self.reaper)

    def start(self, name: str) -> None:
        """Start a container without hooks as `crun start` does, but without loading crun, which takes 0.1 s.

        The first process waits in a read of ``exec.fifo`` in the container's directory. To start it, unlink the FIFO
        and write one byte (crun src/libcrun/status.c, libcrun_status_write_exec_fifo()). If the FIFO cannot be opened,
        `crun start` is run.
        """
        fifo = f"{self.root}/{name}/exec.fifo"
        try:
            fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self.run("start", name)
            return
        try:
            os.unlink(fifo)
            os.write(fd, b"\0")
        finally:
            os.close(fd)


def read_log(path: str) -> str:
    """The last error in crun's JSON log; "" without one."""
    try:
        with open(path, "rb") as file:
            lines = file.read(_MAX_LOG).splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        try:
            message = parse(line)["msg"]
        except (ValueError, KeyError, TypeError):
            continue
        return str(message)
    return ""


def explain(message: str, *, verb: str, command: str) -> HawseError:
    """The error for a message of crun. Docker and Podman map two phrases of it to the exit codes 127 and 126."""
    concerns_program = re.search(r"executable|exec(ve)?[ `(]|execv|is not a regular file", message)
    if concerns_program and re.search(r"not found|no such file", message, re.IGNORECASE):
        return CommandError(
            f'exec: "{command}": executable file not found in $PATH, or no such file or directory',
            hint="process.args[0] must name a program in the container's root file system",
        )
    if concerns_program and re.search(
        r"permission denied|not permitted|exec format|is a directory", message, re.IGNORECASE
    ):
        reason = message.rsplit(": ", 1)[-1].lower()
        return CommandError(
            f'exec: "{command}": permission denied, not executable ({reason})',
            hint="process.args[0] must be a program that the container's user may execute",
            exit_code=126,
        )
    return VmError(f"crun {verb} in the guest: {message}")
