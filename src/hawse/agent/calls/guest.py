"""The state that the agent's calls share: the guest's directories and kernel, crun, the link, and process streams."""

from __future__ import annotations

import threading
from contextlib import suppress

from hawse.agent.container.crun import CRUN, ROOT, Crun
from hawse.agent.streams.stdio import Stdio
from hawse.agent.system.reaper import Reaper
from hawse.agent.system.uevents import Uevents
from hawse.errors import LinkError
from hawse.link import messages
from hawse.link.agreed import RUN
from hawse.link.blocking import Port
from hawse.link.flow import decode_credit
from hawse.link.frames import CREDIT, DATA
from hawse.link.streams import STREAMS, directions
from hawse.linux import mounts

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable

    from hawse.agent.machine.autoload import Autoload
    from hawse.json_text import Document


class Guest:
    """The shared state. ``run`` is the agent's directory; ``root`` contains /sys, /proc and /dev.

    ``load`` loads kernel modules by their names, and ``mount`` mounts shared directories. ``autoload`` lets the kernel
    load modules from the share; it is None if the share has no modules.
    """

    # Large: the parts of the guest that all calls share; tests replace each of them.
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
        mount: Callable[..., None] = mounts.mount,
    ) -> None:
        self._port = port
        self.reaper = reaper
        self.uevents = uevents
        self.load = load
        self.run = run
        self.root = root
        self.mount = mount
        self.streams = Streams(port)
        self.share_kind = ""
        self.autoload: Autoload | None = None
        self._program = crun
        self.crun_root = crun_root

    @property
    def share(self) -> str:
        """The mount point of the directory that the host shares."""
        return f"{self.run}/share"

    @property
    def mountinfo(self) -> str:
        """The agent's mount table (proc_pid_mountinfo(5))."""
        return f"{self.root}/proc/self/mountinfo"

    @property
    def crun_program(self) -> str:
        """The path of crun."""
        return self._program

    def crun(self, directory: str) -> Crun:
        """A crun runner that keeps its files in ``directory``."""
        return Crun(self.reaper, directory=directory, program=self._program, root=self.crun_root)

    def send_event(self, name: str, fields: Document) -> None:
        """Send an event to the host. Raises :class:`LinkError` if the host has closed the link, which ends this VM."""
        self._port.send(messages.encode_event(name, fields))

    def report(self, name: str, fields: Document) -> None:
        """Like :meth:`send_event`, but ignore a closed link."""
        with suppress(LinkError):
            self.send_event(name, fields)

    def drop_inodes(self) -> None:
        """Drop the guest's cached inodes: while an inode is cached, the host keeps its file of the share open."""
        with open(f"{self.root}/proc/sys/vm/drop_caches", "w") as file:
            file.write("2")


class Streams:
    """The streams of processes and connections, by their numbers, which the host chooses.

    The host reuses the number of a connection that has ended: its exit is the last frame with this number.
    """

    def __init__(self, port: Port) -> None:
        self._port = port
        self._open: dict[int, Stdio] = {}
        self._newest = 0
        self._lock = threading.Lock()

    def open(self, process: int, descriptors: object) -> None:
        """Open the streams of a process. Raises :class:`LinkError` for a number that is in use."""
        with self._lock:
            if process in self._open:
                raise LinkError(f"link: process number {process} is in use")
            self._newest = max(self._newest, process)
            self._open[process] = Stdio(self._port, process, directions(descriptors))

    def of(self, process: int) -> Stdio:
        """The streams of a process. Raises KeyError if the host has not opened them."""
        return self._open[process]

    def end(self, process: int) -> Stdio | None:
        """Remove the streams of a process that has ended. Returns them on the first call, then None."""
        return self._open.pop(process, None)

    def abandon(self, process: int) -> None:
        """Close the streams of a process that was not created."""
        if stdio := self.end(process):
            stdio.abandon()

    def receive(self, stream: int, kind: int, payload: bytes) -> None:
        """Handle a frame of a stream; ignore frames after the end. Raises :class:`LinkError` for an invalid frame."""
        stdio = self._open.get(stream // STREAMS)
        if stdio is None:
            if 0 < stream // STREAMS <= self._newest:
                return  # the host sent it before it received the event that the process has ended
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
