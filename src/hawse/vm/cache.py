"""Answers that were expensive to get, kept in a JSON file under a key of all that they depend on."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hawse.errors import HostError
from hawse.vm import trusted

_KEPT = 8


def file_key(path: str) -> list[object]:
    """What identifies a file's content without reading it: path, size in bytes, time of change in ns."""
    status = os.stat(path)
    return [os.path.realpath(path), status.st_size, status.st_mtime_ns]


def read(path: str, key: object) -> Any:
    """The value kept under ``key``; None when there is none, or the file is unreadable or garbled, or another user may
    have written it: then ask again."""
    try:
        trusted.check(os.path.dirname(path))
    except (OSError, HostError):
        return None
    return next((value for kept, value in _entries(path) if kept == _as_json(key)), None)


def write(path: str, key: object, value: object) -> None:
    """Write a value under its key, and keep the newest values of seven other keys.

    A file that cannot be written is no error, and nothing is written where other users may write: the value is then
    found out again by every start. Processes that write at
    the same time keep each other's values. A reader sees the old file or the new one. No name contains the pid, since
    two processes in different PID namespaces may have the same one.
    """
    directory = os.path.dirname(path)
    try:
        trusted.make(directory)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others = [entry for entry in _entries(path) if entry[0] != _as_json(key)]
            with open(trusted.open_file(f"{path}.new"), "w") as file:
                json.dump([[key, value], *others[: _KEPT - 1]], file)
            os.rename(f"{path}.new", path)
        finally:
            os.close(lock)
    except (OSError, HostError):
        return


@contextmanager
def alone(path: str) -> Iterator[None]:
    """Hold the lock of a file: of several that make the same thing, the second finds what the first has made.

    Other users cannot open the file, so they cannot hold the lock.
    """
    with open(trusted.open_file(path, mode=0o600), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _entries(path: str) -> list[Any]:
    try:
        with open(path, "rb") as file:
            entries = json.loads(file.read(1024 * 1024))
    except (OSError, ValueError):
        return []
    well_formed = isinstance(entries, list) and all(isinstance(entry, list) and len(entry) == 2 for entry in entries)
    return entries if well_formed else []


def _as_json(key: object) -> object:
    """A key as it comes back from the file."""
    return json.loads(json.dumps(key))
