"""A pod as a kubelet creates it: the calls in their order, with the usual settings of pods of Kubernetes."""

from __future__ import annotations

import base64
import os
import stat
from typing import Any

from tests.support.containerd import Containerd
from tests.support.cri import PORT, Cri, Stream
from tests.support.images import BUSYBOX_IMAGE
from tests.support.patience import wait_until
from tests.support.runtime import Result

FOREVER = "trap 'echo received SIGTERM; exit 0' TERM; while :; do sleep 3600 & wait; done"
#: The defaults of a kubelet for a container that is not privileged (pkg/securitycontext/util.go).
_MASKED = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"]
_READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_SECURITY: dict[str, Any] = {"namespace_options": {"pid": "CONTAINER"}, "seccomp": {"profile_type": "RuntimeDefault"}}


class Pod:
    """A pod and its containers by their names. ``changes``: fields of the configuration that replace the usual ones."""

    def __init__(
        self, engine: Containerd, cri: Cri, directory: str, *, security: dict[str, Any] | None = None, **changes: Any
    ) -> None:
        self.engine, self.cri, self.directory = engine, cri, directory
        name = os.path.basename(directory)
        os.makedirs(f"{directory}/logs")
        os.makedirs(f"{directory}/nodes")
        _write(f"{directory}/hosts", "127.0.0.1 localhost\n10.78.0.9 harbour\n")
        linux = {"cgroup_parent": engine.cgroups, "security_context": _SECURITY | (security or {})}
        self._config = {
            "metadata": {"name": name, "uid": name, "namespace": "tests"},
            "hostname": "ship",
            "log_directory": f"{directory}/logs",
            "dns_config": {"servers": ["10.78.0.1"], "searches": ["pods.test"], "options": ["ndots:5"]},
            "linux": linux | changes.pop("linux", {}),
        } | changes
        answer = cri("RunPodSandbox", config=self._config, runtime_handler="hawse")
        self.id: str = answer["pod_sandbox_id"]
        self.containers: dict[str, str] = {}

    def create(
        self,
        name: str,
        script: str = FOREVER,
        *,
        groups: tuple[int, ...] = (),
        security: dict[str, Any] | None = None,
        resources: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        """Create a container, with nodes of VFIO groups; returns its id."""
        _write(f"{self.directory}/{name}-message", "")
        paths = {"masked_paths": _MASKED, "readonly_paths": _READONLY}
        config = {
            "metadata": {"name": name},
            "image": {"image": BUSYBOX_IMAGE.name},
            "command": ["/bin/sh", "-c", script],
            "envs": [{"key": "NAME", "value": name}],
            "mounts": [
                {"container_path": "/etc/hosts", "host_path": f"{self.directory}/hosts"},
                {"container_path": "/dev/termination-log", "host_path": f"{self.directory}/{name}-message"},
            ],
            "devices": self._devices(groups),
            "log_path": f"{name}.log",
            "linux": {
                "resources": {"oom_score_adj": 1000, "cpu_shares": 102} | (resources or {}),
                "security_context": _SECURITY | paths | (security or {}),
            },
        } | changes
        answer = self.cri("CreateContainer", pod_sandbox_id=self.id, config=config, sandbox_config=self._config)
        self.containers[name] = answer["container_id"]
        return self.containers[name]

    def _devices(self, groups: tuple[int, ...]) -> list[dict[str, str]]:
        """The answer of a device plugin. The engine needs nodes on the host, so they are created for emulated groups.
        hawse finds the groups by the paths in the container."""
        numbers = {"vfio": (10, 196), **{str(group): (511, group) for group in groups}} if groups else {}
        devices = []
        for name, (major, minor) in numbers.items():
            path = f"{self.directory}/nodes/{name}"
            if not os.path.exists(path):
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
            devices.append({"container_path": f"/dev/vfio/{name}", "host_path": path, "permissions": "rw"})
        return devices

    def run(self, name: str, script: str = FOREVER, **changes: Any) -> str:
        """Create a container and start it; returns its id."""
        container = self.create(name, script, **changes)
        self.cri("StartContainer", container_id=container)
        return container

    def status(self, name: str) -> dict[str, Any]:
        """The answer to ContainerStatus."""
        status: dict[str, Any] = self.cri("ContainerStatus", container_id=self.containers[name])["status"]
        return status

    def await_exit(self, name: str, *, seconds: float = 30.0) -> dict[str, Any]:
        """Wait for the end of a container; returns its status."""
        wait_until(lambda: bool(self.status(name)["state"] == "CONTAINER_EXITED"), seconds=seconds)
        return self.status(name)

    def log(self, name: str) -> str:
        """The log that a kubelet reads."""
        with open(f"{self.directory}/logs/{name}.log") as file:
            return file.read()

    def message(self, name: str) -> str:
        """The termination message of a container."""
        with open(f"{self.directory}/{name}-message") as file:
            return file.read()

    def exec(self, name: str, script: str, *, timeout: int = 60) -> Result:
        """Run a shell script by ExecSync."""
        command = ["/bin/sh", "-c", script]
        done = self.cri("ExecSync", container_id=self.containers[name], cmd=command, timeout=timeout)
        stdout, stderr = (base64.b64decode(done[key]).decode() for key in ("stdout", "stderr"))
        return Result(done["exit_code"], stdout, stderr)

    def stream(self, method: str, name: str, **fields: Any) -> Stream:
        """The stream of Exec or Attach, with stdin and stdout."""
        answer = self.cri(method, container_id=self.containers[name], stdin=True, stdout=True, **fields)
        return Stream(answer["url"], self.engine.node.fd)

    def forward(self, port: int) -> Stream:
        """The stream of PortForward for one port; each of its outputs begins with two bytes of the number."""
        answer = self.cri("PortForward", pod_sandbox_id=self.id, port=[port])
        return Stream(f"{answer['url']}?port={port}", self.engine.node.fd, PORT)

    def remove_container(self, name: str) -> None:
        """Call RemoveContainer; the container may be running."""
        self.cri("RemoveContainer", container_id=self.containers.pop(name))

    def sandbox(self) -> dict[str, Any]:
        """The answer to PodSandboxStatus."""
        status: dict[str, Any] = self.cri("PodSandboxStatus", pod_sandbox_id=self.id)["status"]
        return status

    def remove(self) -> None:
        """Stop and remove the pod, as a kubelet does at its end."""
        self.cri("StopPodSandbox", pod_sandbox_id=self.id)
        self.cri("RemovePodSandbox", pod_sandbox_id=self.id)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
