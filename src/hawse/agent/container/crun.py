"""crun, as the agent calls it: argument lists in, errors in the words that engines look for out."""

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
    """Runs one crun command at a time for one container; its log file is read when it fails."""

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
        """Carry out one command; ``descriptors`` are the child's fds, which ``create`` and ``exec`` hand on, as they
        do ``oom_score_adj``. ``meanwhile`` is called with crun's pid.

        Raises :class:`CommandError` when ``command``, the program to execute inside, is what failed, else
        :class:`VmError` with crun's own words.
        """
        pid = self.begin(*arguments, descriptors=descriptors, log=log, oom_score_adj=oom_score_adj)
        meanwhile(pid)
        self.finish(pid, verb=arguments[0], command=command, log=log)

    def begin(
        self, *arguments: str, descriptors: dict[int, int] | None = None, log: str = "log", oom_score_adj: int = 0
    ) -> int:
        """Start a command; its pid."""
        with open("/dev/null", "r+b") as null:
            fds = {0: null.fileno(), 1: null.fileno(), 2: null.fileno()} | (descriptors or {})
            return self.reaper.spawn(
                [*self._globals, f"--log=file:{self.directory}/{log}", *arguments],
                environment=_ENVIRONMENT,
                descriptors=fds,
                oom_score_adj=oom_score_adj,
            )

    def finish(self, pid: int, *, verb: str, command: str = "", log: str = "log") -> None:
        """Wait for a command that was begun; raises as :meth:`run` does."""
        path = f"{self.directory}/{log}"
        code = self.reaper.wait(pid)
        if code:
            raise explain(read_log(path) or f"exit code {code}", verb=verb, command=command)
        if os.path.exists(path):
            os.unlink(path)

    def leaves_sessions(self) -> bool:
        """Whether it does not have a process of `exec` without a terminal lead its session."""
        from hawse.agent.container import sessions  # here, since a guest without an exec does not need it

        return sessions.needs_help(self._globals[0], self.reaper)

    def start(self, name: str) -> None:
        """What `crun start` does of a container without hooks, without the tenth of a second that it takes to load.

        The first process waits in a read of ``exec.fifo`` in the container's directory: it is to be unlinked and one
        byte written (crun src/libcrun/status.c, libcrun_status_write_exec_fifo()). Where it is not as expected, crun
        itself is asked.
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
    """The last error of crun's JSON log; empty when there is none."""
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
    """crun's words as an error. Docker and Podman map two phrases of it to the exit codes 127 and 126."""
    about_the_program = re.search(r"executable|exec(ve)?[ `(]|execv|is not a regular file", message)
    if about_the_program and re.search(r"not found|no such file", message, re.IGNORECASE):
        return CommandError(
            f'exec: "{command}": executable file not found in $PATH, or no such file or directory',
            hint="process.args[0] names a program of the container's root file system",
        )
    if about_the_program and re.search(
        r"permission denied|not permitted|exec format|is a directory", message, re.IGNORECASE
    ):
        reason = message.rsplit(": ", 1)[-1].lower()
        return CommandError(
            f'exec: "{command}": permission denied, not executable ({reason})',
            hint="process.args[0] must be a program that the container's user may execute",
            exit_code=126,
        )
    return VmError(f"crun {verb} in the guest: {message}")
