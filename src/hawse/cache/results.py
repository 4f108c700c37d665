"""A cache of results that are expensive to compute: a JSON file, in which the key covers every input of the result."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hawse.cache import trusted
from hawse.errors import HostError
from hawse.json_text import parse
from hawse.linux.files import replace_file

_MAX_ENTRIES = 8


def file_key(path: str) -> list[object]:
    """A key for a file's content that needs no reading of it: path, size in bytes, modification time in ns."""
    status = os.stat(path)
    return [os.path.realpath(path), status.st_size, status.st_mtime_ns]


def read(path: str, key: object) -> Any:
    """The value cached under ``key``, or None: the caller then computes it again.

    It is None if no value is cached, if the file cannot be read or parsed, or if another user may have written it.
    """
    try:
        trusted.check(os.path.dirname(path))
    except (OSError, HostError):
        return None
    return next((value for entry_key, value in _entries(path) if entry_key == _as_json(key)), None)


def write(path: str, key: object, value: object) -> None:
    """Store a value under its key; the newest values of seven other keys are kept.

    It is not an error if the file cannot be written. Nothing is written to a directory that other users can change:
    every start then computes the value again. Processes that write at the same time keep each other's values. A reader
    sees the old file or the new one. File names do not contain the pid, since two processes in different PID namespaces
    can have the same pid.
    """
    directory = os.path.dirname(path)
    try:
        trusted.make(directory)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others = [entry for entry in _entries(path) if entry[0] != _as_json(key)]
            entries = [[key, value], *others[: _MAX_ENTRIES - 1]]
            replace_file(path, json.dumps(entries).encode(), mode=0o644)
        finally:
            os.close(lock)
    except (OSError, HostError):
        return


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``, so that of several processes that build the same thing, the second
    finds the result of the first.

    Other users cannot open the file, so they cannot hold the lock.
    """
    with open(trusted.open_file(path, mode=0o600), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _entries(path: str) -> list[Any]:
    try:
        with open(path, "rb") as file:
            entries = parse(file.read(1024 * 1024))
    except (OSError, ValueError):
        return []
    well_formed = isinstance(entries, list) and all(isinstance(entry, list) and len(entry) == 2 for entry in entries)
    return entries if well_formed else []


def _as_json(key: object) -> object:
    """The key as it reads back from the file: tuples become lists."""
    return json.loads(json.dumps(key))
