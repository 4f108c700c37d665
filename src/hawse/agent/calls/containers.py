"""Calls that create, start and delete containers."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from functools import partial

from hawse.agent.calls.connections import ConnectionCalls
from hawse.agent.calls.guest import Guest
from hawse.agent.calls.registry import Containers
from hawse.agent.container.container import Container
from hawse.agent.container.prepared import Prepared
from hawse.agent.devices.map_file import with_map
from hawse.agent.machine import hugepages
from hawse.agent.mounts import crun_options as mount_options
from hawse.agent.mounts import submounts
from hawse.errors import StateError
from hawse.link.streams import STDIO

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hawse.agent.system.ids import Ids
    from hawse.json_text import Document


class ContainerCalls:
    """Creates and deletes containers: calls for the same container run one at a time, those for others concurrently."""

    def __init__(self, guest: Guest, containers: Containers, connections: ConnectionCalls) -> None:
        self._guest = guest
        self._containers = containers
        self._connections = connections
        self._turns: dict[str, threading.Lock] = {}
        self._prepared: Prepared | None = None

    def prepare(self) -> None:
        """Start the prepared crun for the first container (:mod:`hawse.agent.container.prepared`)."""
        guest = self._guest
        self._prepared = Prepared(
            directory=f"{guest.run}/prepared", reaper=guest.reaper, program=guest.crun_program, root=guest.crun_root
        )

    def prepare_template(self) -> None:
        """Wait until the prepared crun waits for its configuration, before a template is saved."""
        if self._prepared is not None:
            self._prepared.settle()

    # Large: the parameters are the fields of the call create (docs/link.md).
    def create(
        self, *, container: str, process: int, spec: Document, devices: list[Document], joins: dict[str, str],
        notify: bool, binds: list[Document], sockets: list[Document],
    ) -> None:  # fmt: skip
        """Create a container whose first process waits for :meth:`start`.

        ``devices`` is the content of the container's device map, DEVICES_FILE. ``joins`` names the container for each
        kind of namespace that this container joins. ``notify``: the host receives the container's notifications
        (sd_notify(3)). ``binds`` are those of :func:`hawse.agent.mounts.subpaths.bind`, and ``sockets`` are those of
        :meth:`ConnectionCalls.listen`.
        """
        with self._turns.setdefault(container, threading.Lock()), ExitStack() as undo, ExitStack() as during:
            undo.callback(self._guest.streams.abandon, process)
            if sockets:
                undo.callback(self._connections.close, container)
                self._connections.listen(
                    container, [(each["name"], each["mode"], each["uid"], each["gid"]) for each in sockets]
                )
            if binds:
                self._bind(container, binds, during)
            namespaces, ids = self._join(container, joins, during)
            if namespaces:
                linux = spec["linux"]
                spec = {**spec, "linux": {**linux, "namespaces": [*linux["namespaces"], *namespaces]}}
            self._create(container, process, self._adapted(container, spec, devices), ids, notify, devices)
            undo.pop_all()

    def start(self, *, container: str) -> None:
        """Let the first process of a created container execute its program."""
        if self._guest.autoload is not None:
            self._guest.autoload.wait()
        self._containers.find(container).start()

    def delete(self, *, container: str) -> None:
        """Kill a container's processes and remove its resources, including the guest's inodes of its files.

        If the container is still being created, this first waits for that: the host has abandoned the creation, and
        would not remove what it leaves behind.
        """
        with self._turns.setdefault(container, threading.Lock()):
            self._turns.pop(container, None)
            try:
                self._containers.remove(container)
            finally:
                self._connections.close(container)
                submounts.release(f"{self._guest.share}/{container}", mountinfo=self._guest.mountinfo)
        self._guest.drop_inodes()

    def _bind(self, container: str, binds: Sequence[Document], during: ExitStack) -> None:
        from hawse.agent.mounts import subpaths  # imported here, because most guests do not need it

        directory = f"{self._guest.run}/binds/{container}"
        during.callback(subpaths.unbind, directory)
        files = [(each["name"], each["path"], each["inode"]) for each in binds]
        inodes = self._guest.share_kind != "9p"
        subpaths.bind(files, share=self._guest.share, directory=directory, inodes=inodes)

    def _join(self, container: str, joins: Mapping[str, str], during: ExitStack) -> tuple[list[Document], Ids | None]:
        """Entries of ``linux.namespaces`` for namespaces of other containers, and the ids of a joined user namespace.

        crun opens each namespace by the path of a descriptor of this process, which ``during`` keeps open.
        """
        entries: list[Document] = []
        ids = None
        for kind, other in joins.items():
            owner = self._containers.find(other)
            if kind == "user":
                ids = owner.ids
                if not ids.mapped:
                    raise StateError(f"container {other} has no user namespace that {container} could join")
            namespace = owner.namespace(kind)
            during.callback(os.close, namespace)
            entries.append({"type": kind, "path": f"/proc/{os.getpid()}/fd/{namespace}"})
        return entries, ids

    def _adapted(self, container: str, spec: Document, devices: Sequence[Document]) -> Document:
        """The specification, adapted to the guest's kernel and crun. Also creates the container's directory."""
        guest = self._guest
        spec = hugepages.without_unknown_limits(spec, directory=guest.root + hugepages.SYSFS)
        spec = mount_options.adapted(spec)
        if guest.autoload is not None:
            guest.autoload.begin(spec)
        directory = self._directory(container)
        os.makedirs(directory, mode=0o700)
        return with_map(spec, devices, f"{directory}/devices.json") if devices else spec

    def _create(
        self, container: str, process: int, spec: Document, ids: Ids | None, notify: bool, devices: Sequence[Document]
    ) -> None:
        guest, directory = self._guest, self._directory(container)
        stdio = guest.streams.of(process)
        prepared = None
        # The prepared crun passes its own name for the container to hooks, and has no descriptors except stdio.
        if not (spec["process"].get("terminal") or spec.get("hooks") or stdio.directions != STDIO):
            prepared, self._prepared = self._prepared, None
        created = Container(
            container, spec, init=process, crun=guest.crun(directory), ids=ids, prepared=prepared, root=guest.root
        )  # fmt: skip
        try:
            if notify:
                created.serve_notifications(f"{guest.run}/notify/{container}", partial(self._report, container))
            first = created.create(stdio)
            if {"type": "network"} in spec.get("linux", {}).get("namespaces", ()):
                from hawse.agent.devices import guest_drivers  # imported here, because most guests do not need it

                with first.held(f"container {container} has ended") as pid:
                    guest_drivers.move_interfaces(devices, pid, root=guest.root)
            self._containers.add(created, first)
        except BaseException:
            created.remove()
            raise

    def _directory(self, container: str) -> str:
        """The directory of a container's bundle and of crun's files."""
        return f"{self._guest.run}/containers/{container}"

    def _report(self, container: str, text: str) -> None:
        self._guest.report("notify", {"container": container, "text": text})
