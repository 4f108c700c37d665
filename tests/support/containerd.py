"""A private containerd for tests, configured as on a Kubernetes node: the host's program with separate files, network
and images.

It runs in its own network namespace, which stands for the node's network: pods of two concurrent test runs cannot
interfere, and nothing remains on the host's interfaces.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid

import tomlkit

from tests.support import evidence
from tests.support.host import prove_unchanged, snapshot
from tests.support.images import PAUSE_IMAGE
from tests.support.mount_table import mounts_of
from tests.support.netns import Namespace
from tests.support.patience import patience, wait_until
from tests.support.processes import all_pids, command_line
from tests.support.runtime import HAWSE, Result
from tests.support.subprocesses import run

#: The configuration to which `hawse install containerd` adds.
CONFIG = """
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]

[grpc]
  address = "{directory}/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  enable_selinux = false
  disable_apparmor = true
  # The tests' mount namespace may not be the machine's, and /run/netns is everybody's.
  netns_mounts_under_state_dir = true
  sandbox_image = "{pause}"
  stats_collect_period = 1

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{directory}/cni"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""
NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "ptp",
            "mtu": 1460,
            "ipam": {"type": "host-local", "subnet": "10.78.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
        }
    ],
}


class Containerd:
    """It runs from its creation to :meth:`stop`. ``directory`` must be short, since socket paths are limited."""

    def __init__(self, directory: str, *, hawse: str = "") -> None:
        """``hawse`` is the content of hawse's configuration."""
        self.directory = directory
        self.address = f"{directory}/containerd.sock"
        #: ctr's namespace. containerd uses it as the name of the parent cgroup of containers that name none. It differs
        #: from "hawse", since concurrent tests compare all cgroups with that name before and after.
        self.namespace = f"containerd-test-{uuid.uuid4().hex[:8]}"
        self.cgroups = f"/{self.namespace}"
        self.runtime_root = f"{directory}/runtime"
        self._log = f"{directory}/containerd.log"
        evidence.watch(directory, depth=0)
        evidence.watch(self.runtime_root, depth=2)
        self.binary = f"{directory}/hawse"
        _write(f"{directory}/hawse.toml", hawse)
        _write(self.binary, f'#!/bin/sh\nexec {HAWSE} --config {directory}/hawse.toml "$@"\n')
        os.chmod(self.binary, 0o755)
        self._configure()
        os.mkdir(f"{directory}/cni")
        [plugin] = NETWORK["plugins"]
        assert isinstance(plugin, dict)
        network = NETWORK | {"plugins": [plugin | {"ipam": plugin["ipam"] | {"dataDir": f"{directory}/addresses"}}]}
        _write(f"{directory}/cni/10-pods.conflist", json.dumps(network))
        self.node = Namespace()
        self.node.__enter__()
        try:
            for mount in _mounts("/sys/fs/cgroup", kind="cgroup"):
                os.mkdir(f"{mount}{self.cgroups}")
            self._before = snapshot()
            self._start()
        except BaseException:
            self._release()
            raise

    def _configure(self) -> None:
        """Configure it by `hawse install containerd`, except for the root, which other test runs use too."""
        path = f"{self.directory}/config.toml"
        _write(path, CONFIG.format(directory=self.directory, pause=PAUSE_IMAGE.name))
        # Name an existing configuration of hawse, so that none is written for this host.
        words = [HAWSE, "--config", f"{self.directory}/hawse.toml", "install", "containerd"]
        words += ["--file", path, "--program", self.binary]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        with open(path) as file:
            document = tomlkit.load(file).unwrap()
        runtimes = document["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
        runtimes["hawse"]["options"]["Root"] = self.runtime_root
        _write(path, tomlkit.dumps(document))

    def _start(self) -> None:
        # Not `ip netns exec`, which enters a new mount namespace: tests would not see leftover mounts.
        argv = ["nsenter", f"--net={self.node.path}", "containerd", "--config", f"{self.directory}/config.toml"]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until(lambda: self._process.poll() is not None or self._is_ready())
            assert self._process.poll() is None, self.log()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def _is_ready(self) -> bool:
        return os.path.exists(self.address) and self.ctr("version").code == 0

    def restart(self) -> None:
        """Stop and start it, as an update of a node's packages does; containers keep running."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(patience(10)) == 0, self.log()
        self._start()

    def log(self) -> str:
        """Its log."""
        with open(self._log, errors="replace") as file:
            return file.read()

    def load(self, archive: str, *, namespace: str = "") -> None:
        """Import the images of an archive."""
        done = self.ctr("images", "import", archive, namespace=namespace)
        assert done.code == 0, done.errors

    def argv(self, *words: str, namespace: str = "") -> list[str]:
        """The command line of ctr."""
        return ["ctr", "--address", self.address, "--namespace", namespace or self.namespace, *words]

    def ctr(self, *words: str, namespace: str = "", stdin: str | None = None) -> Result:
        """Run ctr and wait for its end."""
        return run(self.argv(*words, namespace=namespace), stdin=stdin, seconds=40)

    def stop(self) -> None:
        """Stop it, and check that nothing is left of it and of its pods and containers."""
        try:
            left = self.left()
            self._process.send_signal(signal.SIGTERM)
            assert self._process.wait(patience(10)) == 0, self.log()
            assert not left, left
            prove_unchanged(self._before)
        finally:
            self._process.kill()
            self._process.wait()
            self._release()

    def _release(self) -> None:
        self.node.__exit__(None, None, None)
        for mount in _mounts("/sys/fs/cgroup", kind="cgroup"):
            os.rmdir(f"{mount}{self.cgroups}")

    def containers(self) -> list[str]:
        """The state directories of hawse's containers."""
        paths = []
        for directory, names, _ in os.walk(self.runtime_root):
            paths += [f"{directory}/{name}" for name in names if directory.count("/") > self.runtime_root.count("/")]
            if directory != self.runtime_root:
                names.clear()
        return paths

    def left(self) -> list[str]:
        """Leftovers of pods and containers while it runs: empty when all of them have been removed."""
        leftovers = [f"hawse: {path}" for path in self.containers()] + [f"shim: {words}" for words in self._shims()]
        leftovers += [f"interface: {name}" for name in self.node.links()]
        leftovers += [f"mount: {path}" for path in _mounts(self.directory)]
        for mount in _mounts("/sys/fs/cgroup", kind="cgroup"):
            leftovers += [f"cgroup: {path}" for path, *_ in os.walk(f"{mount}{self.cgroups}")][1:]
        return leftovers

    def shims(self, name: str) -> list[int]:
        """The pids of the shim of a container or a pod."""
        return [int(words.split()[0]) for words in self._shims() if f" -id {name} " in words]

    def kill_shim(self, sandbox: str) -> None:
        """Kill the shim of a pod, and remove its socket, which containerd leaves behind then."""
        [pid] = self.shims(sandbox)
        with open(f"{self.directory}/state/io.containerd.runtime.v2.task/k8s.io/{sandbox}/address") as file:
            socket = file.read().removeprefix("unix://")
        os.kill(pid, signal.SIGKILL)
        os.unlink(socket)

    def _shims(self) -> list[str]:
        lines = (f"{pid} {command_line(pid)}" for pid in all_pids())
        return [line for line in lines if "containerd-shim" in line and self.address in line]


def _mounts(below: str, *, kind: str = "") -> list[str]:
    return [mount.point for mount in mounts_of() if mount.point.startswith(below) and mount.kind.startswith(kind)]


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
