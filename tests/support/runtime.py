"""Run hawse as an engine does: a program with arguments, an exit code, two outputs and a log file."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests.support import evidence
from tests.support.settings import accelerated, confined, with_annotations
from tests.support.subprocesses import Result, run

__all__ = ["HAWSE", "Result", "Runtime", "handing_on"]

HAWSE = os.path.join(os.path.dirname(sys.executable), "hawse")


class Runtime:
    """hawse with a private root directory, log and configuration for the test."""

    def __init__(self, directory: str) -> None:
        self.root = f"{directory}/state"
        self.log = f"{directory}/log.json"
        self._config = f"{directory}/config.toml"
        self.configure("")
        evidence.watch(self.root)

    def configure(self, text: str) -> None:
        """Set the configuration file's content. Unless it sets other values, every annotation is allowed, QEMU is
        confined, and no start warns that guests run without KVM."""
        with open(self._config, "w") as file:
            file.write(accelerated(confined(with_annotations(text))))

    def argv(self, *arguments: str, log: bool = False) -> list[str]:
        """The command line."""
        logging = ["--log", self.log, "--log-format", "json"] if log else []
        return [HAWSE, "--root", self.root, "--config", self._config, *logging, *arguments]

    def __call__(self, *arguments: str, log: bool = False, stdin: str | None = None, seconds: float = 30) -> Result:
        """Run a command and wait for its end. ``seconds`` is passed to :func:`patience`."""
        return run(self.argv(*arguments, log=log), stdin=stdin, seconds=seconds)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command."""
        return subprocess.Popen(self.argv(*arguments), **options)

    def state(self, name: str) -> dict[str, Any]:
        """The output of `hawse state`."""
        result = self("state", name)
        assert result.code == 0, result.errors
        state: dict[str, Any] = json.loads(result.output)
        return state

    def shell(self, name: str, script: str, *options: str) -> Result:
        """Run a shell script by `hawse exec` in a container. ``options``: those of `hawse exec`."""
        return self("exec", *options, name, "/bin/sh", "-c", script)

    def monitor(self, name: str) -> int:
        """The pid of the monitor of a container's sandbox."""
        with open(f"{self.root}/{name}/state.json") as file:
            return int(json.load(file)["monitorPid"])

    def run_detached(self, bundle: str, name: str) -> int:
        """create and start, with discarded stdio; returns the pid in the pid file."""
        pid_file = f"{bundle}/pid"
        null = subprocess.DEVNULL
        # Not a pipe: the container would inherit it and keep it open.
        with open(f"{bundle}/said", "w+") as said:
            words = self.argv("create", "--bundle", bundle, "--pid-file", pid_file, name)
            created = subprocess.run(words, check=False, stdin=null, stdout=null, stderr=said)
            said.seek(0)
            assert created.returncode == 0, f"exit code {created.returncode}: {said.read()}"
        started = self("start", name)
        assert started.code == 0, started
        with open(pid_file) as file:
            return int(file.read())


def handing_on(argv: Sequence[str], *descriptors: int, **options: Any) -> subprocess.Popen[bytes]:
    """Start a program with these descriptors, numbered from 3."""
    # First to high numbers: a target number could be in use by another of these descriptors.
    away = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 500) for fd in descriptors]
    moves = " ".join(f"{number}<&{fd} {fd}<&-" for number, fd in enumerate(away, 3))
    try:
        return subprocess.Popen(["/bin/bash", "-c", f'exec "$@" {moves}', "bash", *argv], pass_fds=away, **options)
    finally:
        for fd in away:
            os.close(fd)
