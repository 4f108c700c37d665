"""The interfaces of a network namespace during the life of its container: from `create` to `delete` and after kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from hawse.state.store import start_time
from tests.support.bundles import write
from tests.support.netns import Namespace, cable, run
from tests.support.networks import BOX, bundle_in, is_clean
from tests.support.patience import patience, wait_until
from tests.support.processes import qemu_of
from tests.support.refusals import fails
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm


def create(runtime: Runtime, bundle: str) -> int:
    """Run `create`; returns the pid in the pid file."""
    null = subprocess.DEVNULL
    words = ["create", "--bundle", bundle, "--pid-file", f"{bundle}/pid", "c1"]
    assert runtime.start(*words, stdin=null, stdout=null, stderr=null).wait(patience(30)) == 0
    return int(Path(bundle, "pid").read_text())


def test_interfaces_added_between_create_and_start_are_used(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace
) -> None:
    cable(inside, outside, "eth0", net=1)
    script = "".join(f"{BOX} ping -c 1 10.77.{net}.1 >>/data/out;" for net in (1, 2, 3)) + "echo >/data/ready"
    bundle = bundle_in(tmp_path / "bundle", script, inside.path)
    create(runtime, bundle)
    for net in (2, 3):
        cable(inside, outside, f"eth{net}", net=net)
    assert runtime("start", "c1").code == 0
    data = Path(bundle, "rootfs", "data")
    wait_until(lambda: (data / "ready").exists())
    assert (data / "out").read_text().count("1 packets received") == 3
    assert runtime("delete", "--force", "c1").code == 0
    assert is_clean(inside, "eth0", "eth2", "eth3")


@pytest.mark.parametrize("end", ["its program", "SIGKILL"])
def test_interfaces_added_through_the_pid_of_create_are_used(
    runtime: Runtime, tmp_path: Path, outside: Namespace, end: str
) -> None:
    """As Docker adds them: `create` makes a network namespace, which the engine finds at the pid and mounts."""
    stay = "" if end == "its program" else "sleep 1000"
    bundle = bundle_in(tmp_path / "bundle", f"{BOX} ping -c 1 10.77.1.1 >/data/out; echo >/data/ready; {stay}", "")
    pid = create(runtime, bundle)
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    inside = Namespace()
    run("ip", "netns", "attach", inside.name, str(pid))
    try:
        cable(inside, outside, "eth0", net=1)
        assert runtime("start", "c1").code == 0
        data = Path(bundle, "rootfs", "data")
        wait_until(lambda: (data / "ready").exists())
        assert "1 packets received" in (data / "out").read_text()
        if stay:
            os.kill(runtime.monitor("c1"), signal.SIGKILL)
        # When the process has ended, only the mount of the engine leads to its namespace.
        wait_until(lambda: runtime.state("c1")["status"] == "stopped" and not is_alive(pid))
        assert runtime("delete", "--force", "c1").code == 0
        wait_until(lambda: inside.links() == ["eth0"])
        assert is_clean(inside, "eth0")
    finally:
        run("ip", "netns", "del", inside.name)


def is_alive(pid: int) -> bool:
    return start_time(pid) > 0


def test_container_without_interfaces_has_a_loopback(runtime: Runtime, tmp_path: Path, inside: Namespace) -> None:
    script = f"ls /sys/class/net; {BOX} ip addr show lo; {BOX} ping -c 1 127.0.0.1; {BOX} ping -c 1 ::1"
    for number, path in enumerate(("", inside.path)):
        result = runtime("run", "--bundle", bundle_in(tmp_path / f"bundle{number}", script, path), "c1")
        assert result.code == 0, result
        assert result.output.splitlines()[0] == "lo"
        assert "LOOPBACK,UP" in result.output
        assert result.output.count("1 packets received") == 2
        assert not os.path.exists(f"{runtime.root}/c1")


def test_interface_that_is_down_is_not_used(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace
) -> None:
    cable(inside, outside, "eth0", net=1)
    inside.ip("link set eth0 down")
    result = runtime("run", "--bundle", bundle_in(tmp_path / "bundle", "ls /sys/class/net", inside.path), "c1")
    assert (result.code, result.output) == (0, "lo\n")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (None, "{bundle}/config.json: linux.namespaces: none of type network: the container would use the host's"),
        ("/proc/self/ns/net", "linux.namespaces[type=network].path: /proc/self/ns/net: the host's network"),
        ("/run/netns/hawse-none", "linux.namespaces[type=network].path: /run/netns/hawse-none: no such file"),
        ("/etc/hostname", "linux.namespaces[type=network].path: /etc/hostname: not a network namespace"),
    ],
)
def test_network_that_a_vm_cannot_have_is_refused(
    runtime: Runtime, tmp_path: Path, network: str | None, words: str
) -> None:
    bundle = bundle_in(tmp_path / "bundle", "true", network)
    assert fails(runtime, "create", "--bundle", bundle, "c1").startswith(words.format(bundle=bundle))


def test_sysctl_that_the_guest_lacks_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    bundle = bundle_in(tmp_path / "bundle", "true", "")
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    spec["linux"]["sysctl"] = {"net.none": "1"}
    write(bundle, spec)
    error = fails(runtime, "create", "--bundle", bundle, "c1")
    assert error.startswith("linux.sysctl: net.none: the guest cannot set it: No such file or directory")


def test_failed_create_leaves_the_interface_unchanged(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace
) -> None:
    cable(inside, outside, "eth0", net=1)
    bundle = bundle_in(tmp_path / "bundle", "true", inside.path, args=["/bin/nothing"])
    fails(runtime, "create", "--bundle", bundle, "c1", code=127)
    assert is_clean(inside, "eth0")


@pytest.mark.parametrize("victim", ["nobody", "monitor", "QEMU"])
def test_interface_is_released_whichever_process_is_killed(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace, victim: str
) -> None:
    cable(inside, outside, "eth0", net=1)
    runtime.run_detached(bundle_in(tmp_path / "bundle", "sleep 1000", inside.path), "c1")
    assert not is_clean(inside, "eth0")
    with open(f"{runtime.root}/c1/state.json") as file:
        state = json.load(file)
    [shown] = state["network"]
    assert shown == {"name": "eth0", "mac": inside.shown("link show eth0")[0]["address"], "guest": "0000:06:00.0"}
    if victim != "nobody":
        os.kill(state["monitorPid"] if victim == "monitor" else qemu_of(state["monitorPid"]), signal.SIGKILL)
        wait_until(lambda: runtime.state("c1")["status"] == "stopped")
    assert runtime("delete", "--force", "c1").code == 0
    wait_until(lambda: inside.links() == ["eth0"])
    assert is_clean(inside, "eth0")
    # The next sandbox can use the interface.
    script = f"{BOX} ping -c 1 10.77.1.1"
    result = runtime("run", "--bundle", bundle_in(tmp_path / "next", script, inside.path), "c1")
    assert "1 packets received" in result.output, result
    assert is_clean(inside, "eth0")


def test_pid_on_the_host_is_in_the_containers_network_namespace(
    runtime: Runtime, tmp_path: Path, inside: Namespace
) -> None:
    """Engines read its namespace, and pass its path to other containers of a pod."""
    pid = runtime.run_detached(bundle_in(tmp_path / "bundle", "sleep 1000", inside.path), "c1")
    assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(inside.path).st_ino
