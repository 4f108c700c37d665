"""A container in the guest: its bundle on a tmpfs, its crun, and its processes."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

from hawse.agent.container import handlers, mount_errors
from hawse.agent.container.cgroup import ROOT as CGROUPS
from hawse.agent.container.cgroup import Cgroup
from hawse.agent.container.crun import Crun
from hawse.agent.container.launch import Launcher, write_json
from hawse.agent.container.prepared import Prepared
from hawse.agent.container.process import Process
from hawse.agent.container.running_nodes import RunningNodes
from hawse.agent.devices import bound_nodes, guest_dev
from hawse.agent.mounts import flags
from hawse.agent.mounts.container_sysfs import with_bound_sysfs
from hawse.agent.streams.stdio import Stdio
from hawse.agent.system import trace
from hawse.agent.system.ids import Ids, of_spec
from hawse.errors import HawseError, StateError, VmError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hawse.agent.streams.notify import Notify
    from hawse.json_text import Document

#: Shorter than the host's timeout for the call start (hawse.monitor.agent.guest_link).
_EXECUTE_SECONDS = 20.0


class Container:
    """A container. ``spec`` is its specification in the guest, ``init`` is the number of its first process.

    The directory of ``crun`` contains its bundle; ``root`` contains /dev and the cgroup file system.
    """

    def __init__(
        self,
        name: str,
        spec: Document,
        *,
        init: int,
        crun: Crun,
        ids: Ids | None = None,
        prepared: Prepared | None = None,
        root: str = "",
    ) -> None:
        """``ids``: the ids of the container whose user namespace this one joins; None to read them from ``spec``."""
        self.name = name
        self.ids = of_spec(spec) if ids is None else ids
        self.processes: dict[int, Process] = {}
        self.started = False
        self.cgroup = Cgroup(f"hawse/{name}", root=root + CGROUPS)
        self._spec = spec
        self._init = init
        self._directory = crun.directory
        self._crun = crun
        self._prepared = prepared
        self._crun_name = prepared.name if prepared else name
        self._root = root
        self._started_at = 0.0
        self._executing = threading.Event()  # cleared while the first process is about to execute its program
        self._executing.set()
        self._notify: Notify | None = None
        self._bound_nodes = f"{root}{bound_nodes.DIRECTORY}/{name}"
        self._mount_points: list[str] = []
        self._launcher = Launcher(
            self._crun_name, crun=crun, ids=self.ids,
            oom_score_adj=(spec.get("process") or {}).get("oomScoreAdj") or 0,
        )  # fmt: skip
        self.nodes = RunningNodes(
            self._open,
            ids=self.ids,
            rules=((spec.get("linux") or {}).get("resources") or {}).get("devices") or (),
            set_rules=self._set_rules,
            directory=self._bound_nodes,
            map_file=f"{crun.directory}/devices.json",
        )

    def serve_notifications(self, directory: str, send: Callable[[str], None]) -> None:
        """Create the directory and the socket for notifications of the container's processes."""
        from hawse.agent.streams.notify import Notify  # imported here, because most guests do not need it

        self._notify = Notify(directory, send)

    def finish_notifications(self, process: Process) -> None:
        """Send the remaining notifications if ``process``, which has ended, is the first one."""
        if self._notify is not None and process.number == self._init:
            self._notify.finish()

    def create(self, stdio: Stdio) -> Process:
        """``crun create``: create the first process, which waits for :meth:`start`.

        Raises :class:`VmError` with the field of the specification that crun refuses, or :class:`CommandError`. The
        caller then has to close ``stdio``.
        """
        spec = self._with_nodes()
        try:
            if self._prepared is not None:
                first = self._launcher.use(self._prepared, self._init, spec, stdio)
            else:
                first = self._launcher.create(self._init, spec, stdio)
            self.processes[self._init] = first
            self._restore_mount_flags(spec)
            return first
        except VmError as error:
            from hawse.agent.container.spec_fields import field_of  # imported here: most containers do not need it

            if sentence := mount_errors.unknown_type(error.message, spec):
                raise VmError(sentence, hint=mount_errors.HINT, evidence=error.evidence) from None
            if field := field_of(error.message, self._spec):
                raise error.with_context(field) from None
            raise

    def _with_nodes(self) -> Document:
        """The specification for crun. Also creates the nodes that it binds, and their mount points in the guest."""
        root, mapped = self._root, self.ids.mapped
        spec = with_bound_sysfs(self._spec) if mapped else self._spec
        spec, covered = guest_dev.with_covers(spec, container_node=os.path.exists(f"{root}/dev/vfio/vfio"))
        guest_dev.create_directories(covered, root=root)
        spec, bound = bound_nodes.with_bound_nodes(spec, self._bound_nodes, all_nodes=mapped, root=root)
        bound_nodes.create_nodes(bound, self._bound_nodes, self.ids)
        self._mount_points = bound_nodes.mount_points(bound, spec)
        guest_dev.create_mount_points(self._mount_points, root=root)
        return spec

    def _restore_mount_flags(self, spec: Document) -> None:
        with suppress(StateError, FileNotFoundError, ProcessLookupError):  # the process has ended: start() reports that
            process = self._open(".", f"container {self.name} has ended")
            try:
                flags.restore(spec, process, mapped=self.ids.mapped)
            finally:
                os.close(process)

    def start(self) -> None:
        """Let the first process execute its program."""
        if self.started:
            raise StateError(f"cannot start container {self.name}: it has been started already")
        process = self.processes[self._init]
        if not process.pid:
            raise StateError(f"cannot start container {self.name}: it has ended")
        with trace.span("started"):
            before = process.program()
            self._executing.clear()
            try:
                self._crun.start(self._crun_name)
                # crun returns before the program is executed. A signal that arrives in between is lost even if the
                # program would handle it. Hooks in the container run before the program, without a time limit; like
                # runc, this does not wait for them.
                end = time.monotonic() + _EXECUTE_SECONDS
                while process.pid and before and process.program() == before and time.monotonic() < end:
                    time.sleep(0.005)
                self._started_at = time.monotonic()
                self.started = True
            finally:
                self._executing.set()

    def signal(self, process: Process, number: int) -> None:
        """Signal a process. Raises :class:`StateError` if it has ended."""
        is_first = process.number == self._init
        if is_first and number not in handlers.NEVER_LOST:
            self._executing.wait(handlers.SECONDS)  # the host reports it as running during start()
        if is_first and self.started:
            handlers.await_handler(process.pid, number, started=self._started_at, lives=lambda: bool(process.pid))
        process.signal(number)

    def execute(self, number: int, spec: Document, stdio: Stdio) -> Process:
        """``crun exec``: run an additional process in the running container. On failure the caller closes ``stdio``."""
        self._executing.wait(handlers.SECONDS)
        if not self.started or not self.processes[self._init].pid:
            raise StateError("cannot exec in a container that is not running: container not running")
        process = self.processes[number] = self._launcher.execute(number, spec, stdio)
        return process

    def namespace(self, kind: str) -> int:
        """A descriptor of one of the first process's namespaces (proc(5)). Raises :class:`StateError` if it has
        ended."""
        problem = f"container {self.name} has ended: its {kind} namespace cannot be joined"
        return self._open(f"ns/{'net' if kind == 'network' else kind}", problem)

    def remove(self) -> None:
        """Kill and delete the container with crun, and remove its directory. Missing parts are ignored."""
        with suppress(HawseError):
            self._crun.run("delete", "--force", self._crun_name, log="log-delete")
        self.cgroup.unwatch()
        if self._notify is not None:
            self._notify.end()
            self._notify = None
        bound_nodes.remove_nodes(self._bound_nodes)
        guest_dev.remove_mount_points(self._mount_points, root=self._root)
        self._mount_points = []
        with suppress(OSError):
            for name in os.listdir(self._directory):
                os.unlink(f"{self._directory}/{name}")
            os.rmdir(self._directory)

    def freeze(self, *, frozen: bool) -> None:
        """Freeze or thaw all processes of the container's cgroup."""
        self._crun.run("pause" if frozen else "resume", self._crun_name, log="log-freeze")

    def signal_all(self, number: int) -> None:
        """Signal every process of the container's cgroup."""
        self.cgroup.signal(number)

    def update(self, resources: Document) -> None:
        """Change the limits that ``resources``, in the format of config.json, contains.

        Raises :class:`VmError` that names the field if the kernel refuses a value.
        """
        path = f"{self._directory}/update.json"
        write_json(path, resources)
        try:
            self._crun.run("update", f"--resources={path}", self._crun_name, log="log-update")
        except VmError as error:
            from hawse.agent.container.spec_fields import field_of  # imported here, because most updates succeed

            if field := field_of(error.message, {"linux": {"resources": resources}}):
                hint = error.hint or "the guest kernel does not accept the value: choose another one"
                raise VmError(f"update: {field}: {error.message}", hint=hint, evidence=error.evidence) from None
            raise

    def _set_rules(self, rules: Sequence[Document]) -> None:
        """Replace the eBPF program of the container's device cgroup, with crun."""
        path = f"{self._directory}/resources.json"
        write_json(path, {"devices": rules})
        self._crun.run("update", f"--resources={path}", self._crun_name, log="log-update")

    def _open(self, path: str, problem: str = "") -> int:
        """Like :meth:`Process.open`, for the first process."""
        return self.processes[self._init].open(path, problem or f"container {self.name} has ended")
