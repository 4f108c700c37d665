"""Log messages: to the file of ``--log`` in the format of ``--log-format``, and to stderr for people.

Each message is one line, appended to the file. From a JSON log containerd shows the last object of level "error" (its
cmd/containerd-shim-runc-v2/process/utils.go, getLastRuntimeError()). Podman parses the whole file as a single object
(its libpod/oci_conmon_common.go). So an error replaces the warnings in the file, of this command and of earlier
successful ones: it becomes the only object, and contains them.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import sys
import time
from contextlib import suppress

from hawse.json_text import Document, parse

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Iterable

    from hawse.json_text import Document

#: A log with more bytes before the first error collects messages of many commands: it is only appended to.
_MOST_MERGED = 64 * 1024


class Log:
    """Writes to ``path`` (none: to stderr) as "text" or "json"."""

    def __init__(self, path: str | None = None, *, form: str = "text", debug: bool = False) -> None:
        self._path = path
        self._form = form
        self._debug = debug

    @property
    def file(self) -> tuple[str, str]:
        """Path and format, for another process that writes to the same file; ("", ...) for stderr."""
        return os.path.abspath(self._path) if self._path else "", self._form

    def error(self, message: str, evidence: str = "") -> None:
        """Log the error with which the command fails. With a log file, it is also printed to stderr, as in runc."""
        with suppress(OSError):  # print the error even if the file cannot be written
            self._write("error", message, evidence)
        if self._path is not None or self._form != "json":
            if evidence:
                message += "\n" + "\n".join(f"  | {line}" for line in evidence.splitlines())
            _say(f"hawse: {message}")

    def warning(self, message: str) -> None:
        """Log something that the user should know, although the command continues."""
        self._write("warning", message)
        if self._path is None and self._form != "json":
            _say(f"hawse: warning: {message}")

    def debug(self, message: str) -> None:
        """Log a message, only with --debug."""
        if self._debug:
            self._write("debug", message)

    def tell(self, notes: Iterable[tuple[str, str]]) -> None:
        """Log pairs of level and text. Errors of the log file are ignored, since the step is already done."""
        for level, text in notes:
            with suppress(OSError):
                if level == "warning":
                    self.warning(text)
                else:
                    self.debug(text)

    def _write(self, level: str, message: str, evidence: str = "") -> None:
        if self._path is None and self._form != "json":
            return
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        fields = {"level": level, "msg": message, "time": moment} | ({"evidence": evidence} if evidence else {})
        if self._form == "json":
            line = json.dumps(fields)
        else:
            line = f"time={json.dumps(moment)} level={level} msg={json.dumps(message)}"
        if self._path is None:
            _say(line)
            return
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if self._form == "json" and stat.S_ISREG(os.fstat(fd).st_mode):
                fcntl.flock(fd, fcntl.LOCK_EX)  # the commands of one container share a file
                if level == "error" and _merge(self._path, fields):
                    return
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)


def _say(line: str) -> None:
    """Write to stderr. If it is closed, this does not change the command's exit status."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        # The reader has closed stderr. Python would write again at exit, and would then set the exit status to 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _merge(path: str, error: Document) -> bool:
    """Replace the warnings and debug messages in a log by the error, with these messages in its field "before".

    Returns False, and changes nothing, if the file is empty, contains other objects, or is too large.
    """
    with open(path, "r+b", buffering=0) as file:
        data = file.read(_MOST_MERGED + 1)
        try:
            before = [parse(line) for line in data.splitlines()]
        except ValueError:
            return False
        below = all(isinstance(entry, dict) and entry.get("level") in ("warning", "debug") for entry in before)
        if not before or not below or len(data) > _MOST_MERGED:
            return False
        file.seek(0)
        # In a single write that covers the old content, since another process may be reading the file.
        file.write(json.dumps(error | {"before": before}).encode().ljust(len(data) - 1) + b"\n")
        return True
