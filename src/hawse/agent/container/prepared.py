"""A ``crun create`` that has been started and waits for its configuration.

It takes crun longer to be loaded and linked than to make a container, in a guest without KVM at least. Which container
does not matter until it opens its configuration: that is a FIFO here, and the process that waits in its open is part
of a template.
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
#: Where the kernel says that a process sleeps which opened a FIFO that nobody writes to (fs/pipe.c).
_WAITING = "wait_for_partner"


class Prepared:
    """One crun; ``name`` is what it calls the container, ``pipes`` are the first process's stdio."""

    name = "prepared"

    def __init__(self, *, directory: str, reaper: Reaper, program: str, root: str, seconds: float = _SECONDS) -> None:
        """Start it. ``seconds`` is how long it may take to open its configuration."""
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
        self.pipes.handed_on()

    def settle(self) -> None:
        """Wait until it waits, as it should in a template; a crun that does not is only slower later."""
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline:
            try:
                # Of another process, where crun has ended and its pid was given away, the wait takes its full time.
                with open(f"/proc/{self._pid}/wchan") as file:
                    if file.read() == _WAITING:
                        return
            except OSError:
                return
            time.sleep(0.01)

    def create(self, spec: Document, ids: Ids = SAME) -> int:
        """Let it make the container; the pid of the first process. Raises as :meth:`Crun.run` does."""
        self.pipes.give_to(**owner(spec["process"], ids))
        text = json.dumps(spec).encode()
        # It reads its configuration twice, the second time to keep a copy (crun src/libcrun/container.c,
        # libcrun_copy_config_file()): then from a file of the same name.
        copy = f"{self._directory}/config.json"
        with open(copy, "wb") as file:
            file.write(text)
        fifo = self._open()
        os.rename(copy, self._fifo)
        os.set_blocking(fifo, True)
        # A crun that ends before it has read all says why in its log.
        with suppress(BrokenPipeError), open(fifo, "wb", buffering=0) as stream:
            view = memoryview(text)
            while view:
                view = view[stream.write(view) :]
        self._crun.finish(self._pid, verb="create", command=spec["process"]["args"][0])
        with open(self._pid_file) as file:
            return int(file.read())

    def _open(self) -> int:
        """The FIFO's writing end, as soon as crun has opened the other. Raises :class:`VmError` when it does not."""
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                return os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ENXIO or time.monotonic() > deadline:
                    raise VmError(f"crun does not ask for its configuration: {error.strerror}") from None
            time.sleep(0.002)


def owner(process: Document, ids: Ids = SAME) -> dict[str, int]:
    """uid and gid in the guest that a process of a container will have."""
    user = process.get("user", {})
    return {"uid": ids.uid(user.get("uid", 0)), "gid": ids.gid(user.get("gid", 0))}
