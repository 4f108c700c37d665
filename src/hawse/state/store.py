"""The state of a sandbox on disk. Standard library only: the hot verbs answer from here.

``<root>/<id>/`` (mode 0700) holds ``state.json``, replaced by rename and written by the monitor alone, ``lock``, held
by the monitor for as long as it lives and with its version in it, ``monitor.sock``, ``console.log``, ``monitor.log``,
``qmp.log`` and ``share/``. That of a container that has joined a sandbox has its state, and links to the sandbox's
``lock`` and ``monitor.sock``.
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
from hawse.state import interface

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from typing import Any

    State = dict[str, Any]

DEFAULT_ROOT = "/run/hawse"
#: The annotation of a state that has the names of each function in the guest, where a driver of the guest has it.
#: JSON, by the function's address on the host, or in the guest for an emulated one.
GUEST_DEVICES = "hawse.guest-devices"
CREATING, CREATED, RUNNING, PAUSED, STOPPED = "creating", "created", "running", "paused", "stopped"


def check_id(name: str) -> str:
    """The id itself; raises :class:`UsageError` in runc's words (libcontainer/factory_linux.go, validateID)."""
    if not re.fullmatch(r"[A-Za-z0-9_+.-]{1,255}", name) or name in (".", ".."):
        raise UsageError(
            f"invalid container ID format: {name[:80]!r}",
            hint="an ID has 1 to 255 letters, digits and characters of _+-. and is neither . nor ..",
        )
    return name


class Store:
    """The directory of one sandbox."""

    def __init__(self, root: str, name: str) -> None:
        self.name = check_id(name)
        self.root = root
        self.path = os.path.join(root, name)

    def make(self, *, sandbox: Store | None = None) -> None:
        """Claim the id; raises :class:`StateError` when it is taken.

        A container that joins a sandbox has links to that one's socket and lock: whoever asks for it asks the same
        monitor, and it is gone with it.
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
                hint=f"choose another, or end it with `hawse delete --force {self.name}`",
            ) from None
        except OSError as error:
            hint = "run as root" if os.geteuid() else "give another --root"
            raise StateError(f"cannot make the state directory {self.path}: {error.strerror}", hint=hint) from None

    def read(self) -> State:
        """The state as it is now: a monitor or first process that is gone makes it stopped."""
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
                f"container does not exist: {self.name}: {self.path} is another runtime's",
                hint="give hawse a --root of its own, or use the runtime that made the container",
            )
        launched = state["status"] in (CREATED, RUNNING, PAUSED)
        if not self.monitor_lives() or (launched and not alive(state["pid"], state["pidStart"])):
            state["status"] = STOPPED
        if state["status"] == STOPPED:
            state["pid"] = 0
        return state

    def write(self, state: State) -> None:
        """Replace the state; a reader sees the old one or the new one."""
        temporary = f"{self.path}/.state.json"
        with open(temporary, "w") as file:
            json.dump(state, file, indent=2, allow_nan=False)  # the reader refuses them
        os.rename(temporary, f"{self.path}/state.json")

    def lock(self) -> int:
        """Hold the lock until the returned descriptor is closed, by its owner or by the owner's death."""
        fd = os.open(f"{self.path}/lock", os.O_RDWR | os.O_CREAT, 0o600)
        os.pwrite(fd, interface.to_text(), 0)  # first: the version of a monitor that lives is always known
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    def monitor_interface(self) -> tuple[int, str]:
        """The number of the monitor's interface, and its version of hawse (:mod:`hawse.state.interface`)."""
        try:
            with open(f"{self.path}/lock", "rb") as file:
                return interface.from_text(file.read(64))
        except FileNotFoundError:
            return 0, ""

    @property
    def has_joined(self) -> bool:
        """Whether it is in the sandbox of another."""
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
        """A descriptor of the monitor's process (pidfd_open(2)), whose pid its state has; -1 where it has ended.

        The monitor has the lock until its end, and the lock is tested after the descriptor was opened: the descriptor
        is not one of a process that has got the monitor's pid since.
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

        ``share`` and ``jail`` are empty directories: what was mounted there was in the monitor's mount namespace,
        which has ended. Raises :class:`StateError` where one is not empty; the container's state is still there then.
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
                hint="look at what is in there, and remove it by hand",
            ) from None

    def _empty(self) -> None:
        for entry in os.listdir(self.path):
            os.unlink(f"{self.path}/{entry}")


_PUBLIC = ("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner", "vfio")


def public(state: State) -> State:
    """The state in runc's keys and order (list.go, containerState), and the error for which the VM has ended."""
    shown = {key: state[key] for key in _PUBLIC if key in state and (key != "annotations" or state[key])}
    if failure := state.get("failure"):
        shown["failure"] = from_wire(failure).sentence()
    return shown


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot (proc(5), stat field 22); 0 when there is none.

    A pid alone is no name: it may be another process's tomorrow.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def alive(pid: int, started: int) -> bool:
    """Whether that very process still runs."""
    return started > 0 and start_time(pid) == started
