"""The calls of CRI-O, replayed from its sources (internal/oci/runtime_oci.go) through the real conmon: Debian has no
package of CRI-O.

A pod has a sandbox and two containers, one of them with a device. conmon creates each of them and reports over the two
pipes that CRI-O passes. Every other call runs the runtime directly, with ``--root`` as the only global option.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.host import network_namespace
from hawse.oci.capabilities import CAPABILITIES
from hawse.state.store import Store
from tests.support.bundles import UNLIMITED, add_devices, build_probe, make_bundle, write
from tests.support.engines import install, read_hosts_disk
from tests.support.host import prove_unchanged, snapshot
from tests.support.netns import Namespace
from tests.support.patience import patience, wait_until
from tests.support.processes import qemu_of
from tests.support.runtime import Runtime

pytestmark = [pytest.mark.vm, pytest.mark.engine]


class Crio:
    """The calls of CRI-O for a container."""

    def __init__(self, directory: Path, runtime: Runtime) -> None:
        self.directory = directory
        install("crio", f"{directory}/50-hawse.conf", runtime)
        self.program = f"{directory}/50-hawse.conf.program"
        self.root = f"{directory}/root"
        # CRI-O passes only these (runtime_oci.go, runtimeCmd).
        self.environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "XDG_RUNTIME_DIR": str(directory)}
        for name in ("exits", "sockets", "logs"):
            (directory / name).mkdir()

    def create(self, name: str, bundle: str, *options: str) -> int:
        """Create a container by conmon; returns its pid. Raises AssertionError with any other report of conmon."""
        answer = self._conmon(name, bundle, name, ["--exit-dir", f"{self.directory}/exits", *options])
        assert answer.get("pid", -1) > 0, str(answer)
        return int(answer["pid"])

    def exec_sync(self, name: str, bundle: str, process: dict[str, Any]) -> tuple[int, str]:
        """ExecSync of a kubelet; returns the exit code and the log."""
        spec = self.directory / "process.json"
        spec.write_text(json.dumps(process))
        answer = self._conmon(name, bundle, f"{name}-exec", ["--exec", "--exec-process-spec", str(spec)])
        return answer["exit_code"], (self.directory / "logs" / f"{name}-exec").read_text()

    def __call__(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the runtime directly."""
        argv = [self.program, "--root", self.root, *words]
        return subprocess.run(
            argv, env=self.environment, input=stdin, capture_output=True, text=True, check=False, timeout=120
        )

    def state(self, name: str) -> dict[str, Any]:
        done = self("state", name)
        assert done.returncode == 0, done
        state: dict[str, Any] = json.loads(done.stdout)
        assert {"ociVersion", "id", "status", "pid", "bundle", "created"} <= state.keys()
        return state

    def said(self, name: str) -> str:
        """The output of a container, assembled from the full and partial lines in the log of conmon."""
        text = ""
        for line in (self.directory / "logs" / name).read_bytes().decode().removesuffix("\n").split("\n"):
            _, _, tag, piece = line.split(" ", 3)
            text += piece + ("\n" if tag == "F" else "")
        return text

    def exit_code(self, name: str) -> int:
        """Wait for the exit code that conmon writes for the container."""
        path = self.directory / "exits" / name
        wait_until(path.exists)
        return int(path.read_text())

    def _conmon(self, name: str, bundle: str, key: str, more: list[str]) -> dict[str, Any]:
        told, tells = os.pipe()
        starts, start = os.pipe()
        argv = [
            "conmon", "--syslog", "-c", name, "-n", name, "-u", key, "-r", self.program, "-b", bundle,
            "-p", f"{bundle}/{key}.pid", "-P", f"{bundle}/{key}.conmon",
            "-l", f"{self.directory}/logs/{key}", "--socket-dir-path", f"{self.directory}/sockets",
            "--runtime-arg", f"--root={self.root}", *more,
        ]  # fmt: skip
        pipes = {"_OCI_SYNCPIPE": str(tells), "_OCI_STARTPIPE": str(starts)}
        process = subprocess.Popen(
            argv, env=self.environment | pipes, pass_fds=(tells, starts), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(tells)
        os.close(starts)
        os.write(start, b"0")
        os.close(start)
        assert process.wait() == 0  # conmon continues in the background
        with os.fdopen(told) as answers:
            answer: dict[str, Any] = json.loads(answers.readline())
        return answer


@pytest.fixture
def crio(tmp_path: Path) -> Iterator[Crio]:
    before = snapshot()
    runtime = Runtime(str(tmp_path))
    runtime.configure('[emulated]\n5 = ["edu"]\n')
    engine = Crio(tmp_path, runtime)
    yield engine
    for name in sorted(os.listdir(engine.root) if os.path.isdir(engine.root) else (), reverse=True):
        engine("delete", "--force", name)
    prove_unchanged(before)


def bundle(
    crio: Crio, name: str, network: str, script: str, *, device: bool = False, terminal: bool = False,
    privileged: bool = False,
) -> str:  # fmt: skip
    """A bundle. ``network``: the pod's network namespace, "" for the host's. All containers share /pod and /dev/shm."""
    path = f"{crio.directory}/{name}"
    spec = make_bundle(path, ["/bin/sh", "-c", script], terminal=terminal, rlimits=[UNLIMITED])
    kind = "sandbox" if name == "sandbox" else "container"
    spec["annotations"] = {"io.kubernetes.cri-o.ContainerType": kind, "io.kubernetes.cri-o.SandboxID": "sandbox"}
    spec["linux"]["namespaces"] = [
        {"type": entry["type"]} | ({"path": network} if entry["type"] == "network" else {})
        for entry in spec["linux"]["namespaces"]
        if network or entry["type"] != "network"
    ]
    for place, target in (("volume", "/pod"), ("shm", "/dev/shm")):
        os.makedirs(f"{crio.directory}/{place}", exist_ok=True)
        spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] != target]
        source = f"{crio.directory}/{place}"
        spec["mounts"].append({"destination": target, "type": "bind", "source": source, "options": ["rw", "rbind"]})
    if device:
        add_devices(spec, [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 511, 5)])
        build_probe(f"{path}/rootfs")
    if privileged:
        # With privileged_without_host_devices, which `hawse install` sets (CRI-O server/container_create.go).
        sets = ("bounding", "effective", "permitted", "inheritable")
        spec["process"]["capabilities"] = {key: list(CAPABILITIES) for key in sets}
        spec["annotations"]["io.kubernetes.cri-o.PrivilegedRuntime"] = "true"
        spec["linux"] |= {"maskedPaths": [], "readonlyPaths": []}
        spec["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    write(path, spec)
    return path


FOREVER = "trap 'exit 7' TERM; echo ready; while :; do sleep 1; done"


def test_pod_from_creation_to_deletion(crio: Crio) -> None:
    with Namespace() as network:
        sandbox = bundle(crio, "sandbox", network.path, "sleep 1000")
        pid = crio.create("sandbox", sandbox)
        assert crio("start", "sandbox").returncode == 0
        assert (crio.state("sandbox")["status"], crio.state("sandbox")["pid"]) == ("running", pid)
        for name, device in (("with", True), ("without", False)):
            crio.create(name, bundle(crio, name, network.path, FOREVER, device=device))
            assert crio("start", name).returncode == 0
            wait_until(lambda log=crio.directory / "logs" / name: "stdout F ready" in log.read_text())  # type: ignore[misc]
        spec = json.loads(Path(f"{crio.directory}/with/config.json").read_text())["process"]
        code, log = crio.exec_sync("with", f"{crio.directory}/with", spec | {"args": ["/probe", "/dev/vfio/5"]})
        assert code == 0, log
        assert "dma" in log
        streamed = crio.directory / "streamed.json"
        streamed.write_text(json.dumps(spec | {"args": ["/bin/sh", "-c", "cat; exit 3"]}))
        done = crio("exec", "--process", str(streamed), "without", stdin="through the runtime\n")
        assert (done.returncode, done.stdout) == (3, "through the runtime\n")
        # Each container has its own /tmp. The volume and the shared memory belong to the pod.
        shared = spec | {"args": ["/bin/sh", "-c", "echo kept >/pod/it; echo memory >/dev/shm/it; echo own >/tmp/it"]}
        assert crio.exec_sync("with", f"{crio.directory}/with", shared)[0] == 0
        look = spec | {"args": ["/bin/sh", "-c", "cat /pod/it /dev/shm/it; ls /tmp"]}
        code, log = crio.exec_sync("without", f"{crio.directory}/without", look)
        assert [line.split(" F ")[1] for line in log.splitlines()] == ["kept", "memory"]
        assert (crio.directory / "volume" / "it").read_text() == "kept\n"
        for verb, status in (("pause", "paused"), ("resume", "running")):
            assert crio(verb, "with").returncode == 0
            assert crio.state("with")["status"] == status
        limits = {"memory": {"limit": 200 << 20}, "cpu": {"shares": 512}}
        assert crio("update", "--resources", "-", "without", stdin=json.dumps(limits)).returncode == 0
        assert crio("kill", "with", "TERM").returncode == 0
        assert crio.exit_code("with") == 7
        assert crio.state("with")["status"] == "stopped"
        assert "not running" in crio("kill", "with", "KILL").stderr
        assert crio("delete", "--force", "with").returncode == 0
        # The other container and the sandbox are not affected.
        assert crio.state("without")["status"] == "running"
        assert crio("kill", "without", "KILL").returncode == 0
        assert crio.exit_code("without") == 137
        assert crio("kill", "-a", "sandbox", "9").returncode == 0
        for name in ("without", "sandbox"):
            assert crio("delete", "--force", name).returncode == 0
        assert "does not exist" in crio("state", "sandbox").stderr


def test_port_of_the_pod_is_reached_from_its_network_namespace(crio: Crio) -> None:
    """As for `kubectl port-forward`, on the loopback of the namespace (runtime_oci.go, PortForwardContainer)."""

    def dial(network: Namespace) -> bytes:
        address = ("127.0.0.1", 8080)
        with network_namespace.within(
            network.fd, lambda: socket.create_connection(address, timeout=patience(20))
        ) as connection:
            return connection.recv(100)

    with Namespace() as network:
        for name, script in (("sandbox", "sleep 1000"), ("one", "exec busybox nc -ll -p 8080 -e /bin/echo from a pod")):
            crio.create(name, bundle(crio, name, network.path, script))
            assert crio("start", name).returncode == 0
        spec = json.loads(Path(f"{crio.directory}/one/config.json").read_text())["process"]
        await_port = spec | {"args": ["/bin/sh", "-c", "until grep -q :1F90 /proc/net/tcp*; do sleep 0.1; done"]}
        assert crio.exec_sync("one", f"{crio.directory}/one", await_port)[0] == 0
        assert [dial(network), dial(network)] == [b"from a pod\n"] * 2
        for name in ("one", "sandbox"):
            assert crio("kill", name, "KILL").returncode == 0
            assert crio.exit_code(name) == 137
            assert crio("delete", "--force", name).returncode == 0
        with pytest.raises(ConnectionRefusedError):
            dial(network)


def test_privileged_container_on_a_terminal(crio: Crio) -> None:
    script = f"tty; grep CapEff /proc/self/status; {read_hosts_disk()}; exit 6"
    with Namespace() as network:
        crio.create("sandbox", bundle(crio, "sandbox", network.path, "sleep 1000"))
        assert crio("start", "sandbox").returncode == 0
        path = bundle(crio, "one", network.path, script, terminal=True, privileged=True)
        crio.create("one", path, "--terminal")
        assert crio("start", "one").returncode == 0
        assert crio.exit_code("one") == 6
        said = crio.said("one")
        assert said.startswith("/dev/pts/0\r\n"), said
        assert f"CapEff:\t{2 ** len(CAPABILITIES) - 1:016x}\r\n" in said
        assert "No such device or address" in said
        for name in ("one", "sandbox"):
            assert crio("delete", "--force", name).returncode == 0


def test_pod_whose_vm_is_killed(crio: Crio) -> None:
    with Namespace() as network:
        for name, script in (("sandbox", "sleep 1000"), ("one", FOREVER)):
            crio.create(name, bundle(crio, name, network.path, script))
            assert crio("start", name).returncode == 0
        os.kill(qemu_of(Store(crio.root, "sandbox").read()["monitorPid"]), signal.SIGKILL)
        for name in ("one", "sandbox"):
            assert crio.exit_code(name) in (137, 255)
            assert crio.state(name)["status"] == "stopped"
            assert crio("delete", "--force", name).returncode == 0


@pytest.mark.parametrize(
    ("kind", "network", "script", "words"),
    [
        ("lonely", "/run/netns/nothing", "true", "sandbox sandbox does not exist"),
        ("sandbox", "", "true", "virtual machine cannot share .add one, or let the engine add it"),
        ("sandbox", "own", "", "executable file not found"),
    ],
)
def test_failed_creation_is_reported_over_the_pipe_of_conmon(
    crio: Crio, kind: str, network: str, script: str, words: str
) -> None:
    with Namespace() as own:
        path = bundle(crio, kind, own.path if network == "own" else network, script)
        if not script:
            os.unlink(f"{path}/rootfs/bin/sh")
        with pytest.raises(AssertionError, match=words):
            crio.create(kind, path)
