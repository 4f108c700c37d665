"""Podman with private storage, configuration and networks for a test, and with hawse as its runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType

from tests.support.docker_cli import Engine
from tests.support.engines import install
from tests.support.patience import wait_until
from tests.support.processes import program_of, qemu_of, with_words
from tests.support.runtime import Runtime

IMAGE = "localhost/box:latest"


class Podman(Engine):
    """A context manager that removes its containers, pods, networks and mounts at the end."""

    program, image = "podman", IMAGE
    refusal_code = 126
    host_network_error = "the container would use the host's network, which a virtual machine cannot share"

    def __init__(self, directory: str, runtime: Runtime, *, cgroup_manager: str = "cgroupfs") -> None:
        self.directory, self.runtime, self.runtime_root = directory, runtime, runtime.root
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
        self.import_image()
        return self

    def remove_pod(self, name: str) -> None:
        """Remove a pod and its containers.

        When `pod rm` kills the containers, conmon starts Podman 4.3's own clean-up of each at the same time. Then
        `pod rm` may fail after it has removed the containers: the pod is left, and the next `pod rm` removes it.
        """
        if self("pod", "rm", "--force", "--time", "0", name).code:
            self.must("pod", "rm", "--force", "--time", "0", name)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self("pod", "rm", "--all", "--force", "--time", "0")
        self("rm", "--all", "--force", "--time", "0")
        self("network", "prune", "--force")
        self("system", "reset", "--force")
        shutil.rmtree(f"{self.directory}/graph", ignore_errors=True)

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

    def remove(self, name: str) -> None:
        self("rm", "--force", "--time", "0", name)

    def settle(self) -> None:
        self.must("run", "--rm", self.image, "true")
        self.await_cleanup()

    def processes_of(self, name: str) -> dict[str, int]:
        monitor = self.runtime.monitor(self.inspect(name)["Id"])
        return {"QEMU": qemu_of(monitor), "monitor": monitor}


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
