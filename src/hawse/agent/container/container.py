"""Containers inside the guest: a bundle on tmpfs, crun, and the processes that it started."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial

from hawse.agent.container import handlers, mount_errors
from hawse.agent.container.cgroup import ROOT as CGROUPS
from hawse.agent.container.cgroup import Cgroup
from hawse.agent.container.crun import Crun
from hawse.agent.container.prepared import Prepared, owner
from hawse.agent.devices import bound_nodes, guest_dev
from hawse.agent.devices.live_nodes import bind_node, make_node, remove_node, write_file
from hawse.agent.devices.map_file import DEVICES_FILE, map_text, write_map
from hawse.agent.mounts import container_sysfs, flags
from hawse.agent.streams.stdio import Pipes, Stdio
from hawse.agent.system import syscalls, trace
from hawse.agent.system.ids import SAME, Ids, of_spec
from hawse.agent.system.reaper import Reaper
from hawse.errors import HawseError, StateError, VmError
from hawse.link.streams import STDIO

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from hawse.agent.streams.notify import Notify


#: The host waits longer for the answer to a start (hawse.monitor.agent.guest_link).
_EXECUTE_SECONDS = 20.0


class Process:
    """One process of a container, the first or an exec's."""

    def __init__(self, number: int, stdio: Stdio, reaper: Reaper) -> None:
        self.number = number
        self._reaper = reaper
        self.stdio = stdio
        self.since = time.monotonic()  # born after this
        self.pid = 0  # 0 again once it has been waited for: a number that is free may become somebody else's

    @contextmanager
    def held(self, problem: str) -> Iterator[int]:
        """The pid of this process; while it is held, no other process can get it.

        Hold it for a moment only: the agent waits for no child meanwhile. Raises :class:`StateError` with the problem
        when the process has ended.
        """
        with self._reaper.hold(self.pid, since=self.since) as lives:
            if not self.pid or not lives:
                raise StateError(problem)
            yield self.pid

    def signal(self, number: int) -> None:
        """Send a signal; raises :class:`StateError` when the process has ended."""
        with self.held("container not running: os: process already finished") as pid:
            os.kill(pid, number)

    def open(self, path: str, problem: str) -> int:
        """A descriptor of a file or directory below /proc/PID of this process. Raises as :meth:`held`."""
        with self.held(problem) as pid:
            try:
                return os.open(f"/proc/{pid}/{path}", os.O_RDONLY)
            except OSError:  # it has ended, and was not waited for yet
                raise StateError(problem) from None

    def wait(self) -> int:
        """The exit code, once the process has ended."""
        return self._reaper.wait(self.pid, since=self.since, forget=self._forget)

    def _forget(self) -> None:
        self.pid = 0


class Container:
    """One container; ``directory`` holds its bundle and crun's files."""

    def __init__(
        self,
        name: str,
        *,
        init: int,
        directory: str,
        reaper: Reaper,
        crun: Crun,
        prepared: Prepared | None = None,
        root: str = "",
    ) -> None:
        """``init`` is the number of its first process; below ``root`` is the file system of cgroups."""
        self.name = name
        self._init = init
        self._crun_name = name
        self._prepared = prepared
        self.started = False
        self._started_at = 0.0
        self._executing = threading.Event()  # unset while the first process is on its way to its program
        self._executing.set()
        self._directory = directory
        self._reaper = reaper
        self._crun = crun
        self.processes: dict[int, Process] = {}
        self._rules: list[dict[str, Any]] = []
        self._oom_score_adj = 0
        self._notify: Notify | None = None
        self.cgroup = Cgroup(f"hawse/{name}", root=root + CGROUPS)
        self._nodes = f"{root}{bound_nodes.DIRECTORY}/{name}"
        self._root_directory = root
        self._places: list[str] = []
        self.ids = SAME

    def serve_notifications(self, directory: str, send: Callable[[str], None]) -> None:
        """Create the directory and the socket for notifications of the container's processes."""
        from hawse.agent.streams.notify import Notify  # here, since most guests never need it

        self._notify = Notify(directory, send)

    def finish_notifications(self, process: Process) -> None:
        """Pass on the remaining notifications if ``process``, which has ended, is the first one."""
        if self._notify is not None and process.number == self._init:
            self._notify.finish()

    def create(self, spec: dict[str, Any], stdio: Stdio, ids: Ids | None = None) -> Process:
        """``crun create``: the first process exists and waits for :meth:`start`.

        ``ids`` are those of the user namespace of another container, where it has that one.
        """
        self.ids = of_spec(spec) if ids is None else ids
        process = spec["process"]
        self._oom_score_adj = process.get("oomScoreAdj") or 0
        asked_for = spec | {"linux": dict(spec.get("linux") or {})}
        self._rules = (asked_for["linux"].get("resources") or {}).get("devices") or []
        if self.ids.mapped:
            container_sysfs.bind_sysfs(spec)
        root = self._root_directory
        guest_dev.make_directories(
            guest_dev.cover(spec, container_node=os.path.exists(f"{root}/dev/vfio/vfio")), root=root
        )
        bound = bound_nodes.bind_nodes(spec, self._nodes, everything=self.ids.mapped, root=root)
        bound_nodes.make_nodes(bound, self._nodes, self.ids)
        self._places = bound_nodes.places(bound, spec)
        guest_dev.make_places(self._places, root=root)
        try:
            if self._prepared is not None:
                made = self._use(self._prepared, spec, stdio)
            else:
                _write_json(f"{self._directory}/config.json", spec)
                made = self._launch(self._init, process, stdio, "create", f"--bundle={self._directory}")
            self._keep_mount_flags(spec, made)
            return made
        except VmError as error:
            from hawse.agent.container.spec_fields import field_of  # here, since most containers do not need it

            if sentence := mount_errors.unknown_type(error.message, spec):
                raise VmError(sentence, hint=mount_errors.HINT, evidence=error.evidence) from None
            if field := field_of(error.message, asked_for):
                raise error.with_context(field) from None
            raise

    def _keep_mount_flags(self, spec: dict[str, Any], made: Process) -> None:
        with suppress(StateError, FileNotFoundError, ProcessLookupError):  # it has ended: whoever starts it is told
            process = made.open(".", f"container {self.name} has ended")
            try:
                flags.keep(spec, process, mapped=self.ids.mapped)
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
            before = _program(process.pid)
            self._executing.clear()
            try:
                self._crun.start(self._crun_name)
                # crun returns before the program is executed, and a signal that came by then would be lost on a program
                # that handles it. Hooks in the container run before, and for as long as they like: runc waits for none.
                end = time.monotonic() + _EXECUTE_SECONDS
                while process.pid and before and _program(process.pid) == before and time.monotonic() < end:
                    time.sleep(0.005)
                self._started_at = time.monotonic()
                self.started = True
            finally:
                self._executing.set()

    def signal(self, process: Process, number: int) -> None:
        """Signal a process. Raises :class:`StateError` when it has ended."""
        if process.number == self._init and number not in handlers.NEVER_LOST:
            self._executing.wait(handlers.SECONDS)  # the host has it as running while it is being started
        if self.started and process.number == self._init:
            handlers.await_handler(process.pid, number, started=self._started_at, lives=lambda: bool(process.pid))
        process.signal(number)

    def execute(self, number: int, process: dict[str, Any], stdio: Stdio) -> Process:
        """``crun exec``: one more process in the running container."""
        self._executing.wait(handlers.SECONDS)
        if not self.started or not self.processes[self._init].pid:
            raise StateError("cannot exec in a container that is not running: container not running")
        path = f"{self._directory}/process-{number}.json"
        meanwhile: Callable[[int], None] = lambda _pid: None  # noqa: E731
        if not process.get("terminal") and self._crun.leaves_sessions():
            from hawse.agent.container import sessions

            # crun waits for the FIFO until it is traced.
            os.mkfifo(path, 0o600)
            meanwhile = partial(sessions.hand_over, path=path, text=json.dumps(process), reaper=self._reaper)
        else:
            _write_json(path, process)
        try:
            words = ("exec", f"--process={path}", "--detach")
            return self._launch(number, process, stdio, *words, meanwhile=meanwhile)
        finally:
            os.unlink(path)

    def add_nodes(self, nodes: list[tuple[str, tuple[int, int], int, int, int]], devices: list[dict[str, Any]]) -> None:
        """Make nodes of path, numbers, mode, uid and gid, allowed by the device cgroup; all of them or none."""
        allowed = [{"allow": True, "type": "c", "major": n[0], "minor": n[1], "access": "rwm"} for _, n, *_ in nodes]
        before = self._rules
        done = []
        with self._root() as root:
            try:
                # At the end, where no other rule overrides them.
                self._set_rules([*(rule for rule in before if rule not in allowed), *allowed])
                for path, numbers, mode, uid, gid in nodes:
                    self._make_node(root, path, numbers, mode=mode, uid=self.ids.uid(uid), gid=self.ids.gid(gid))
                    done.append((path, numbers))
            except HawseError:
                for path, numbers in done:
                    remove_node(root, path, numbers)
                self._set_rules(before)
                raise
        self._show(devices)

    def _make_node(self, root: str, path: str, numbers: tuple[int, int], *, mode: int, uid: int, gid: int) -> None:
        if not self.ids.mapped:
            make_node(root, path, numbers, mode=mode, uid=uid, gid=gid)
            return
        # No node of a file system that was mounted in a user namespace can be opened (Linux fs/super.c, SB_I_NODEV).
        source = bound_nodes.keep_node(self._nodes, numbers, mode=mode, uid=uid, gid=gid)
        namespace = self.namespace("mnt")
        try:
            with self._as_its_root():
                bind_node(root, path, numbers, lambda place: syscalls.bind_in(namespace, source, place))
        finally:
            os.close(namespace)

    @contextmanager
    def _as_its_root(self) -> Iterator[None]:
        """In a user namespace files of the container's file systems can be made by its own users alone."""
        if not self.ids.mapped:
            yield
            return
        with syscalls.file_owner(self.ids.uid(0), self.ids.gid(0)):
            yield

    def remove_nodes(self, nodes: list[tuple[str, tuple[int, int]]], devices: list[dict[str, Any]]) -> None:
        """Take nodes of path and numbers away, and what allowed them."""
        gone = {numbers for _, numbers in nodes}
        with self._root() as root:
            for path, numbers in nodes:
                remove_node(root, path, numbers)
        self._set_rules(
            [
                rule
                for rule in self._rules
                if rule.get("type") != "c" or (rule.get("major"), rule.get("minor")) not in gone
            ]
        )
        self._show(devices)

    def _show(self, devices: list[dict[str, Any]]) -> None:
        """Replace what the container can read of its devices: a file that is bound there, or one made there."""
        path = f"{self._directory}/devices.json"
        if os.path.exists(path):
            write_map(path, devices)
        else:
            with self._root() as root, self._as_its_root():
                write_file(root, DEVICES_FILE, map_text(devices))

    @contextmanager
    def _root(self) -> Iterator[str]:
        """The container's root directory, as its first process has it. Raises :class:`StateError` when that has
        ended."""
        root = self.processes[self._init].open("root", f"container {self.name} has ended")
        try:
            yield f"/proc/self/fd/{root}"
        finally:
            os.close(root)

    def _set_rules(self, rules: list[dict[str, Any]]) -> None:
        """Have crun replace the program that guards the container's devices; without rules there is none."""
        if rules == self._rules or not self._rules:
            return
        path = f"{self._directory}/resources.json"
        _write_json(path, {"devices": rules})
        self._crun.run("update", f"--resources={path}", self._crun_name, log="log-update")
        self._rules = rules

    def namespace(self, kind: str) -> int:
        """A descriptor of one of its first process's namespaces (proc(5)). Raises :class:`StateError` when that has
        ended."""
        problem = f"container {self.name} has ended: its {kind} namespace cannot be joined"
        return self.processes[self._init].open(f"ns/{'net' if kind == 'network' else kind}", problem)

    def remove(self) -> None:
        """Have crun end and forget it, and remove its directory; whatever is gone already is no error."""
        with suppress(HawseError):
            self._crun.run("delete", "--force", self._crun_name, log="log-delete")
        self.cgroup.unwatch()
        if self._notify is not None:
            self._notify.end()
            self._notify = None
        bound_nodes.remove_nodes(self._nodes)
        guest_dev.remove_places(self._places, root=self._root_directory)
        self._places = []
        with suppress(OSError):
            for name in os.listdir(self._directory):
                os.unlink(f"{self._directory}/{name}")
            os.rmdir(self._directory)

    def freeze(self, *, frozen: bool) -> None:
        """Stop every process of the container's cgroup where it is, or let them go on."""
        self._crun.run("pause" if frozen else "resume", self._crun_name, log="log-freeze")

    def signal_all(self, number: int) -> None:
        """Signal every process of the container's cgroup."""
        self.cgroup.signal(number)

    def update(self, resources: dict[str, Any]) -> None:
        """Change the limits that ``resources``, in the format of config.json, contains.

        Raises :class:`VmError` that names the field if the kernel refuses a value.
        """
        path = f"{self._directory}/update.json"
        _write_json(path, resources)
        try:
            self._crun.run("update", f"--resources={path}", self._crun_name, log="log-update")
        except VmError as error:
            from hawse.agent.container.spec_fields import field_of  # here, since most updates succeed

            if field := field_of(error.message, {"linux": {"resources": resources}}):
                error.message = f"update: {field}: {error.message}"
                error.hint = error.hint or "the guest's kernel does not accept the value: choose another one"
            raise

    def _use(self, prepared: Prepared, spec: dict[str, Any], stdio: Stdio) -> Process:
        launched = Process(self._init, stdio, self._reaper)
        self._crun_name = prepared.name
        try:
            with trace.span("prepared crun create"):
                launched.pid = prepared.create(spec, self.ids)
            stdio.attach_pipes(prepared.pipes)
        except BaseException:
            prepared.pipes.close()
            stdio.abandon()
            raise
        self.processes[self._init] = launched
        return launched

    def _launch(
        self,
        number: int,
        process: dict[str, Any],
        stdio: Stdio,
        verb: str,
        *options: str,
        meanwhile: Callable[[int], None] = lambda _pid: None,
    ) -> Process:
        pid_file = f"{self._directory}/pid-{number}"
        arguments = [verb, f"--pid-file={pid_file}", *options]
        launched = Process(number, stdio, self._reaper)
        try:
            if process.get("terminal"):
                with (
                    Pipes(stdio.directions, first=len(STDIO)) as pipes,
                    ConsoleSocket(f"{os.path.dirname(self._directory)}/console-{number}") as console,
                ):
                    self._run([*arguments, f"--console-socket={console.path}"], number, process, pipes)
                    stdio.attach_terminal(console.receive())
                    stdio.attach_pipes(pipes)
                size = process.get("consoleSize")
                if size:
                    stdio.resize(size["height"], size["width"])
            else:
                with Pipes(stdio.directions) as pipes:
                    self._run(arguments, number, process, pipes, meanwhile)
                    stdio.attach_pipes(pipes)
        except BaseException:
            stdio.abandon()
            raise
        with open(pid_file) as file:
            launched.pid = int(file.read())
        self.processes[number] = launched
        return launched

    def _run(
        self,
        arguments: list[str],
        number: int,
        process: dict[str, Any],
        pipes: Pipes,
        meanwhile: Callable[[int], None] = lambda _pid: None,
    ) -> None:
        """Have crun make a process of the container with these pipes; ``meanwhile`` is that of :meth:`Crun.run`."""
        pipes.give_to(**owner(process, self.ids))
        with trace.span(f"crun {arguments[0]}"):
            self._crun.run(
                *arguments,
                f"--preserve-fds={pipes.preserved}",
                self._crun_name,
                descriptors=pipes.theirs,
                command=process["args"][0],
                log=f"log-{number}",
                # runc gives an exec the container's too (libcontainer/container_linux.go, bootstrapData()), crun none.
                oom_score_adj=self._oom_score_adj,
                meanwhile=meanwhile,
            )
        pipes.handed_on()


class ConsoleSocket:
    """Where crun sends the master side of the terminal that it made."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10)

    def __enter__(self) -> ConsoleSocket:
        self._socket.bind(self.path)
        self._socket.listen(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        os.unlink(self.path)

    def receive(self) -> int:
        """The descriptor; crun has sent it before it ended."""
        try:
            connection, _ = self._socket.accept()
            with connection:
                _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        except OSError as error:
            raise VmError(f"crun sent no terminal: {error}") from None
        if len(fds) != 1:
            raise VmError("crun sent no terminal")
        os.set_inheritable(fds[0], False)
        return fds[0]


def _program(pid: int) -> tuple[int, int] | None:
    """Device and inode of what a process executes (proc(5), exe); None when it has ended. Another process that has got
    its pid executes something else than before, which ends the wait as well."""
    try:
        status = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _write_json(path: str, value: object) -> None:
    with open(path, "w") as file:
        json.dump(value, file)
