"""Add device nodes to a running container and remove them, when VFIO groups are attached and detached."""

from __future__ import annotations

import os
from contextlib import contextmanager

from hawse.agent.devices import bound_nodes
from hawse.agent.devices.live_nodes import bind_node, make_node, remove_node, write_file
from hawse.agent.devices.map_file import DEVICES_FILE, map_text, write_map
from hawse.agent.system import syscalls
from hawse.agent.system.ids import Ids
from hawse.errors import HawseError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hawse.json_text import Document


class LiveNode:
    """A node to create or to remove: its path, its numbers in the guest, and mode and owners in the container.

    The fields are those of the call (:class:`hawse.monitor.agent.calls.LiveNode`).
    """

    __slots__ = ("gid", "mode", "numbers", "path", "uid")

    def __init__(self, *, path: str, major: int, minor: int, mode: int, uid: int, gid: int) -> None:
        self.path = path
        self.numbers = (major, minor)
        self.mode = mode
        self.uid = uid
        self.gid = gid


class RunningNodes:
    """The device nodes of one running container.

    ``open_`` opens a file or directory below /proc/PID of the first process. ``rules`` are the container's device
    rules, and ``set_rules`` replaces them. ``directory`` contains the nodes that are bound into the container, and
    ``map_file`` is the agent's file with its device map.
    """

    def __init__(
        self,
        open_: Callable[[str], int],
        *,
        ids: Ids,
        rules: Sequence[Document],
        set_rules: Callable[[Sequence[Document]], None],
        directory: str,
        map_file: str,
    ) -> None:
        self._open = open_
        self._ids = ids
        self._rules = list(rules)
        self._replace_rules = set_rules
        self._directory = directory
        self._map_file = map_file

    def add(self, nodes: Sequence[LiveNode], devices: Sequence[Document]) -> None:
        """Create nodes and allow them in the device cgroup; all of them or none.

        ``devices`` is the new content of the container's device map.
        """
        allowed = [
            {"allow": True, "type": "c", "major": node.numbers[0], "minor": node.numbers[1], "access": "rwm"}
            for node in nodes
        ]
        before = self._rules
        created: list[LiveNode] = []
        with self._root() as root:
            try:
                # Append them, so that no later rule overrides them.
                self._set_rules([*(rule for rule in before if rule not in allowed), *allowed])
                for node in nodes:
                    self._create(root, node)
                    created.append(node)
            except HawseError:
                for node in created:
                    remove_node(root, node.path, node.numbers)
                self._set_rules(before)
                raise
        self._replace_map(devices)

    def remove(self, nodes: Sequence[LiveNode], devices: Sequence[Document]) -> None:
        """Remove nodes and the rules that allow them."""
        removed = {node.numbers for node in nodes}
        with self._root() as root:
            for node in nodes:
                remove_node(root, node.path, node.numbers)
        self._set_rules(
            [r for r in self._rules if r.get("type") != "c" or (r.get("major"), r.get("minor")) not in removed]
        )
        self._replace_map(devices)

    def _create(self, root: str, node: LiveNode) -> None:
        uid, gid = self._ids.uid(node.uid), self._ids.gid(node.gid)
        if not self._ids.mapped:
            make_node(root, node.path, node.numbers, mode=node.mode, uid=uid, gid=gid)
            return
        # Nodes of a file system that was mounted in a user namespace cannot be opened (Linux fs/super.c, SB_I_NODEV).
        source = bound_nodes.create_node(self._directory, node.numbers, mode=node.mode, uid=uid, gid=gid)
        namespace = self._open("ns/mnt")
        try:
            with self._as_container_root():
                bind_node(root, node.path, node.numbers, lambda target: syscalls.bind_in(namespace, source, target))
        finally:
            os.close(namespace)

    def _replace_map(self, devices: Sequence[Document]) -> None:
        """Replace the container's device map: the agent's file that is bound to it, or else a file in the container."""
        if os.path.exists(self._map_file):
            write_map(self._map_file, devices)
        else:
            with self._root() as root, self._as_container_root():
                write_file(root, DEVICES_FILE, map_text(devices))

    @contextmanager
    def _as_container_root(self) -> Iterator[None]:
        """Create files as the container's root, since only users of a user namespace can do so on its file systems."""
        if not self._ids.mapped:
            yield
            return
        with syscalls.file_owner(self._ids.uid(0), self._ids.gid(0)):
            yield

    @contextmanager
    def _root(self) -> Iterator[str]:
        """The root directory of the first process. Raises :class:`StateError` if the process has ended."""
        root = self._open("root")
        try:
            yield f"/proc/self/fd/{root}"
        finally:
            os.close(root)

    def _set_rules(self, rules: list[Document]) -> None:
        """Replace the device rules. Without any, the container has no eBPF program for devices: nothing is replaced."""
        if rules == self._rules or not self._rules:
            return
        self._replace_rules(rules)
        self._rules = rules
