"""Answers that were expensive to get, kept in a JSON file under a key of all that they depend on."""

from __future__ import annotations

import json
import os
from typing import Any


def file_key(path: str) -> list[object]:
    """What identifies a file's content without reading it: path, size in bytes, time of change in ns."""
    status = os.stat(path)
    return [os.path.realpath(path), status.st_size, status.st_mtime_ns]


def read(path: str, key: object) -> Any:
    """The value kept under ``key``; None when there is none, or the file is unreadable or garbled: then ask again."""
    try:
        with open(path, "rb") as file:
            kept = json.loads(file.read(1024 * 1024))
    except (OSError, ValueError):
        return None
    # The key went through JSON once, so compare it in that form.
    if not isinstance(kept, dict) or kept.get("key") != json.loads(json.dumps(key)):
        return None
    return kept.get("value")


def write(path: str, key: object, value: object) -> None:
    """Keep a value, whole or not at all; a cache that cannot be written is only slow."""
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(temporary, "w") as file:
            json.dump({"key": key, "value": value}, file)
        os.rename(temporary, path)
    except OSError:
        return
