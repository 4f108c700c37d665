"""A prepared crun: a ``crun create`` that has been started and waits for its configuration.

Loading and linking crun takes longer than creating a container, at least in a guest without KVM. crun does not need to
know the container until it opens its configuration. Here the configuration is a FIFO, and a template contains the
process that is blocked in opening it.
"""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import suppress

from hawse.agent.container.crun import Crun
from hawse.agent.streams.stdio import Pipes
from hawse.agent.system.ids import SAME, Ids
from hawse.agent.system.reaper import Reaper
from hawse.errors import VmError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

_SECONDS = 60.0
#: The kernel function in which a process sleeps that opens a FIFO without a writer (fs/pipe.c).
_WAITING = "wait_for_partner"


class Prepared:
    """One prepared crun. ``name`` is its name for the container; ``pipes`` are the stdio of the first process."""

    name = "prepared"

    def __init__(self, *, directory: str, reaper: Reaper, program: str, root: str, seconds: float = _SECONDS) -> None:
        """Start crun. ``seconds`` is the time limit for it to open its configuration."""
        os.makedirs(directory, mode=0o700)
        self._directory = directory
        self._seconds = seconds
        self._fifo = f"{directory}/config.fifo"
        self._pid_file = f"{directory}/pid"
        os.mkfifo(self._fifo, 0o600)
        self._crun = Crun(reaper, directory=directory, program=program, root=root)
        self.pipes = Pipes()
        self._pid = self._crun.begin(
            "create", f"--bundle={directory}", f"--config={self._fifo}", f"--pid-file={self._pid_file}", self.name,
            descriptors=self.pipes.theirs,
        )  # fmt: skip
        self.pipes.close_theirs()

    def settle(self) -> None:
        """Wait until crun is blocked in opening the FIFO, as it should be in a template."""
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline:  # a crun that is not blocked by then is only slower later
            try:
                # If crun has ended and its pid belongs to another process, this waits until the deadline.
                with open(f"/proc/{self._pid}/wchan") as file:
                    if file.read() == _WAITING:
                        return
            except OSError:
                return
            time.sleep(0.01)

    def create(self, spec: Document, ids: Ids = SAME) -> int:
        """Create the container. Returns the pid of the first process. Raises as :meth:`Crun.run` does."""
        self.pipes.set_owner(**owner(spec["process"], ids))
        text = json.dumps(spec).encode()
        # crun reads its configuration twice: first from the FIFO, and then from a regular file of the same name, to
        # store a copy (crun src/libcrun/container.c, libcrun_copy_config_file()).
        copy = f"{self._directory}/config.json"
        with open(copy, "wb") as file:
            file.write(text)
        fifo = self._open()
        os.rename(copy, self._fifo)
        os.set_blocking(fifo, True)
        # If crun ends before it has read everything, its log contains the reason.
        with suppress(BrokenPipeError), open(fifo, "wb", buffering=0) as stream:
            view = memoryview(text)
            while view:
                view = view[stream.write(view) :]
        self._crun.finish(self._pid, verb="create", command=spec["process"]["args"][0])
        with open(self._pid_file) as file:
            return int(file.read())

    def _open(self) -> int:
        """Open the FIFO's writing end when crun has opened the reading end. Raises :class:`VmError` at the deadline."""
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                return os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ENXIO or time.monotonic() > deadline:
                    raise VmError(f"crun does not open its configuration: {error.strerror}") from None
            time.sleep(0.002)


def owner(process: Document, ids: Ids = SAME) -> dict[str, int]:
    """The guest's uid and gid of a process of a container, from its ``process`` of config.json."""
    user = process.get("user", {})
    return {"uid": ids.uid(user.get("uid", 0)), "gid": ids.gid(user.get("gid", 0))}
