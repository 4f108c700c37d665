"""Calls for the processes of containers and for their cgroups."""

from __future__ import annotations

from hawse.agent.calls.guest import Guest
from hawse.agent.calls.registry import Containers
from hawse.agent.container import process_table

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document


class ProcessCalls:
    """Carries out the calls for processes. Each names the container, and a process by the host's number for it."""

    def __init__(self, guest: Guest, containers: Containers) -> None:
        self._guest = guest
        self._containers = containers

    def execute(self, *, container: str, process: int, spec: Document) -> None:
        """Run an additional process in a running container. ``spec`` is the ``process`` of config.json."""
        streams = self._guest.streams
        try:
            executed = self._containers.find(container).execute(process, spec, streams.of(process))
        except BaseException:
            streams.abandon(process)
            raise
        self._containers.watch(container, executed)

    def signal(self, *, container: str, process: int, signal: int, everyone: bool) -> None:
        """Send a signal to one process, or with ``everyone`` to all processes of the container."""
        if everyone:
            self._containers.find(container).signal_all(signal)
        else:
            owner, receiver = self._containers.process(container, process)
            owner.signal(receiver, signal)

    def resize(self, *, container: str, process: int, rows: int, columns: int) -> None:
        """Set the size of a process's terminal."""
        _, owner = self._containers.process(container, process)
        owner.stdio.resize(rows, columns)

    def freeze(self, *, container: str, frozen: bool) -> None:
        """Freeze a container's processes, or thaw them."""
        self._containers.find(container).freeze(frozen=frozen)

    def update(self, *, container: str, resources: Document) -> None:
        """Change a container's limits. ``resources`` is ``linux.resources`` of config.json."""
        self._containers.find(container).update(resources)

    def statistics(self, *, container: str) -> dict[str, str]:
        """The files of a container's cgroup that report its usage, by name."""
        return self._containers.find(container).cgroup.statistics()

    def listing(self, *, container: str) -> list[dict[str, object]]:
        """The processes of a container."""
        members = self._containers.find(container).cgroup.members()
        return process_table.listing(members, proc=f"{self._guest.root}/proc")
