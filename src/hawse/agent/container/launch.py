"""Create processes with their stdio: ``crun create`` for a container's first process, ``crun exec`` for others."""

from __future__ import annotations

import json
import os
from functools import partial

from hawse.agent.container.console import ConsoleSocket
from hawse.agent.container.crun import Crun
from hawse.agent.container.prepared import Prepared, owner
from hawse.agent.container.process import Process
from hawse.agent.streams.stdio import Pipes, Stdio
from hawse.agent.system import trace
from hawse.agent.system.ids import Ids
from hawse.link.streams import STDIO

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable

    from hawse.json_text import Document


class Launcher:
    """Creates the processes of one container; ``name`` is crun's name for the container.

    Each process gets ``ids`` and ``oom_score_adj`` of the container. If a process cannot be created, the caller has to
    close its stdio.
    """

    def __init__(self, name: str, *, crun: Crun, ids: Ids, oom_score_adj: int = 0) -> None:
        self._name = name
        self._directory = crun.directory
        self._reaper = crun.reaper
        self._crun = crun
        self._ids = ids
        self._oom_score_adj = oom_score_adj

    def use(self, prepared: Prepared, number: int, spec: Document, stdio: Stdio) -> Process:
        """Create the container and its first process with a prepared crun. Raises as :meth:`Crun.run`."""
        process = Process(number, stdio, self._reaper)
        try:
            with trace.span("prepared crun create"):
                process.pid = prepared.create(spec, self._ids)
            stdio.attach_pipes(prepared.pipes)
        except BaseException:
            prepared.pipes.close()
            raise
        return process

    def create(self, number: int, spec: Document, stdio: Stdio) -> Process:
        """Create the container and its first process. Raises as :meth:`Crun.run`."""
        write_json(f"{self._directory}/config.json", spec)
        return self._launch(number, spec["process"], stdio, ["create", f"--bundle={self._directory}"])

    def execute(self, number: int, spec: Document, stdio: Stdio) -> Process:
        """Create an additional process. ``spec`` is the ``process`` of config.json. Raises as :meth:`Crun.run`."""
        path = f"{self._directory}/process-{number}.json"
        meanwhile: Callable[[int], None] = lambda _pid: None  # noqa: E731
        if not spec.get("terminal") and self._crun.exec_lacks_setsid():
            from hawse.agent.container import sessions  # imported here: most containers have no exec

            # crun blocks in opening the FIFO until it is traced.
            os.mkfifo(path, 0o600)
            meanwhile = partial(sessions.trace_and_write, path=path, text=json.dumps(spec), reaper=self._reaper)
        else:
            write_json(path, spec)
        try:
            return self._launch(number, spec, stdio, ["exec", f"--process={path}", "--detach"], meanwhile)
        finally:
            os.unlink(path)

    def _launch(
        self,
        number: int,
        spec: Document,
        stdio: Stdio,
        words: list[str],
        meanwhile: Callable[[int], None] = lambda _pid: None,
    ) -> Process:
        pid_file = f"{self._directory}/pid-{number}"
        words = [*words, f"--pid-file={pid_file}"]
        process = Process(number, stdio, self._reaper)
        if spec.get("terminal"):
            with (
                Pipes(stdio.directions, first=len(STDIO)) as pipes,
                ConsoleSocket(f"{os.path.dirname(self._directory)}/console-{number}") as console,
            ):
                self._run([*words, f"--console-socket={console.path}"], number, spec, pipes)
                stdio.attach_terminal(console.receive())
                stdio.attach_pipes(pipes)
            if size := spec.get("consoleSize"):
                stdio.resize(size["height"], size["width"])
        else:
            with Pipes(stdio.directions) as pipes:
                self._run(words, number, spec, pipes, meanwhile)
                stdio.attach_pipes(pipes)
        with open(pid_file) as file:
            process.pid = int(file.read())
        return process

    def _run(
        self,
        words: list[str],
        number: int,
        spec: Document,
        pipes: Pipes,
        meanwhile: Callable[[int], None] = lambda _pid: None,
    ) -> None:
        """Run crun with these pipes. ``meanwhile`` is passed to :meth:`Crun.run`."""
        pipes.set_owner(**owner(spec, self._ids))
        with trace.span(f"crun {words[0]}"):
            self._crun.run(
                *words,
                f"--preserve-fds={pipes.preserved}",
                self._name,
                descriptors=pipes.theirs,
                command=spec["args"][0],
                log=f"log-{number}",
                # runc applies the container's value to an exec (libcontainer/container_linux.go, bootstrapData());
                # crun does not.
                oom_score_adj=self._oom_score_adj,
                meanwhile=meanwhile,
            )
        pipes.close_theirs()


def write_json(path: str, value: object) -> None:
    """Write a JSON file for crun."""
    with open(path, "w") as file:
        json.dump(value, file)
