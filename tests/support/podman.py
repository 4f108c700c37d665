"""Podman with private storage, configuration and networks for a test, and with hawse as its runtime."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from types import TracebackType
from typing import Any

from tests.support.bundles import make_rootfs
from tests.support.patience import wait_until
from tests.support.processes import program_of, with_words
from tests.support.runtime import Result, Runtime
from tests.support.subprocesses import run

IMAGE = "localhost/box:latest"
#: The time limit of a command, passed to :func:`patience`.
_SECONDS = 75


class Podman:
    """A context manager that removes its containers, pods, networks and mounts at the end."""

    def __init__(self, directory: str, runtime: Runtime, *, cgroup_manager: str = "cgroupfs") -> None:
        self.directory = directory
        os.makedirs(directory, exist_ok=True)
        self.environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": directory,
            "CONTAINERS_STORAGE_CONF": _write(f"{directory}/storage.conf", _storage(directory)),
            "CONTAINERS_CONF": _write(f"{directory}/containers.conf", _engine(directory, cgroup_manager)),
            "TMPDIR": directory,
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }
        install("podman", f"{directory}/containers.conf", runtime)

    def __enter__(self) -> Podman:
        make_rootfs(f"{self.directory}/rootfs")
        tar = f"{self.directory}/box.tar"
        subprocess.run(["tar", "-C", f"{self.directory}/rootfs", "-cf", tar, "."], check=True)
        self.must("import", "--change", "ENV PATH=/bin", tar, IMAGE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self("pod", "rm", "--all", "--force", "--time", "0")
        self("rm", "--all", "--force", "--time", "0")
        self("network", "prune", "--force")
        self("system", "reset", "--force")
        shutil.rmtree(f"{self.directory}/graph", ignore_errors=True)

    def __call__(self, *words: str, stdin: str | None = None, seconds: float = _SECONDS) -> Result:
        """Run a command and wait for its end."""
        return run(["podman", *words], environment=self.environment, stdin=stdin, seconds=seconds)

    def must(self, *words: str, stdin: str | None = None) -> str:
        """Run a command, which must succeed; returns its output."""
        done = self(*words, stdin=stdin)
        assert done.code == 0, f"podman {' '.join(words)}: {done}"
        return done.output

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command; its output is discarded."""
        null = subprocess.DEVNULL
        return subprocess.Popen(["podman", *words], env=self.environment, stdin=null, stdout=null, stderr=null)

    def await_cleanup(self) -> None:
        """Wait until Podman has finished with every container that has exited; none may be running.

        `podman run --rm` and `podman rm` remove a container and return. Its conmon may still run then: it waits for its
        exit command, `podman container cleanup`, which finds the container removed and exits (podman pull request 2631,
        issue 23811; conmon src/ctr_exit.c, do_exit_command).
        """
        wait_until(lambda: not self._helpers())

    def _helpers(self) -> list[int]:
        """The pids of this Podman's conmon and podman processes, whose arguments contain paths of its directory."""
        return [pid for pid in with_words(f"{self.directory}/") if program_of(pid) in ("conmon", "podman")]

    def on_terminal(self, *words: str) -> str:
        """Run a command, which must succeed, on a terminal; returns its output."""
        return on_terminal(["podman", *words], self.environment)

    def inspect(self, name: str) -> Any:
        """The output of `podman inspect` for a container."""
        return json.loads(self.must("inspect", name))[0]


def install(engine: str, file: str, runtime: Runtime) -> None:
    """Configure hawse as an engine's runtime by a wrapper program that adds the test's options."""
    program = _write(f"{file}.program", f'#!/bin/sh\nexec {" ".join(runtime.argv())} "$@"\n')
    os.chmod(program, 0o755)
    done = runtime("install", engine, "--file", file, "--program", program)
    assert done.code == 0, done


def on_terminal(argv: list[str], environment: dict[str, str]) -> str:
    """Run a program, which must succeed, on a terminal; returns its output."""
    master, slave = pty.openpty()
    with subprocess.Popen(argv, env=environment, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        written = b""
        try:
            while piece := os.read(master, 65536):
                written += piece
        except OSError:  # the last process that had the other end open has closed it
            pass
        os.close(master)
    assert process.returncode == 0, written
    return written.decode()


def _storage(directory: str) -> str:
    return f'[storage]\ndriver = "overlay"\ngraphroot = "{directory}/graph"\nrunroot = "{directory}/run"\n'


def _engine(directory: str, cgroup_manager: str) -> str:
    """The engine's configuration. Its limits are those that every host permits: runc fails if it must raise them
    without the privilege to do so."""
    return f"""
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "{cgroup_manager}"
events_logger = "file"
lock_type = "file"
runtime = "hawse"
runtime_supports_json = ["crun", "runc", "hawse"]
static_dir = "{directory}/graph/libpod"
tmp_dir = "{directory}/tmp"
[engine.runtimes]
runc = ["/usr/sbin/runc"]
[network]
network_config_dir = "{directory}/networks"
"""


def _write(path: str, text: str) -> str:
    with open(path, "w") as file:
        file.write(text)
    return path
