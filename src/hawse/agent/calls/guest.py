"""What the agent's calls share: the guest's directories and kernel, crun, the link, and the streams of processes."""

from __future__ import annotations

import threading
from contextlib import suppress

from hawse.agent.container.crun import CRUN, ROOT, Crun
from hawse.agent.streams.stdio import Stdio
from hawse.agent.system.reaper import Reaper
from hawse.agent.system.uevents import Uevents
from hawse.errors import LinkError
from hawse.link import control
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
    """``run`` is the agent's directory, and ``root`` has /sys, /proc and /dev. ``load`` loads kernel modules by their
    names, and ``mount`` mounts shared directories. ``autoload`` offers modules to the kernel, None for no modules.
    """

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
        """Where the directory is mounted that the host shares."""
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
        """crun, with its files in a directory."""
        return Crun(self.reaper, directory=directory, program=self._program, root=self.crun_root)

    def send_event(self, name: str, fields: Document) -> None:
        """Send an event to the host. Raises :class:`LinkError` if the host has gone, and this VM with it."""
        self._port.send(control.encode_event(name, fields))

    def report(self, name: str, fields: Document) -> None:
        """As :meth:`send_event`, where nothing is left to do if the host has gone."""
        with suppress(LinkError):
            self.send_event(name, fields)

    def drop_inodes(self) -> None:
        """Forget the inodes of the share: the host keeps a file open for as long as the guest knows it."""
        with open(f"{self.root}/proc/sys/vm/drop_caches", "w") as file:
            file.write("2")


class Streams:
    """The streams of processes and connections, by the numbers that the host chose, in ascending order."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._open: dict[int, Stdio] = {}
        self._newest = 0
        self._lock = threading.Lock()

    def open(self, process: int, descriptors: object) -> None:
        """Begin the streams of a process. Raises :class:`LinkError` for a number that was used before."""
        with self._lock:
            if process <= self._newest:
                raise LinkError(f"link: process number {process} was used before")
            self._newest = process
            self._open[process] = Stdio(self._port, process, directions(descriptors))

    def of(self, process: int) -> Stdio:
        """The streams of a process that the host has asked for. Raises KeyError."""
        return self._open[process]

    def end(self, process: int) -> Stdio | None:
        """Forget the streams of a process that has ended; they are returned once."""
        return self._open.pop(process, None)

    def abandon(self, process: int) -> None:
        """End the streams of a process that was not created."""
        if stdio := self.end(process):
            stdio.abandon()

    def receive(self, stream: int, kind: int, payload: bytes) -> None:
        """Take a frame of a stream. Raises :class:`LinkError` if it breaks a rule; frames after the end are ignored."""
        stdio = self._open.get(stream // STREAMS)
        if stdio is None:
            if 0 < stream // STREAMS <= self._newest:
                return  # it was sent before the host knew that the process had ended
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
