"""The state of a sandbox on disk. Standard library only: hot verbs use this.

The directory ``<root>/<id>/`` (mode 0700) contains:

- ``state.json``, which only the monitor writes; it is replaced by a rename;
- ``lock``, which the monitor holds as long as it lives, and which contains its version;
- ``monitor.sock``, ``console.log``, ``monitor.log``, ``qmp.log`` and ``share/``.

The directory of a container that joined a sandbox contains its state, and links to the sandbox's ``lock`` and
``monitor.sock``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from contextlib import suppress

from hawse.errors import NotFoundError, StateError, UsageError, from_wire
from hawse.json_text import parse
from hawse.linux.files import replace_file
from hawse.state import interface

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from hawse.json_text import Document

    #: The content of state.json: the state that runc prints, with fields of hawse.
    State = Document

DEFAULT_ROOT = "/run/hawse"
#: The annotation of a state with the names in the guest of functions that a driver of the guest kernel uses. JSON, by
#: the address of the function on the host, or in the guest for an emulated function.
GUEST_DEVICES = "hawse.guest-devices"
CREATING, CREATED, RUNNING, PAUSED, STOPPED = "creating", "created", "running", "paused", "stopped"


def check_id(name: str) -> str:
    """Return a valid id; raises :class:`UsageError` with runc's message (libcontainer/factory_linux.go, validateID)."""
    if not re.fullmatch(r"[A-Za-z0-9_+.-]{1,255}", name) or name in (".", ".."):
        raise UsageError(
            f"invalid container ID format: {name[:80]!r}",
            hint="use 1 to 255 letters, digits and characters of _+-. but not . or ..",
        )
    return name


class Store:
    """The state directory of one sandbox or container."""

    def __init__(self, root: str, name: str) -> None:
        self.name = check_id(name)
        self.root = root
        self.path = os.path.join(root, name)

    def make(self, *, sandbox: Store | None = None) -> None:
        """Create the directory. Raises :class:`StateError` if the id is already used.

        The directory of a container that joins ``sandbox`` gets links to the sandbox's socket and lock: commands for it
        reach the same monitor, and its state ends with the monitor.
        """
        try:
            os.makedirs(self.root, mode=0o711, exist_ok=True)
            os.mkdir(self.path, 0o700)
            if sandbox is not None:
                for name in ("monitor.sock", "lock"):
                    os.symlink(f"../{sandbox.name}/{name}", f"{self.path}/{name}")
        except FileExistsError:
            raise StateError(
                f"container with given ID already exists: {self.name}",
                hint=f"use another ID, or remove the container with `hawse delete --force {self.name}`",
            ) from None
        except OSError as error:
            hint = "run as root" if os.geteuid() else "use another --root"
            raise StateError(f"cannot create the state directory {self.path}: {error.strerror}", hint=hint) from None

    def read(self) -> State:
        """Read the current state. It is stopped if the monitor or the first process has ended."""
        try:
            with open(f"{self.path}/state.json", "rb") as file:
                state: State = parse(file.read())
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.isdir(self.path):
                raise NotFoundError(f"container does not exist: {self.name}") from None
            # create was killed before its monitor wrote anything
            state = {"id": self.name, "pid": 0, "status": CREATING, "bundle": "", "rootfs": "", "created": ""}
            state |= {"ociVersion": "1.0.2", "owner": ""}
        except ValueError:
            state = {}
        if not isinstance(state, dict) or "status" not in state:
            raise NotFoundError(
                f"container does not exist: {self.name}: {self.path} belongs to another runtime",
                hint="use a separate --root for hawse, or the runtime that created the container",
            )
        launched = state["status"] in (CREATED, RUNNING, PAUSED)
        if not self.monitor_lives() or (launched and not alive(state["pid"], state["pidStart"])):
            state["status"] = STOPPED
        if state["status"] == STOPPED:
            state["pid"] = 0
        return state

    def write(self, state: State) -> None:
        """Replace the state atomically: a reader sees the old state or the new one."""
        # The reader refuses NaN and infinities.
        replace_file(f"{self.path}/state.json", json.dumps(state, indent=2, allow_nan=False).encode())

    def lock(self) -> int:
        """Take the lock. It is held until the returned descriptor is closed, or the process ends."""
        fd = os.open(f"{self.path}/lock", os.O_RDWR | os.O_CREAT, 0o600)
        os.pwrite(fd, interface.to_text(), 0)  # before the lock, so that the version of a live monitor is always known
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    def monitor_interface(self) -> tuple[int, str]:
        """The interface number of the monitor, and its version of hawse (:mod:`hawse.state.interface`)."""
        try:
            with open(f"{self.path}/lock", "rb") as file:
                return interface.from_text(file.read(64))
        except FileNotFoundError:
            return 0, ""

    @property
    def has_joined(self) -> bool:
        """Whether this container joined the sandbox of another one."""
        return os.path.islink(f"{self.path}/lock")

    def monitor_lives(self) -> bool:
        """Whether a monitor holds the lock."""
        try:
            fd = os.open(f"{self.path}/lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def open_monitor(self, pid: int) -> int:
        """Open the monitor's process (pidfd_open(2)); ``pid`` is from the state. Returns -1 if the monitor has ended.

        The monitor holds the lock until its end. The lock is tested after the descriptor was opened, so the descriptor
        cannot be that of a later process with the same pid.
        """
        try:
            fd = os.pidfd_open(pid)
        except (OSError, OverflowError):
            return -1
        if self.monitor_lives():
            return fd
        os.close(fd)
        return -1

    def remove(self) -> None:
        """Delete the directory and the files in it. Nothing is removed recursively.

        ``share`` and ``jail`` must be empty: their mounts were in the monitor's mount namespace, which has ended.
        Raises :class:`StateError` if one of them is not empty; the container's state is kept in this case.
        """
        try:
            for point in ("share", "jail"):
                with suppress(FileNotFoundError):
                    os.rmdir(f"{self.path}/{point}")
            self._empty()
            try:
                os.rmdir(self.path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # Once more: a container that joins has made overlays.lock since. No other file comes by then.
                self._empty()
                os.rmdir(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(
                f"container {self.name}: {error.filename} cannot be removed: {error.strerror}",
                hint="check its content, and remove it by hand",
            ) from None

    def _empty(self) -> None:
        for entry in os.listdir(self.path):
            os.unlink(f"{self.path}/{entry}")


_PUBLIC = ("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner", "vfio")


def public(state: State) -> State:
    """The state with runc's keys in runc's order (list.go, containerState), and the error with which the VM ended."""
    shown = {key: state[key] for key in _PUBLIC if key in state and (key != "annotations" or state[key])}
    if failure := state.get("failure"):
        shown["failure"] = from_wire(failure).sentence()
    return shown


def start_time(pid: int) -> int:
    """The start time of a process in clock ticks since boot (proc(5), stat field 22); 0 if it does not exist.

    The pid and the start time together identify a process: a pid is reused.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def alive(pid: int, started: int) -> bool:
    """Whether the process that started at this time still runs."""
    return started > 0 and start_time(pid) == started
