"""Where messages go: the file of ``--log`` in the format of ``--log-format``, and stderr for people.

Engines read the file as a stream of JSON objects and show the last of level "error" (containerd), or take the whole
file for one object (Podman): so nothing but errors and warnings goes in, one line each.
"""

from __future__ import annotations

import json
import os
import sys
import time


class Log:
    """Writes to ``path`` (none: to stderr) as "text" or "json"."""

    def __init__(self, path: str | None = None, *, form: str = "text", debug: bool = False) -> None:
        self._path = path
        self._form = form
        self._debug = debug

    def error(self, message: str, evidence: str = "") -> None:
        """The reason for which the command fails. With a log file, people get it on stderr as well, as from runc."""
        self._write("error", message, evidence)
        if self._path is not None or self._form != "json":
            if evidence:
                message += "\n" + "\n".join(f"  | {line}" for line in evidence.splitlines())
            print(f"hawse: {message}", file=sys.stderr)

    def warning(self, message: str) -> None:
        """Something that the user should know, though the command goes on."""
        self._write("warning", message)
        if self._path is None and self._form != "json":
            print(f"hawse: warning: {message}", file=sys.stderr)

    def debug(self, message: str) -> None:
        """Only with --debug."""
        if self._debug:
            self._write("debug", message)

    def _write(self, level: str, message: str, evidence: str = "") -> None:
        if self._path is None and self._form != "json":
            return
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._form == "json":
            fields = {"level": level, "msg": message, "time": moment}
            line = json.dumps(fields | ({"evidence": evidence} if evidence else {}))
        else:
            line = f"time={json.dumps(moment)} level={level} msg={json.dumps(message)}"
        data = line.encode() + b"\n"
        if self._path is None:
            sys.stderr.buffer.write(data)
            sys.stderr.flush()
            return
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
