"""Where messages go: the file of ``--log`` in the format of ``--log-format``, and stderr for people.

One line each, appended. Of a file in JSON containerd shows the last object of level "error" (its
cmd/containerd-shim-runc-v2/process/utils.go, getLastRuntimeError()), and Podman reads the whole as one object or not
at all (its libpod/oci_conmon_common.go): so an error takes in what was only warned of before it, by this command or by
those that went well before it, and is then the only object.
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

#: A file with more before the first error is somebody's journal, and stays as it is.
_MOST_TAKEN_IN = 64 * 1024


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
        """The reason for which the command fails. With a log file, people get it on stderr as well, as from runc."""
        with suppress(OSError):  # of the file: this is told all the same
            self._write("error", message, evidence)
        if self._path is not None or self._form != "json":
            if evidence:
                message += "\n" + "\n".join(f"  | {line}" for line in evidence.splitlines())
            _say(f"hawse: {message}")

    def warning(self, message: str) -> None:
        """Something that the user should know, though the command goes on."""
        self._write("warning", message)
        if self._path is None and self._form != "json":
            _say(f"hawse: warning: {message}")

    def debug(self, message: str) -> None:
        """Only with --debug."""
        if self._debug:
            self._write("debug", message)

    def tell(self, notes: Iterable[tuple[str, str]]) -> None:
        """Log these, (level, text) each: what has been done is done, whether or not the log can be written."""
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
                fcntl.flock(fd, fcntl.LOCK_EX)  # commands of one container share a file
                if level == "error" and _take_in(self._path, fields):
                    return
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)


def _say(line: str) -> None:
    """Write to stderr, whoever reads it: what has been done is done, and the exit status the command's own."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        # Its reader has gone. Python would write it once more at exit, and make the exit status 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _take_in(path: str, error: Document) -> bool:
    """Have an error in place of a log's objects below one, which it then has as "before".

    False, and nothing changed, where there are none, or anything else, or too many.
    """
    with open(path, "r+b", buffering=0) as file:
        data = file.read(_MOST_TAKEN_IN + 1)
        try:
            before = [parse(line) for line in data.splitlines()]
        except ValueError:
            return False
        below = all(isinstance(entry, dict) and entry.get("level") in ("warning", "debug") for entry in before)
        if not before or not below or len(data) > _MOST_TAKEN_IN:
            return False
        file.seek(0)
        # In one write that covers all, since somebody may be reading.
        file.write(json.dumps(error | {"before": before}).encode().ljust(len(data) - 1) + b"\n")
        return True
