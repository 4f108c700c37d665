"""containerd runs hawse through CRI, as for a kubelet: pods and containers, streams, statistics, and their end."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.bundles import build_probe, make_rootfs
from tests.support.containerd import Containerd
from tests.support.cri import CallError, Cri
from tests.support.host import prove_unchanged, snapshot
from tests.support.images import BUSYBOX_IMAGE, write_archive, write_pause
from tests.support.kubelet_pod import FOREVER, Pod
from tests.support.patience import wait_until
from tests.support.processes import qemu_of

pytestmark = [pytest.mark.vm, pytest.mark.engine]

GROUPS = '[devices]\nannotations = ["devices"]\n[emulated]\n5 = ["edu"]\n6 = ["edu"]\n'
NETWORK = ipaddress.ip_network("10.78.0.0/24")
BOX = "/bin/busybox"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """containerd with the images. stop() checks that nothing is left."""
    directory = str(tmp_path_factory.mktemp("cri"))
    make_rootfs(f"{directory}/rootfs")
    shutil.copy(build_probe(directory), f"{directory}/rootfs/bin/probe")
    containerd = Containerd(directory, hawse=GROUPS)
    try:
        for archive in (
            write_pause(f"{directory}/pause.tar"),
            write_archive(f"{directory}/busybox.tar", [BUSYBOX_IMAGE], f"{directory}/rootfs"),
        ):
            containerd.load(archive, namespace="k8s.io")
        yield containerd
    finally:
        containerd.stop()


@pytest.fixture(scope="module")
def cri(engine: Containerd) -> Iterator[Cri]:
    """The connection of a kubelet, after containerd has found the images."""
    with Cri(engine.address) as connection:
        wait_until(lambda: connection.is_ready() and len(connection("ListImages")["images"]) == 2)
        yield connection


@pytest.fixture(scope="module")
def standing(engine: Containerd, cri: Cri, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """A pod of two containers, the first with a VFIO group, for the tests that do not change it."""
    before = snapshot()
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "81"}
    pod = Pod(engine, cri, str(tmp_path_factory.mktemp("pod")), linux={"sysctls": sysctls})
    pod.run("one", f"echo from $NAME; echo to stderr >&2; {FOREVER}", groups=(5,))
    pod.run("two")
    yield pod
    pod.remove()
    assert engine.left() == []
    prove_unchanged(before)


@pytest.fixture
def pod(standing: Pod) -> Iterator[Pod]:
    """The pod ``standing``; containers that a test adds are removed."""
    before = standing.engine.containers()
    assert len(before) == 3
    yield standing
    for name in {*standing.containers} - {"one", "two"}:
        standing.remove_container(name)
    assert standing.engine.containers() == before


@pytest.fixture
def pods(engine: Containerd, cri: Cri, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Pod]]:
    """A function that creates pods, which are removed after the test."""
    before = engine.containers(), snapshot()
    known = {entry["id"] for entry in cri("ListPodSandbox")["items"]}

    def make(**changes: Any) -> Pod:
        return Pod(engine, cri, str(tmp_path_factory.mktemp("pod")), **changes)

    yield make
    for entry in cri("ListPodSandbox")["items"]:
        if entry["id"] not in known:
            cri("StopPodSandbox", pod_sandbox_id=entry["id"])
            cri("RemovePodSandbox", pod_sandbox_id=entry["id"])
    # When a shim was killed, containerd cleans up after it with a delay.
    wait_until(lambda: engine.containers() == before[0])
    prove_unchanged(before[1])


def test_version_and_status_are_those_that_a_kubelet_needs(cri: Cri) -> None:
    assert cri("Version")["runtime_name"] == "containerd"
    conditions = cri("Status")["status"]["conditions"]
    ready = {entry["type"] for entry in conditions if entry["status"]}
    assert ready >= {"RuntimeReady", "NetworkReady"}


def test_pod_has_an_address_that_answers(pod: Pod) -> None:
    status = pod.sandbox()
    assert (status["state"], status["runtime_handler"]) == ("SANDBOX_READY", "hawse")
    address = status["network"]["ip"]
    assert ipaddress.ip_address(address) in NETWORK
    ping = pod.engine.node.execute(f"{pod.engine.directory}/rootfs/bin/busybox", "ping", "-c", "1", address)
    assert "1 packets received" in ping
    for name in ("one", "two"):
        assert f"inet {address}/24 brd 10.78.0.255" in pod.exec(name, f"{BOX} ip addr show eth0").output
        assert "1 packets received" in pod.exec(name, f"{BOX} ping -c 1 10.78.0.1").output


def test_container_has_the_settings_of_its_pod(pod: Pod) -> None:
    assert pod.exec("two", f"{BOX} hostname; cat /etc/hostname").output == "ship\nship\n"
    resolver = pod.exec("two", "cat /etc/resolv.conf").output
    assert resolver == "search pods.test\nnameserver 10.78.0.1\noptions ndots:5\n"
    assert "10.78.0.9 harbour\n" in pod.exec("two", "cat /etc/hosts").output
    assert pod.exec("two", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").output == "81\n"
    assert pod.exec("two", "cat /proc/self/oom_score_adj; echo $NAME").output == "1000\ntwo\n"
    assert pod.exec("two", "ls /proc/acpi /sys/firmware; cat /proc/keys; grep Seccomp: /proc/self/status").output == (
        "/proc/acpi:\n\n/sys/firmware:\nSeccomp:\t2\n"
    )


def test_containers_of_a_pod_share_network_and_shared_memory(pod: Pod) -> None:
    pod.run("server", f"{BOX} nc -l -p 8080 -e /bin/echo from the other")
    wait_until(lambda: pod.exec("two", f"{BOX} nc 127.0.0.1 8080 </dev/null").output == "from the other\n")
    assert pod.exec("one", "echo shared >/dev/shm/file").code == 0
    assert pod.exec("two", "cat /dev/shm/file").output == "shared\n"
    assert "/pause" not in pod.exec("two", "ps").output


def test_log_has_the_format_that_a_kubelet_reads(pod: Pod) -> None:
    wait_until(lambda: pod.log("one").count("\n") == 2)
    lines = [
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z (\S+ F .*)", line) for line in pod.log("one").splitlines()
    ]
    assert sorted(line[1] if line else "" for line in lines) == ["stderr F to stderr", "stdout F from one"]
    pod.cri("ReopenContainerLog", container_id=pod.containers["one"])


def test_exec(pod: Pod) -> None:
    done = pod.exec("two", "echo out; echo error >&2; exit 7")
    assert (done.code, done.output, done.errors) == (7, "out\n", "error\n")
    with pytest.raises(CallError, match='exec: "/bin/nothing": executable file not found'):
        pod.cri("ExecSync", container_id=pod.containers["two"], cmd=["/bin/nothing"])


def test_exec_is_killed_after_its_timeout(pod: Pod) -> None:
    with pytest.raises(CallError, match="timeout 1s exceeded") as caught:
        pod.exec("two", "exec sleep 987", timeout=1)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    wait_until(lambda: "sleep 987" not in pod.exec("two", "ps").output)


def test_stream_carries_input_output_and_exit_code(pod: Pod) -> None:
    data = os.urandom(300_000)
    script = "head -c 300000 | md5sum; yes | head -c 300000; echo to stderr >&2; exit 3"
    with pod.stream("Exec", "two", cmd=["/bin/sh", "-c", script], stderr=True) as stream:
        for start in range(0, len(data), 10_000):
            stream.send(data[start : start + 10_000])
        seen = stream.end()
    assert seen.code == 3
    assert seen.stdout == f"{hashlib.md5(data).hexdigest()}  -\n".encode() + b"y\n" * 150_000
    assert seen.stderr == b"to stderr\n"


def test_stream_of_a_terminal_is_resized(pod: Pod) -> None:
    with pod.stream("Exec", "two", cmd=["/bin/sh"], tty=True) as stream:
        stream.resize(33, 77)
        stream.send(b"tty; until stty size | grep '33 77'; do :; done; echo e''nd\n")
        assert b"/dev/pts/" in stream.until(b"end\r\n").stdout
        stream.resize(34, 78)
        stream.send(b"until stty size | grep '34 78'; do :; done; exit 6\n")
        assert stream.end().code == 6


def test_port_is_forwarded(pod: Pod) -> None:
    data = os.urandom(300_000)
    answer = "head -c 300000 | md5sum; yes | head -c 300000"
    pod.run("server", f"{BOX} nc -ll -p 8080 -e /bin/sh -c '{answer}'")
    wait_until(lambda: ":1F90 " in pod.exec("server", "cat /proc/net/tcp /proc/net/tcp6").output)
    for _ in range(2):
        with pod.forward(8080) as stream:
            for start in range(0, len(data), 10_000):
                stream.send(data[start : start + 10_000])
            seen = stream.end()
        assert seen.stdout == b"\x90\x1f" + f"{hashlib.md5(data).hexdigest()}  -\n".encode() + b"y\n" * 150_000
        assert seen.stderr == b"\x90\x1f"


def test_forwarding_to_a_closed_port_fails(pod: Pod) -> None:
    with pod.forward(9) as stream:
        assert b"connection reset by peer" in stream.end().stderr


@pytest.mark.parametrize("terminal", [False, True])
def test_attach(pod: Pod, terminal: bool) -> None:
    pod.run("cat", "echo ready; read x; echo got $x; exit 4", stdin=True, stdin_once=True, tty=terminal)
    with pod.stream("Attach", "cat", tty=terminal, stderr=not terminal) as stream:
        stream.send(b"words\n")
        assert b"got words" in stream.end().stdout
    assert pod.await_exit("cat")["exit_code"] == 4
    assert re.search(r"Z stdout F got words\r?\n", pod.log("cat"))


def test_statistics(pod: Pod) -> None:
    def used(stats: dict[str, Any]) -> tuple[int, int]:
        cpu, memory = stats["cpu"]["usage_core_nano_seconds"]["value"], stats["memory"]["working_set_bytes"]["value"]
        return int(cpu), int(memory)

    one = pod.cri("ContainerStats", container_id=pod.containers["one"])["stats"]
    assert min(used(one)) > 0
    listed = {entry["attributes"]["id"]: entry for entry in pod.cri("ListContainerStats")["stats"]}
    assert {*listed} == {*pod.containers.values()}
    assert min(used(listed[pod.containers["two"]])) > 0
    whole = pod.cri("PodSandboxStats", pod_sandbox_id=pod.id)["stats"]["linux"]
    # QEMU is in the cgroup of the pod; the cgroups of the containers have only their proxies.
    assert used(whole)[1] > 64 * 1024 * 1024 > used(one)[1]
    assert used(whole)[0] > used(one)[0]
    assert int(whole["network"]["default_interface"]["rx_bytes"]["value"]) > 0
    assert len(whole["containers"]) == 2


def test_limits_of_a_running_container_change(pod: Pod) -> None:
    container = pod.run("limited")
    limits = {"memory_limit_in_bytes": 64 * 1024 * 1024, "cpu_quota": 50000, "cpu_period": 100000, "cpu_shares": 1024}
    pod.cri("UpdateContainerResources", container_id=container, linux=limits)
    read = pod.exec("limited", f"cd /sys/fs/cgroup/hawse/{container}; cat memory.max cpu.max")
    assert read.output == "67108864\n50000 100000\n"


def test_devices_are_attached_and_detached_with_their_containers(pod: Pod) -> None:
    assert json.loads(pod.exec("one", "probe /dev/vfio/5").output)["passed"]
    assert "No such file" in pod.exec("two", "ls /dev/vfio").errors
    for attempt in ("three", "four"):
        pod.run(attempt, groups=(6,))
        assert json.loads(pod.exec(attempt, "probe /dev/vfio/6").output)["passed"]
        assert "No such file" in pod.exec(attempt, "ls /dev/vfio/5").errors
        pod.remove_container(attempt)
        assert json.loads(pod.exec("one", "probe /dev/vfio/5").output)["passed"]
    # By an annotation, which the engine is configured to pass to the runtime.
    pod.run("five", annotations={"hawse.devices": "6"})
    assert json.loads(pod.exec("five", "probe /dev/vfio/6").output)["passed"]


def test_containers_start_at_once(pod: Pod) -> None:
    names = ["a", "b", "c"]
    with ThreadPoolExecutor(len(names)) as several:
        list(several.map(lambda name: pod.run(name, f"echo {name}; {FOREVER}"), names))
    for name in names:
        assert pod.exec(name, "echo $NAME").output == f"{name}\n"


def test_stopped_container_gets_sigterm_and_then_sigkill(pod: Pod) -> None:
    pod.run("obedient", FOREVER.replace("while", "echo ready; while"))
    wait_until(lambda: "ready" in pod.log("obedient"))
    pod.cri("StopContainer", container_id=pod.containers["obedient"], timeout=60)
    status = pod.status("obedient")
    assert (status["state"], status["exit_code"], status["reason"]) == ("CONTAINER_EXITED", 0, "Completed")
    assert "stdout F received SIGTERM" in pod.log("obedient")
    pod.run("stubborn", "trap '' TERM; echo ready; while :; do sleep 1; done")
    wait_until(lambda: "ready" in pod.log("stubborn"))
    pod.cri("StopContainer", container_id=pod.containers["stubborn"], timeout=1)
    assert pod.status("stubborn")["exit_code"] == 137
    assert pod.exec("two", "echo on").output == "on\n"


def test_end_of_a_container_is_reported(pod: Pod) -> None:
    pod.run("short", "echo bye; echo because >/dev/termination-log; exit 9")
    status = pod.await_exit("short")
    assert (status["exit_code"], status["reason"]) == (9, "Error")
    assert int(status["finished_at"]) > int(status["started_at"]) > 0
    assert "stdout F bye" in pod.log("short")
    assert pod.message("short") == "because\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"command": ["/bin/nothing"]}, 'exec: "/bin/nothing": executable file not found in $PATH'),
        ({"groups": (9,)}, "linux.devices: /dev/vfio/9: group 9 is missing"),
        ({"annotations": {"hawse.none": "1"}}, "annotations: hawse.none is unknown"),
    ],
)
def test_container_that_cannot_start_has_an_error(pod: Pod, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CallError, match=re.escape(words)):
        pod.run("bad", **changes)


def test_network_of_the_host_is_refused(engine: Containerd, pods: Callable[..., Pod]) -> None:
    links = engine.node.links()
    with pytest.raises(CallError) as caught:
        pods(security={"namespace_options": {"network": "NODE", "pid": "CONTAINER"}})
    assert "the container would use the host's network, which a virtual machine cannot share" in caught.value.message
    assert "hostNetwork" in caught.value.message
    assert engine.node.links() == links


def test_containers_of_a_pod_share_a_pid_namespace(pods: Callable[..., Pod]) -> None:
    """With shareProcessNamespace. The containers also fit the restricted pod security standard."""
    shared = {"namespace_options": {"pid": "POD"}}
    pod = pods(security=shared)
    user = {"run_as_user": {"value": 1000}, "run_as_group": {"value": 1000}, "supplemental_groups": [7]}
    restricted = {"readonly_rootfs": True, "no_new_privs": True, "capabilities": {"drop_capabilities": ["ALL"]}}
    pod.run("one", "exec sleep 1234", security=shared)
    pod.run("two", groups=(6,), security=shared | user | restricted)
    seen = pod.exec("two", "ps").output
    assert re.search(r"^ +1 65535 +/pause$", seen, re.M), seen
    assert "sleep 1234" in seen
    assert pod.exec("two", "id").output == "uid=1000 gid=1000 groups=7,1000\n"
    assert "Read-only file system" in pod.exec("two", "touch /new").errors
    status = pod.exec("two", "cat /proc/self/status").output
    assert "CapBnd:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t1\n" in status
    # A node of a device plugin has the owner and mode of the host or the pod. A node by annotation is for all users.
    pod.run("three", security=shared | user | restricted, annotations={"hawse.devices": "5"})
    assert json.loads(pod.exec("three", "probe /dev/vfio/5").output)["passed"]


def test_debug_container_joins_the_pid_namespace_of_another(pod: Pod) -> None:
    target = {"namespace_options": {"pid": "TARGET", "target_id": pod.containers["one"]}}
    pod.run("debug", "exec sleep 4321", security=target)
    seen = pod.exec("debug", "ps").output
    assert "sleep 4321" in seen
    assert "received SIGTERM" in seen


def test_privileged_container(pods: Callable[..., Pod]) -> None:
    pod = pods(security={"privileged": True})
    pod.run("one", groups=(5,), security={"privileged": True, "seccomp": {"profile_type": "Unconfined"}})
    script = "grep -c ' /sys sysfs rw,' /proc/mounts; grep Seccomp: /proc/self/status; ls /dev | grep -c sda"
    assert pod.exec("one", script).output == "1\nSeccomp:\t0\n0\n"
    assert json.loads(pod.exec("one", "probe /dev/vfio/5").output)["passed"]


@pytest.mark.parametrize("victim", ["QEMU", "monitor", "shim"])
def test_pod_whose_vm_is_killed(engine: Containerd, pods: Callable[..., Pod], victim: str) -> None:
    pod = pods()
    pod.run("one", groups=(6,))
    with open(f"{engine.runtime_root}/k8s.io/{pod.id}/state.json") as file:
        monitor = json.load(file)["monitorPid"]
    if victim == "shim":
        engine.kill_shim(pod.id)
    else:
        os.kill(qemu_of(monitor) if victim == "QEMU" else monitor, signal.SIGKILL)
    assert pod.await_exit("one")["exit_code"] in (137, 255)
    wait_until(lambda: bool(pod.sandbox()["state"] == "SANDBOX_NOTREADY"))
    pod.remove()
    # The next pod can use the group.
    after = pods()
    after.run("one", groups=(6,))
    assert json.loads(after.exec("one", "probe /dev/vfio/6").output)["passed"]


def test_pods_outlive_containerd(pod: Pod) -> None:
    pod.engine.restart()
    wait_until(pod.cri.is_ready)
    assert pod.status("one")["state"] == "CONTAINER_RUNNING"
    assert json.loads(pod.exec("one", "probe /dev/vfio/5").output)["passed"]
    pod.run("later")
    assert pod.exec("later", "echo on").output == "on\n"
