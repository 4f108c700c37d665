"""Read and write configuration files of engines and of hawse."""

from __future__ import annotations

import os

from hawse.errors import ConfigError, HostError
from hawse.linux.files import replace_file

_MAX = 4 * 1024 * 1024


def read(path: str) -> str:
    """The file's text, "" if it does not exist. Raises :class:`ConfigError`."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(_MAX)
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot read {path}: {reason}", hint="run it as root, on a text file") from None


def write(path: str, text: str) -> None:
    """Write the file atomically, or delete it if the text is "". Raises :class:`HostError`."""
    try:
        if not text:
            os.unlink(path)
            return
        target = os.path.realpath(path)  # a symbolic link is kept
        os.makedirs(os.path.dirname(target), exist_ok=True)
        mode = os.stat(target).st_mode & 0o777 if os.path.exists(target) else 0o644
        replace_file(target, text.encode(), mode=mode, durable=True)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", hint="run it as root") from None
