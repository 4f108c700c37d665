"""A private Docker daemon for a test, with its own directory, networks and socket, and with hawse as a runtime."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from types import TracebackType
from typing import Any

from hawse.state.store import Store
from tests.support import evidence
from tests.support.docker_cli import Engine
from tests.support.engines import install
from tests.support.patience import patience, wait_until
from tests.support.processes import program_of, qemu_of, with_words
from tests.support.runtime import Runtime

IMAGE = "box"
#: The time limit of the daemon's start, passed to :func:`patience`.
_SECONDS = 75


class Docker(Engine):
    """A context that removes its containers, networks and daemon at the end. ``settings``: added to daemon.json."""

    program, image = "docker", IMAGE
    refusal_code = 125
    host_network_error = "the host's network, which a virtual machine cannot share"

    def __init__(self, directory: str, runtime: Runtime, **settings: Any) -> None:
        self.directory = directory
        #: The root that its shim passes to every runtime (moby daemon/runtime_unix.go), without the namespace's name.
        self.runtime_root = f"{directory}/exec/runtime-runc/moby"
        evidence.watch(directory, depth=0)
        evidence.watch(self.runtime_root)
        os.makedirs(directory, exist_ok=True)
        configuration = {
            "default-runtime": "hawse",
            "data-root": f"{directory}/data",
            "exec-root": f"{directory}/exec",
            "pidfile": f"{directory}/pid",
            "hosts": [f"unix://{directory}/socket"],
            # Limits that every host permits: runc fails if it must raise them without the privilege to do so.
            "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 1024, "Soft": 1024}},
        } | settings
        with open(f"{directory}/daemon.json", "w") as file:
            json.dump(configuration, file)
        install("docker", f"{directory}/daemon.json", runtime)
        self.environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": directory,
            "DOCKER_HOST": f"unix://{directory}/socket",
        }

    def __enter__(self) -> Docker:
        self._start()
        try:
            self.import_image()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        names = self("ps", "--all", "--quiet").output.split()
        if names:
            self("rm", "--force", *names)
        self("network", "prune", "--force")
        self._end()

    def remove(self, name: str) -> None:
        self("rm", "--force", name)

    def settle(self) -> None:
        """Nothing: the daemon reports an exit after its clean-up."""

    def processes_of(self, name: str) -> dict[str, int]:
        container = self.inspect(name)["Id"]
        monitor = Store(self.runtime_root, container).read()["monitorPid"]
        [shim] = [pid for pid in with_words(f" -id {container} ") if program_of(pid).startswith("containerd-shim")]
        return {"QEMU": qemu_of(monitor), "monitor": monitor, "shim": shim}

    @property
    def processes(self) -> list[int]:
        """The pids of the daemon and of its containerd."""
        with open(f"{self.directory}/exec/containerd/containerd.pid") as file:
            return [self._daemon.pid, int(file.read())]

    def restart(self) -> None:
        """Stop and start the daemon and its containerd, as an update of their packages does."""
        self._daemon.send_signal(signal.SIGTERM)
        assert self._daemon.wait(patience(20)) == 0
        self._start()

    def _start(self) -> None:
        with open(f"{self.directory}/dockerd.log", "ab") as log:
            words = ["dockerd", "--config-file", f"{self.directory}/daemon.json"]
            self._daemon = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_until(lambda: self._daemon.poll() is not None or self("version").code == 0, seconds=_SECONDS)
            with open(f"{self.directory}/dockerd.log", errors="replace") as log:
                assert self._daemon.poll() is None, log.read()[-4000:]
        except BaseException:
            self._daemon.kill()
            self._daemon.wait()
            raise

    def _end(self) -> None:
        self._daemon.send_signal(signal.SIGTERM)
        self._daemon.wait(patience(20))
        # Remove what the daemon keeps for its next start: its bridge, a name of the host's network namespace, and, with
        # "live-restore", the mount of its data directory.
        places = [f"{self.directory}/{name}" for name in ("exec/netns/default", "data")]
        for words in (["ip", "link", "delete", "docker0"], *(["umount", place] for place in places)):
            subprocess.run(words, check=False, stderr=subprocess.DEVNULL)
