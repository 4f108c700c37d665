"""What Podman and Docker have in common: the command line of `docker`."""

from __future__ import annotations

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.bundles import make_rootfs
from tests.support.engines import on_terminal
from tests.support.patience import wait_until
from tests.support.runtime import Result
from tests.support.subprocesses import run

#: The time limit of a command, passed to :func:`patience`.
_SECONDS = 75
#: Writes to both outputs, serves the directory /data over HTTP, and exits with code 7 at SIGTERM.
_SERVICE = (
    "trap 'echo asked to end; exit 7' TERM; echo to stdout; echo to stderr >&2; busybox httpd -p 8080 -h /data; "
    "while :; do sleep 1; done"
)


class Engine(ABC):
    """An engine with a private directory, and with hawse as its runtime.

    ``image``: the name of an image of busybox. ``refusal_code``: the exit code of `run` when the runtime refuses a
    container. ``host_network_error``: the error of hawse for `--network host`, which depends on the bundle of the
    engine. ``runtime_root``: the root directory that the engine passes to the runtime.
    """

    program: str
    image: str
    refusal_code: int
    host_network_error: str
    directory: str
    runtime_root: str
    environment: dict[str, str]

    def import_image(self) -> None:
        """Create the image."""
        make_rootfs(f"{self.directory}/rootfs")
        tar = f"{self.directory}/box.tar"
        subprocess.run(["tar", "-C", f"{self.directory}/rootfs", "-cf", tar, "."], check=True)
        self.must("import", "--change", "ENV PATH=/bin", tar, self.image)

    def __call__(self, *words: str, stdin: str | None = None, seconds: float = _SECONDS) -> Result:
        """Run a command and wait for its end."""
        return self.run([self.program, *words], stdin=stdin, seconds=seconds)

    def run(self, argv: list[str], *, stdin: str | None = None, seconds: float = _SECONDS) -> Result:
        """Run any program that uses the engine, and wait for its end."""
        return run(argv, environment=self.environment, stdin=stdin, seconds=seconds)

    def must(self, *words: str, stdin: str | None = None) -> str:
        """Run a command, which must succeed; returns its output."""
        done = self(*words, stdin=stdin)
        assert done.code == 0, f"{self.program} {' '.join(words)}: {done}"
        return done.output

    def on_terminal(self, *words: str) -> str:
        """Run a command, which must succeed, on a terminal; returns its output."""
        return on_terminal([self.program, *words], self.environment)

    def inspect(self, name: str) -> Any:
        """The output of `inspect` for a container."""
        return json.loads(self.must("inspect", name))[0]

    @abstractmethod
    def remove(self, name: str) -> None:
        """Kill and remove a container, if it exists."""

    @abstractmethod
    def settle(self) -> None:
        """Bring the engine into the state that it has after the end of a container, for a comparison with later."""

    @abstractmethod
    def processes_of(self, name: str) -> dict[str, int]:
        """The pids of the processes of a running container's sandbox: "QEMU", "monitor" and others by engine."""


@contextmanager
def serving(engine: Engine, files: Path, *options: str) -> Iterator[str]:
    """Run a container "service" that serves these files at port 18080 of the host; it is removed afterwards.

    ``options``: more options of `run`.
    """
    engine.must(
        "run", "--detach", "--name", "service", "--publish", "127.0.0.1:18080:8080", "--volume", f"{files}:/data",
        "--tmpfs", "/scratch", *options, engine.image, "sh", "-c", _SERVICE,
    )  # fmt: skip
    # Before its output, the shell has no trap, and the first process of a PID namespace ignores signals without one.
    wait_until(lambda: "to stdout" in engine("logs", "service").output)
    yield "service"
    engine.remove("service")
