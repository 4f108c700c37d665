"""The agent's calls: what the monitor may ask for. Each runs in a thread, so that a wait for hardware delays nobody."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial

from hawse.agent.container import process_table
from hawse.agent.container.container import Container, Process
from hawse.agent.container.crun import CRUN, ROOT, Crun
from hawse.agent.container.prepared import Prepared
from hawse.agent.devices import hardware
from hawse.agent.devices.spec_nodes import Node, rewrite_devices, show
from hawse.agent.machine import boot, hugepages, identity, network
from hawse.agent.machine.autoload import Autoload
from hawse.agent.machine.boot import DISK_MODULES, SHARE_MODULES, VFIO_MODULES
from hawse.agent.mounts import options as mount_options
from hawse.agent.mounts import submounts
from hawse.agent.streams.stdio import Stdio
from hawse.agent.system import syscalls, trace
from hawse.agent.system.reaper import Reaper
from hawse.agent.system.uevents import Uevents
from hawse.errors import HawseError, LinkError, NotFoundError, StateError, VmError
from hawse.link import control
from hawse.link.blocking import Port
from hawse.link.flow import decode_credit
from hawse.link.frames import CALL, CREDIT, DATA, EOF
from hawse.link.streams import STDIO, STREAMS, directions

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from typing import Any

    from hawse.agent.streams.dials import Dials
    from hawse.agent.streams.forwards import Forwards
    from hawse.agent.streams.resolver import Resolver
    from hawse.agent.system.ids import Ids

PROTOCOL = 1
RUN = "/run/hawse"


class Server:
    """Serves one link until it closes."""

    def __init__(
        self,
        port: Port,
        *,
        reaper: Reaper,
        uevents: Uevents,
        load: Callable[[tuple[str, ...]], None],
        run: str = RUN,
        crun: str = CRUN,
        crun_root: str = ROOT,
        root: str = "",
        mount: Callable[..., None] = syscalls.mount,
    ) -> None:
        """``root`` has /sys, /proc and /dev; ``mount`` mounts shared directories."""
        self._port = port
        self._reaper = reaper
        self._uevents = uevents
        self._load = load
        self._run = run
        self._share_kind = ""
        self._crun = crun
        self._crun_root = crun_root
        self._root = root
        self._mount = mount
        self._containers: dict[str, Container] = {}
        #: By container: it is created and deleted in turn.
        self._turns: dict[str, threading.Lock] = {}
        self._stdio: dict[int, Stdio] = {}
        self._newest = 0
        self._prepared: Prepared | None = None
        self._autoload: Autoload | None = None
        self._resolver: Resolver | None = None
        self._forwards: Forwards | None = None
        self._dials: Dials | None = None
        self._lazily = threading.Lock()
        self._methods: dict[str, Callable[..., object]] = {
            "wake": identity.wake,
            "settle": self.settle,
            "trace": self.trace,
            "mount_share": self.mount_share,
            "look_at_mounts": self.look_at_mounts,
            "forget_mounts": self.forget_mounts,
            "bind_vfio": self.bind_vfio,
            "find_anew": self.find_anew,
            "bind_disk": self.bind_disk,
            "misc_numbers": self.misc_numbers,
            "bind_native": self.bind_native,
            "configure_network": self.configure_network,
            "set_sysctls": self.set_sysctls,
            "serve_names": self.serve_names,
            "answer_name": self.answer_name,
            "connect": self.connect,
            "disconnect": self.disconnect,
            "accept": self.accept,
            "refuse": self.refuse,
            "reserve_hugepages": self.reserve_hugepages,
            "share_hugepages": self.share_hugepages,
            "share_memory": self.share_memory,
            "create": self.create,
            "start": self.start,
            "add_nodes": self.add_nodes,
            "remove_nodes": self.remove_nodes,
            "exec": self.execute,
            "signal": self.signal,
            "freeze": self.freeze,
            "update": self.update,
            "statistics": self.statistics,
            "listing": self.listing,
            "resize": self.resize,
            "delete": self.delete,
        }

    def serve(self) -> None:
        """Announce the agent, then obey until the host closes the link."""
        self._port.send(control.encode_event("hello", {"protocol": PROTOCOL, "kernel": os.uname().release}))
        self._prepared = Prepared(
            directory=f"{self._run}/prepared", reaper=self._reaper, program=self._crun, root=self._crun_root
        )
        for stream, kind, payload in self._port.frames():
            if kind == CALL:
                number, method, params = control.decode_call(payload)
                if method in ("create", "exec", "connect", "accept"):
                    # Here and not in the call's thread: the process's first bytes may be the very next frame.
                    self._open_stdio(params["process"], params.pop("descriptors"))
                elif method == "wake":
                    # Here, so that whatever is asked for next happens in a machine that is one of its own.
                    self._answer(number, method, params)
                    continue
                threading.Thread(target=self._answer, args=(number, method, params), daemon=True).start()
            elif kind in (DATA, CREDIT, EOF):
                self._stream_frame(stream, kind, payload)
            else:
                raise LinkError(f"link: the host sent a frame of type {kind}")

    def settle(self) -> None:
        """Be ready to be saved as a template: everything loaded that a container may need, nothing left to collect."""
        for names in (*SHARE_MODULES.values(), VFIO_MODULES, network.MODULES):
            self._load(names)
        if self._prepared is not None:
            self._prepared.settle()
        Crun(self._reaper, directory=self._run, program=self._crun, root=self._crun_root).leaves_sessions()
        gc.collect()
        os.sync()
        trace.forget()

    def trace(self) -> list[tuple[str, int, int]]:
        """The steps so far."""
        return trace.taken()

    def mount_share(
        self, *, kind: str, tag: str, address: str, seconds: float, modules: str = "", load: list[str] | None = None,
        protected: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Mount the directory that the host shares, kind "virtiofs" or "9p", once its device has come.

        ``protected`` are the host's settings fs.protected_*: this kernel decides what may be done with shared files.
        ``modules`` is a directory in it, of modules for the guest's kernel; those of the names ``load`` are loaded now.
        """
        self._share_kind = kind
        deadline = time.monotonic() + seconds
        for name, value in (protected or {}).items():
            boot.write(f"{self._root}/proc/sys/fs/protected_{name}", value)
        with trace.span("share's modules loaded"):
            self._load(SHARE_MODULES[kind])
        with trace.span("share's device ready"):
            hardware.bind_virtio(self._uevents, address, seconds=seconds, root=self._root)
        target = f"{self._run}/share"
        os.makedirs(target, exist_ok=True)
        # cache=mmap lets programs map files shared and writable; msize is the largest that QEMU's ring takes at once.
        # directio, which Linux 6.1 passes over: from 6.8 on what was appended to a file on the host since its size was
        # first asked for is read as zeros out of the page cache (zero_point, fs/netfs/buffered_read.c).
        # access=user: the host learns who makes a file, and gives it to that user.
        options = "trans=virtio,version=9p2000.L,cache=mmap,directio,access=user,msize=512000" if kind == "9p" else ""
        with trace.span("share mounted"):
            # The driver's link is there before its probe has found the share: until then there is none of that tag.
            def mounted() -> bool:
                try:
                    self._mount(tag, target, kind, 0, options)
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.ENOENT) or time.monotonic() >= deadline:
                        raise VmError(f"the guest cannot mount the {kind} share {tag}: {error.strerror}") from None
                    return False
                return True

            while not self._uevents.wait_until(mounted, deadline=deadline):
                continue
        if modules:
            with trace.span("modules offered to the kernel"):
                self._autoload = Autoload(f"{target}/{modules}", run=self._run, root=self._root)
                self._autoload.require(load or [])

    def look_at_mounts(self, *, paths: list[str]) -> None:
        """Mount what is mounted below what is shared, at paths from the share's root."""
        submounts.look_at(f"{self._run}/share", paths)

    def forget_mounts(self, *, paths: list[str]) -> None:
        """Unmount what was mounted at and below paths from the share's root."""
        for path in paths:
            submounts.release(f"{self._run}/share/{path}", mountinfo=f"{self._root}/proc/self/mountinfo")
        self._drop_inodes()

    def bind_vfio(self, *, address: str, seconds: float) -> dict[str, object]:
        """Wait for a function and give it to vfio-pci: its group, its node's numbers, its device file."""
        with trace.span(f"VFIO modules loaded for {address}"):
            self._load(VFIO_MODULES)
        return hardware.bind_vfio(self._uevents, address, seconds=seconds, root=self._root)

    def find_anew(self, *, address: str) -> None:
        """Have the bridge of a function found anew, with windows for all that is behind it."""
        with trace.span(f"bridge of {address} found anew"):
            hardware.find_anew(address, root=self._root)

    def bind_disk(self, *, address: str, seconds: float) -> list[int]:
        """Wait for a function of virtio-blk and its disk: major and minor."""
        from hawse.agent.devices import disks  # here, since most guests never need it

        self._load(DISK_MODULES)
        with trace.span(f"disk at {address} ready"):
            return disks.bind_disk(self._uevents, address, seconds=seconds, root=self._root)

    def misc_numbers(self, *, names: list[str]) -> list[list[int] | None]:
        """The numbers of misc devices, None for one that the guest's kernel has not."""
        from hawse.agent.devices import disks  # here, since most guests never need it

        return [disks.misc_numbers(name, root=self._root) for name in names]

    def bind_native(self, *, address: str, container: str, seconds: float) -> dict[str, Any]:
        """Wait for a function and give it to the guest's own driver, whose module the container's share has."""
        from hawse.agent.devices import guest_drivers

        drivers = f"{self._run}/share/{container}/drivers"
        return guest_drivers.bind_native(self._uevents, address, drivers=drivers, seconds=seconds, root=self._root)

    def configure_network(self, *, interfaces: list[dict[str, Any]], seconds: float) -> None:
        """Make interfaces what the host's are."""
        self._load(network.MODULES)
        network.configure(self._uevents, interfaces, seconds=seconds, root=self._root)

    def set_sysctls(self, *, values: dict[str, str]) -> None:
        """Make a container's settings of the network."""
        network.set_sysctls(values, root=self._root)

    def serve_names(self, *, servers: list[str]) -> None:
        """Pass queries for these name servers on to the host."""
        from hawse.agent.streams.resolver import Resolver  # here, since most guests never need it

        if self._resolver is None:
            self._resolver = Resolver(lambda query: self._port.send(control.encode_event("query", query)))
        self._resolver.serve(servers=servers)

    def answer_name(self, *, number: int, message: str) -> None:
        """The host's answer to a query."""
        if self._resolver is not None:
            self._resolver.answer(number=number, message=message)

    def connect(self, *, process: int, port: int) -> None:
        """Connect to a port of the loopback for the host, which chose the number of the connection."""
        try:
            stdio, ended = self._stdio[process], partial(self._end_connection, process)
            self._forwarding().connect(process, stdio, port=port, ended=ended)
        except BaseException:
            self._stdio.pop(process).abandon()
            raise

    def disconnect(self, *, process: int) -> None:
        """The host's side of a connection is gone."""
        if self._forwards is not None:
            self._forwards.disconnect(process)

    def accept(self, *, process: int, connection: int) -> None:
        """The host has connected to its socket for a connection that was announced."""
        dials = self._dialling()
        try:
            accepted = dials.take(connection)
        except BaseException:
            self._stdio.pop(process).abandon()
            raise

        def ended() -> None:
            dials.release()
            self._end_connection(process)

        self._forwarding().serve(process, self._stdio[process], accepted, ended=ended)

    def refuse(self, *, connection: int) -> None:
        """The host could not."""
        self._dialling().refuse(connection)

    def _forwarding(self) -> Forwards:
        from hawse.agent.streams.forwards import Forwards  # here, since most guests never need it

        with self._lazily:
            self._forwards = self._forwards or Forwards()
            return self._forwards

    def _dialling(self) -> Dials:
        from hawse.agent.streams.dials import Dials  # here, since most guests never need it

        def announce(container: str, name: str, number: int) -> None:
            event = {"container": container, "socket": name, "connection": number}
            self._port.send(control.encode_event("dial", event))

        with self._lazily:
            self._dials = self._dials or Dials(announce)
            return self._dials

    def _end_connection(self, process: int) -> None:
        self._stdio.pop(process, None)
        self._port.send(control.encode_event("exit", {"container": "", "process": process, "code": 0}))

    def reserve_hugepages(self, *, kib: int, count: int) -> None:
        """Have more huge pages, or fewer."""
        hugepages.reserve(kib=kib, count=count, directory=self._root + hugepages.SYSFS)

    def share_hugepages(self, *, name: str, kib: int, mode: int, uid: int, gid: int) -> None:
        """Have a file system of huge pages for the containers that are bound to it."""
        hugepages.share(name=name, kib=kib, mode=mode, uid=uid, gid=gid, run=self._run)

    def share_memory(self, *, name: str, size: int) -> None:
        """Have a file system of shared memory, of ``size`` bytes, for the containers that are bound to it."""
        target = f"{self._run}/shm/{name}"
        try:
            os.makedirs(target)
        except FileExistsError:
            return
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("shm", target, "tmpfs", flags, f"mode=1777,size={size}")

    def create(
        self, *, container: str, process: int, spec: dict[str, Any], nodes: list[list[Any]],
        devices: list[dict[str, Any]], joins: dict[str, str], notify: bool = False, binds: Sequence[list[Any]] = (),
        sockets: Sequence[list[Any]] = (),
    ) -> list[list[str]]:  # fmt: skip
        """Make a container whose first process waits to be started; what to log of its devices, as [level, text].

        ``devices`` is what the container can read of them, in a file; ``joins`` are containers, by the kind of their
        namespace that it has. ``notify``: the host takes notifications of it. ``binds`` are those of
        :func:`hawse.agent.mounts.subpaths.bind`, and ``sockets`` those of
        :meth:`hawse.agent.streams.dials.Dials.listen`.
        """
        with self._turns.setdefault(container, threading.Lock()), ExitStack() as failed:
            if sockets:
                failed.callback(self._dialling().close, container, self._sockets(container))
                given = [(name, mode, uid, gid) for name, mode, uid, gid in sockets]
                self._dialling().listen(container, given, self._sockets(container))
            with ExitStack() as bound:
                if binds:
                    from hawse.agent.mounts import subpaths  # here, since most guests never need it

                    directory = f"{self._run}/binds/{container}"
                    bound.callback(subpaths.unbind, directory)
                    found = [(name, path, inode) for name, path, inode in binds]
                    inodes = self._share_kind != "9p"
                    subpaths.bind(found, share=f"{self._run}/share", directory=directory, inodes=inodes)
                log = self._create(container, process, spec, nodes, devices, joins, notify)
            failed.pop_all()
            return log

    def _sockets(self, container: str) -> str:
        return f"{self._run}/sockets/{container}"

    def _create(
        self, container: str, process: int, spec: dict[str, Any], nodes: list[list[Any]],
        devices: list[dict[str, Any]], joins: dict[str, str], notify: bool,
    ) -> list[list[str]]:  # fmt: skip
        ids = None
        with ExitStack() as held:
            for kind, other in joins.items():
                owner = self._find(other)
                if kind == "user":
                    ids = owner.ids
                    if not ids.mapped:
                        raise StateError(f"container {other} has no user namespace that {container} could join")
                namespace = owner.namespace(kind)
                held.callback(os.close, namespace)
                # crun opens it again by this process, which does not end before.
                path = f"/proc/{os.getpid()}/fd/{namespace}"
                spec["linux"]["namespaces"].append({"type": kind, "path": path})
            return self._make(container, process, spec, nodes, devices, ids, notify)

    def _make(
        self, container: str, process: int, spec: dict[str, Any], nodes: list[list[Any]],
        devices: list[dict[str, Any]], ids: Ids | None, notify: bool,
    ) -> list[list[str]]:  # fmt: skip
        hugepages.drop_unknown_limits(spec, directory=self._root + hugepages.SYSFS)
        mount_options.adapt(spec)
        log = rewrite_devices(spec, [Node(*node) for node in nodes])
        if self._autoload is not None:
            self._autoload.begin(spec)
        directory = f"{self._run}/containers/{container}"
        os.makedirs(directory, mode=0o700)
        if devices:
            show(spec, devices, f"{directory}/devices.json")
        crun = Crun(self._reaper, directory=directory, program=self._crun, root=self._crun_root)
        prepared, stdio = None, self._stdio[process]
        # The one that waits has a name of its own, which hooks would be told, and stdio alone.
        if not (spec["process"].get("terminal") or spec.get("hooks") or stdio.directions != STDIO):
            prepared, self._prepared = self._prepared, None
        made = Container(
            container, init=process, directory=directory, reaper=self._reaper, crun=crun, prepared=prepared,
            root=self._root,
        )  # fmt: skip
        try:
            if notify:
                made.serve_notifications(f"{self._run}/notify/{container}", partial(self._tell_notice, container))
            first = made.create(spec, stdio, ids)
            if {"type": "network"} in spec.get("linux", {}).get("namespaces", ()):
                from hawse.agent.devices import guest_drivers  # here, since most guests never need it

                with first.held(f"container {container} has ended") as pid:
                    guest_drivers.hand_over(devices, pid, root=self._root)
            self._watch(container, first)
        except BaseException:
            del self._stdio[process]
            made.remove()
            raise
        self._containers[container] = made
        made.cgroup.watch_oom(lambda kills: self._tell_oom(container, kills))
        return log

    def delete(self, *, container: str) -> None:
        """End what runs of a container and leave nothing of it, nor of the files that it has seen.

        After its creation, where that still runs: a host that waits for it no longer knows of nothing that it leaves.
        """
        with self._turns.setdefault(container, threading.Lock()):
            self._turns.pop(container, None)
            try:
                self._find(container).remove()
                del self._containers[container]
            finally:
                if self._dials is not None:
                    self._dials.close(container, self._sockets(container))
                submounts.release(f"{self._run}/share/{container}", mountinfo=f"{self._root}/proc/self/mountinfo")
        self._drop_inodes()

    def _drop_inodes(self) -> None:
        with open(f"{self._root}/proc/sys/vm/drop_caches", "w") as file:
            file.write("2")  # the share's inodes: the host holds each open for as long as it is known here

    def add_nodes(self, *, container: str, nodes: list[list[Any]], devices: list[dict[str, Any]]) -> None:
        """Give a container nodes, [path, major, minor, mode, uid, gid] each, and the new table of its devices."""
        self._find(container).add_nodes([(node[0], (node[1], node[2]), *node[3:]) for node in nodes], devices)

    def remove_nodes(
        self, *, container: str, nodes: list[list[Any]], group: int | None, force: bool, seconds: float,
        devices: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        """Take nodes, [path, major, minor] each, and the group behind them from a container, once nobody uses it; None
        for a group that stays, whoever uses it."""
        made = self._find(container)

        def end_users() -> None:
            if group is not None:
                hardware.end_users(self._uevents, group, force=force, seconds=seconds, root=self._root)

        end_users()
        made.remove_nodes([(path, (major, minor)) for path, major, minor in nodes], devices)
        # A process that opened it between the two would block the guest's only queue for hotplug.
        end_users()

    def start(self, *, container: str) -> None:
        """Start a created container."""
        if self._autoload is not None:
            self._autoload.wait()
        self._find(container).start()

    def execute(self, *, container: str, process: int, spec: dict[str, Any]) -> None:
        """Run one more process, under the number that the host chose, in a running container."""
        made = self._find(container)
        try:
            launched = made.execute(process, spec, self._stdio[process])
        except BaseException:
            del self._stdio[process]
            raise
        self._watch(container, launched)

    def signal(self, *, container: str, process: int, signal: int, everyone: bool) -> None:
        """Signal one process, or everyone in the container."""
        made = self._find(container)
        if everyone:
            made.signal_all(signal)
        else:
            made.signal(self._process(made, process), signal)

    def freeze(self, *, container: str, frozen: bool) -> None:
        """Stop a container's processes, or let them go on."""
        self._find(container).freeze(frozen=frozen)

    def update(self, *, container: str, resources: dict[str, Any]) -> None:
        """Change a container's limits."""
        self._find(container).update(resources)

    def statistics(self, *, container: str) -> dict[str, str]:
        """What a container has used: the files of its cgroup."""
        return self._find(container).cgroup.statistics()

    def listing(self, *, container: str) -> list[list[object]]:
        """A container's processes."""
        return process_table.listing(self._find(container).cgroup.members(), proc=f"{self._root}/proc")

    def resize(self, *, container: str, process: int, rows: int, columns: int) -> None:
        """Set a terminal's size."""
        self._process(self._find(container), process).stdio.resize(rows, columns)

    def _open_stdio(self, process: int, descriptors: object) -> None:
        if process <= self._newest:
            raise LinkError(f"link: process number {process} was used before")
        self._newest = process
        self._stdio[process] = Stdio(self._port, process, directions(descriptors))

    def _watch(self, container: str, process: Process) -> None:
        def wait() -> None:
            code = process.wait()
            try:
                if container in self._containers:
                    # What it was killed for is to be known before that it has ended.
                    self._tell_oom(container, self._containers[container].cgroup.oom_kills())
                    self._containers[container].finish_notifications(process)
                process.stdio.finish()
                self._stdio.pop(process.number, None)
                os.sync()
                event = {"container": container, "process": process.number, "code": code}
                self._port.send(control.encode_event("exit", event))
            except LinkError:
                return  # the host is gone, and this machine with it

        threading.Thread(target=wait, daemon=True).start()

    def _tell_oom(self, container: str, kills: int) -> None:
        if kills:
            try:
                self._port.send(control.encode_event("oom", {"container": container, "kills": kills}))
            except LinkError:
                return  # the host is gone, and this machine with it

    def _tell_notice(self, container: str, text: str) -> None:
        with suppress(LinkError):  # the host is gone, and this machine with it
            self._port.send(control.encode_event("notify", {"container": container, "text": text}))

    def _find(self, container: str) -> Container:
        try:
            return self._containers[container]
        except KeyError:
            raise NotFoundError(f"container does not exist in the guest: {container}") from None

    @staticmethod
    def _process(container: Container, number: int) -> Process:
        try:
            return container.processes[number]
        except KeyError:
            raise NotFoundError(f"container {container.name} has no process {number}: no such process") from None

    def _answer(self, number: int, method: str, params: dict[str, Any]) -> None:
        try:
            if method not in self._methods:
                raise VmError(f"the agent has no method {method}")
            frame = control.encode_result(number, self._methods[method](**params))
        except HawseError as error:
            frame = control.encode_error(number, error)
        except Exception as error:  # a bug must reach the host as an answer, or its caller would wait for the deadline
            frame = control.encode_error(number, VmError(f"agent: {method}: {type(error).__name__}: {error}"))
        self._port.send(frame)

    def _stream_frame(self, stream: int, kind: int, payload: bytes) -> None:
        stdio = self._stdio.get(stream // STREAMS)
        if stdio is None:
            if 0 < stream // STREAMS <= self._newest:
                return  # on its way when the process ended
            raise LinkError(f"link: frame for the unknown stream {stream}")
        number = stream % STREAMS
        if kind == CREDIT:
            if number not in stdio.outputs:
                raise LinkError(f"link: credit for stream {stream}, which is not sent here")
            stdio.outputs[number].grant(decode_credit(payload))
        elif number not in stdio.inputs:
            raise LinkError(f"link: data for stream {stream}, which is sent from here")
        elif kind == DATA:
            stdio.inputs[number].push(payload)
        else:
            stdio.inputs[number].end()
