"""The containers of the guest by their names, and the events that report their state to the host."""

from __future__ import annotations

import os
import threading

from hawse.agent.calls.guest import Guest
from hawse.agent.container.container import Container
from hawse.agent.container.process import Process
from hawse.errors import LinkError, NotFoundError


class Containers:
    """All containers from their creation until their deletion."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._by_name: dict[str, Container] = {}

    def find(self, name: str) -> Container:
        """The container with this name. Raises :class:`NotFoundError`."""
        try:
            return self._by_name[name]
        except KeyError:
            raise NotFoundError(f"container does not exist in the guest: {name}") from None

    def process(self, name: str, number: int) -> tuple[Container, Process]:
        """A container and one of its processes. Raises :class:`NotFoundError`."""
        container = self.find(name)
        try:
            return container, container.processes[number]
        except KeyError:
            raise NotFoundError(f"container {name} has no process {number}: no such process") from None

    def add(self, container: Container, first: Process) -> None:
        """Add a created container. Report its OOM kills, and the end of its first process."""
        container.cgroup.watch_oom(lambda kills: self._report_oom(container.name, kills))
        self._by_name[container.name] = container
        self.watch(container.name, first)

    def remove(self, name: str) -> None:
        """Kill and remove a container. Raises :class:`NotFoundError`."""
        self.find(name).remove()
        del self._by_name[name]

    def watch(self, name: str, process: Process) -> None:
        """Report the exit code of a process when it ends."""
        threading.Thread(target=self._wait, args=(name, process), daemon=True).start()

    def _wait(self, name: str, process: Process) -> None:
        code = process.wait()
        try:
            if container := self._by_name.get(name):
                # Report the OOM kill before the exit, so that the host knows why the process was killed.
                self._report_oom(name, container.cgroup.oom_kills())
                container.finish_notifications(process)
            process.stdio.finish()
            self._guest.streams.end(process.number)
            os.sync()
            self._guest.send_event("exit", {"process": process.number, "code": code})
        except LinkError:
            return  # the host has closed the link, which ends this VM

    def _report_oom(self, name: str, kills: int) -> None:
        if kills:
            self._guest.report("oom", {"container": name, "kills": kills})
