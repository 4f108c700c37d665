"""Records of bound functions: one file for each function that hawse has bound to VFIO, with its previous driver.

The files are ``<directory>/<address>.json``. The directory has mode 0700 and is ``/run/hawse.bindings`` by default. A
record is on disk before the first write to sysfs, and is deleted after the function has been restored. So a function
can be restored even if the process that bound it died.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields

from hawse.errors import DeviceError, HostError
from hawse.json_text import parse
from hawse.linux.files import replace_file, sync_file
from hawse.vfio.address import ADDRESS

_OWNER = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_+.-]{1,255}|")
_DRIVER = re.compile(r"(?![-.])[ -.0-~]{1,128}")
_LOCK_POLL = 0.05  # seconds
_MAX_SIZE = 64 * 1024
_AS_ROOT = "only root can read the records: run hawse as root"
_MAX_OVERRIDE = 4095  # less than a page (Linux drivers/base/driver.c, driver_set_override())


@dataclass(frozen=True)
class Record:
    """The binding of a function to ``vfio``, a VFIO driver.

    ``driver`` and ``override`` are its previous driver and driver_override, "" for none. ``owner`` is the id of the
    sandbox that it was bound for, "" if a user has bound it.
    """

    address: str
    driver: str
    override: str
    vfio: str
    owner: str = ""


def directory_of(root: str) -> str:
    """The directory of the records that belongs to ``root``, the directory of the sandboxes."""
    return root.rstrip("/") + ".bindings"


def is_driver(name: str) -> bool:
    """Whether a text can be a driver's name: a path component that is not an option and has no control characters."""
    return _DRIVER.fullmatch(name) is not None


def write(directory: str, record: Record) -> None:
    """Write a record to disk durably (fsync), replacing an older one. Raises :class:`HostError`."""
    path = _path(directory, record.address)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        replace_file(path, json.dumps(asdict(record)).encode(), mode=0o600, durable=True)
    except OSError as error:
        raise HostError(
            f"{record.address}: its record {path} cannot be written: {error.strerror}",
            hint="hawse binds no function without a record: make the directory writable, or use another --root",
        ) from None


def remove(directory: str, address: str) -> None:
    """Delete a record, if it exists. Raises :class:`HostError`."""
    path = _path(directory, address)
    try:
        os.unlink(path)
        sync_file(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"{address}: its record {path} cannot be deleted: {error.strerror}") from None


def read(directory: str, address: str) -> Record | None:
    """The record of a function, None without one. Raises :class:`DeviceError` naming a file that is damaged."""
    path = _path(directory, address)
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeviceError(f"{address}: its record {path} cannot be read: {error.strerror}", hint=_AS_ROOT) from None
    try:
        return _parse(data, address)
    except ValueError as error:
        raise DeviceError(
            f"{address}: its record {path} is damaged: {error}",
            hint=f"delete the file, then name the driver to restore: `hawse unbind --driver NAME {address}`",
        ) from None


def read_all(directory: str) -> tuple[list[Record], list[DeviceError]]:
    """All records in the order of their addresses, and an error for each file that is damaged."""
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        problem = f"the records in {directory} cannot be read: {error.strerror}"
        return [], [DeviceError(problem, hint=_AS_ROOT)]
    records: list[Record] = []
    damaged: list[DeviceError] = []
    for address in (name.removesuffix(".json") for name in names if name.endswith(".json")):
        if not ADDRESS.fullmatch(address):
            continue  # not a record
        try:
            record = read(directory, address)
        except DeviceError as error:
            damaged.append(error)
        else:
            records += [record] if record else []
    return records, damaged


def of_owner(directory: str, owner: str) -> list[Record]:
    """The records of one sandbox, or of the functions that users have bound if it is ""; damaged files are skipped."""
    return [record for record in read_all(directory)[0] if record.owner == owner]


@contextmanager
def locked(directory: str, addresses: Sequence[str], *, seconds: float) -> Iterator[None]:
    """Hold the locks of these functions, so that no other process of hawse changes their drivers.

    Waits ``seconds`` at most for all of the locks. The lock files are in the directory of the records, which only its
    owner can open. Raises :class:`HawseError`.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        for address in sorted(set(addresses)):  # always in the same order, to avoid deadlocks
            while not _lock(f"{directory}/{address}.lock", stack):
                if time.monotonic() >= deadline:
                    raise DeviceError(
                        f"{address}: another hawse process has been changing its driver for {seconds:g} s",
                        hint="wait for that process, or end it",
                    )
                time.sleep(_LOCK_POLL)
        yield


def _lock(path: str, stack: ExitStack) -> bool:
    """Try to acquire a lock without waiting. When the stack closes, the lock is released and its file deleted."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"{path} cannot be created: {error.strerror}", hint="binding devices requires root") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous holder may have deleted the file that was opened here. Then the lock is a newer file by now.
        acquired = os.fstat(fd).st_ino == os.stat(path).st_ino
    except (BlockingIOError, FileNotFoundError):
        acquired = False
    if not acquired:
        os.close(fd)
        return False
    stack.callback(os.close, fd)
    stack.callback(os.unlink, path)
    return True


def _parse(data: bytes, address: str) -> Record:
    """The record in a file's content. Raises ValueError with what is wrong."""
    if len(data) > _MAX_SIZE:
        raise ValueError(f"it has more than {_MAX_SIZE} bytes")
    try:
        content = parse(data)
    except ValueError:
        raise ValueError("it is not JSON") from None
    names = [field.name for field in fields(Record)]
    if not isinstance(content, dict) or sorted(content) != sorted(names):
        raise ValueError(f"it is not an object of {', '.join(names)}")
    wrong = [name for name in names if not isinstance(content[name], str)]
    if wrong:
        raise ValueError(f"{wrong[0]} is not a string")
    record = Record(**content)
    override = record.override
    sound = {
        "address": record.address == address,
        "driver": record.driver == "" or is_driver(record.driver),
        "override": len(override) <= _MAX_OVERRIDE and not set("\n\0") & set(override),
        "vfio": is_driver(record.vfio),
        "owner": _OWNER.fullmatch(record.owner) is not None,
    }
    for name, is_sound in sound.items():
        if not is_sound:
            raise ValueError(f"{name} is {content[name][:80]!r}")
    return record


def _path(directory: str, address: str) -> str:
    return f"{directory}/{address}.json"
