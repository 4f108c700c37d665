"""Several containers in one sandbox, as engines create them for a pod: each has its own devices, files and stdio."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import UNLIMITED, add_devices, build_probe, make_bundle, write
from tests.support.host import prove_unchanged, snapshot
from tests.support.netns import Namespace
from tests.support.patience import patience, wait_until
from tests.support.pod_bundles import FOREVER, KIND, SANDBOX, role
from tests.support.processes import holders
from tests.support.running import running_container
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

GROUPS = """
[emulated]
5 = ["edu"]
6 = ["edu"]
7 = ["e1000e", "e1000e"]
8 = ["nvme"]
"""
MEMBERS = ("one", "two", "three", "again")


def bundle(
    directory: Path, name: str, arguments: list[str] = FOREVER, *, groups: tuple[int, ...] = (), **changes: Any
) -> str:
    """A bundle of a container of the pod."""
    path = str(directory / name)
    spec = make_bundle(path, arguments, rlimits=[UNLIMITED])
    shutil.copy(build_probe(str(directory)), f"{path}/rootfs/bin/probe")
    if groups:
        add_devices(spec, [("/dev/vfio/vfio", 10, 196), *((f"/dev/vfio/{group}", 511, group) for group in groups)])
    spec["annotations"] = role(name)
    for key, value in changes.items():
        spec[key] = value
    write(path, spec)
    return path


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A sandbox whose first container runs until the end of the module."""
    directory = tmp_path_factory.mktemp("pod")
    with running_container(str(directory), bundle(directory, "pod"), "pod", configuration=GROUPS) as runtime:
        yield runtime


@pytest.fixture(autouse=True)
def alone(pod: Runtime) -> Iterator[None]:
    """Each test begins and ends with only the first container."""
    yield
    for name in MEMBERS:
        deleted = pod("delete", "--force", name)
        assert (deleted.code, deleted.errors) == (0, "")
    assert shared(pod) == ["pod"]
    assert os.listdir(pod.root) == ["pod"]


def shared(pod: Runtime) -> list[str]:
    """The containers with files in the share, which is mounted only in the mount namespace of the monitor."""
    monitor = pod.monitor("pod")
    return os.listdir(f"/proc/{monitor}/root{pod.root}/pod/share")


def qemus() -> int:
    return len([line for line in snapshot()["processes"] if "qemu-system" in line])


def test_containers_share_only_the_vm(pod: Runtime, tmp_path: Path) -> None:
    machines = qemus()
    for name in ("one", "two"):
        container_bundle = bundle(tmp_path, name)
        (Path(container_bundle) / "rootfs" / "mine").write_text(name)
        pod.run_detached(container_bundle, name)
    assert qemus() == machines
    boots = [pod.shell(name, "cat /proc/sys/kernel/random/boot_id") for name in ("pod", "one", "two")]
    assert [result.code for result in boots] == [0, 0, 0], boots
    assert len({result.output for result in boots}) == 1
    assert [pod.shell(name, "cat /mine").output for name in ("one", "two")] == ["one", "two"]
    assert pod.shell("one", "ps | grep -c '[s]leep 3600$'").output == "1\n", "a PID namespace each"
    listed = {entry["id"]: entry for entry in json.loads(pod("list", "--format", "json").output)}
    assert {name: listed[name]["status"] for name in listed} == {"pod": "running", "one": "running", "two": "running"}
    assert len({entry["pid"] for entry in listed.values()}) == 3


def test_each_container_sees_only_its_own_devices(pod: Runtime, tmp_path: Path) -> None:
    pod.run_detached(bundle(tmp_path, "one", groups=(5,)), "one")
    pod.run_detached(bundle(tmp_path, "two", groups=(6, 7)), "two")
    groups = {name: [entry["host"]["group"] for entry in pod.state(name)["vfio"]] for name in ("pod", "one", "two")}
    assert groups == {"pod": [], "one": [5], "two": [6, 7, 7]}
    for name, group, other in (("one", 5, "two"), ("two", 6, "one")):
        probe = pod.shell(name, f"probe /dev/vfio/{group}")
        assert (probe.code, json.loads(probe.output)["passed"]) == (0, True), probe
        entry = pod.state(other)["vfio"][0]
        for path in entry["nodes"]:
            assert pod.shell(name, f"ls {path}").code != 0, "no node of the other container"
        # Nor by its number: the device cgroup does not permit to open it.
        [line] = pod.shell(other, f"ls -ln {entry['nodes'][0]}").output.splitlines()
        major, minor = (word.rstrip(",") for word in line.split()[4:6])
        opened = pod.shell(name, f"mknod /dev/stolen c {major} {minor} && : <>/dev/stolen")
        assert opened.code != 0
        assert "not permitted" in opened.errors, opened
    table = json.loads(pod.shell("one", "cat /dev/hawse/devices.json").output)
    assert [entry["host"]["group"] for entry in table] == [5]


def test_deleted_container_releases_only_its_devices(pod: Runtime, tmp_path: Path) -> None:
    pod.run_detached(bundle(tmp_path, "one", groups=(5,)), "one")
    pod.run_detached(bundle(tmp_path, "two", groups=(6,)), "two")
    assert pod("delete", "--force", "one").code == 0
    assert pod.shell("two", "probe /dev/vfio/6").code == 0
    pod.run_detached(bundle(tmp_path, "again", groups=(5,)), "again")
    assert pod.shell("again", "probe /dev/vfio/5").code == 0


def test_group_of_several_containers_is_released_with_the_last(pod: Runtime, tmp_path: Path) -> None:
    """For example of an init container, which has ended and is deleted only with its pod."""
    pod.run_detached(bundle(tmp_path, "one", ["/bin/probe", "/dev/vfio/5"], groups=(5,)), "one")
    wait_until(lambda: bool(pod.state("one")["status"] == "stopped"))
    pod.run_detached(bundle(tmp_path, "two", groups=(5,)), "two")
    assert pod.state("two")["vfio"] == pod.state("one")["vfio"]
    assert pod.shell("two", "probe /dev/vfio/5").code == 0
    pod.run_detached(bundle(tmp_path, "three"), "three")
    assert pod("attach", "three", "5").code == 0
    assert pod("delete", "one").code == 0
    assert pod("detach", "two", "5").code == 0
    assert pod.shell("two", "probe /dev/vfio/5").code != 0
    assert pod.shell("three", "probe /dev/vfio/5").code == 0
    assert pod("detach", "three", "5").code == 0
    pod.run_detached(bundle(tmp_path, "again", groups=(5,)), "again")
    assert pod.shell("again", "probe /dev/vfio/5").code == 0


def test_disk_for_the_guest_kernel_is_in_one_container(pod: Runtime, tmp_path: Path) -> None:
    about = {KIND: "container", SANDBOX: "pod", "hawse.device-mode": "guest-kernel"}
    pod.run_detached(bundle(tmp_path, "one", groups=(8,), annotations=about), "one")
    assert pod.state("one")["vfio"][0]["guest"]["driver"] == "nvme"
    # Written data is read back from the disk, bypassing the cache of the guest, up to the last block.
    write = "dd if=/bin/busybox of=/dev/nvme0n1 bs=4096 count=16 oflag=direct seek={} 2>&-"
    read = "dd if=/dev/nvme0n1 bs=4096 count=16 iflag=direct skip={} 2>&- | md5sum"
    script = f"dd if=/bin/busybox bs=4096 count=16 2>&- | md5sum; {read.format(16368)};"
    for place in (0, 16368):
        script += f"{write.format(place)}; {read.format(place)};"
    expected, before, first, last = pod.shell("one", script).output.splitlines()
    assert (first, last) == (expected, expected)
    assert before != expected
    beyond = pod.shell("one", write.format(16384).replace(" 2>&-", ""))
    assert (beyond.code, "No space left" in beyond.errors) == (1, True), beyond
    about = {KIND: "container", SANDBOX: "pod"}
    refused = pod("create", "--bundle", bundle(tmp_path, "two", groups=(8,), annotations=about), "two")
    assert "group 8 is used by a driver of the guest kernel in another container of the pod" in refused.errors


@pytest.mark.parametrize("new", [False, True], ids=["the pod's network", "a network of its own"])
def test_nic_for_the_guest_kernel_is_in_the_network_of_the_container(pod: Runtime, tmp_path: Path, new: bool) -> None:
    about = {KIND: "container", SANDBOX: "pod", "hawse.device-mode": "guest-kernel"}
    path = bundle(tmp_path, "one", groups=(7,), annotations=about)
    if not new:
        spec = json.loads(Path(f"{path}/config.json").read_text())
        for namespace in spec["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = f"/proc/{pod.state('pod')['pid']}/ns/net"
        write(path, spec)
    pod.run_detached(path, "one")
    interfaces = [name for entry in pod.state("one")["vfio"] for name in entry["interfaces"]]
    assert len(interfaces) == 2
    assert {*pod.shell("one", "ls /sys/class/net").output.split()} == {"lo", *interfaces}
    seen_by_the_pod = pod.shell("pod", "ls /sys/class/net").output.split()
    assert set(interfaces).isdisjoint(seen_by_the_pod) == new
    assert pod("delete", "--force", "one").code == 0
    assert pod.shell("pod", "ls /sys/class/net").output.split() == ["lo"]


def test_groups_are_attached_to_a_container_of_a_pod_and_detached(pod: Runtime, tmp_path: Path) -> None:
    pod.run_detached(bundle(tmp_path, "one", groups=(5,)), "one")
    assert pod("attach", "one", "6").code == 0
    assert pod.shell("one", "probe /dev/vfio/6").code == 0
    assert pod("detach", "one", "6").code == 0
    assert pod("attach", "pod", "6").code == 0
    assert pod("detach", "pod", "6").code == 0


def test_each_container_has_its_own_stdio_and_exit_code(pod: Runtime, tmp_path: Path) -> None:
    one = pod.start(
        "run", "--bundle", bundle(tmp_path, "one", ["/bin/sh", "-c", "read line; echo one $line; exit 3"]), "one",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    two = pod.start(
        "run", "--bundle", bundle(tmp_path, "two", ["/bin/sh", "-c", "read line; echo two $line; exit 4"]), "two",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    outputs = [process.communicate(text)[0] for process, text in ((two, b"b\n"), (one, b"a\n"))]
    assert (outputs, one.returncode, two.returncode) == ([b"two b\n", b"one a\n"], 3, 4)
    assert pod.state("pod")["status"] == "running"


def test_killed_container_is_stopped_and_its_pod_continues(pod: Runtime, tmp_path: Path) -> None:
    path = bundle(tmp_path, "one")
    with pod.start("run", "--keep", "--bundle", path, "one", stdin=subprocess.DEVNULL) as process:
        wait_until(lambda: pod("state", "one").code == 0 and pod.state("one")["status"] == "running")
        assert pod("kill", "one", "KILL").code == 0
        assert process.wait() == 137
    assert pod.state("one")["status"] == "stopped"
    assert pod("delete", "one").code == 0
    assert pod("state", "one").code == 1
    pod.run_detached(path, "one")


def test_namespaces_of_the_pod_can_be_joined(pod: Runtime, tmp_path: Path) -> None:
    path = f"/proc/{pod.state('pod')['pid']}/ns"
    spec = make_bundle(str(tmp_path / "scratch"), FOREVER)
    joined = [{"type": kind, "path": f"{path}/{kind}"} for kind in ("pid", "ipc", "uts")]
    linux = spec["linux"] | {"namespaces": [{"type": "mount"}, {"type": "network"}, *joined]}
    pod.run_detached(bundle(tmp_path, "one", linux=linux), "one")
    pod.run_detached(bundle(tmp_path, "two"), "two")
    links = {
        name: pod.shell(name, "for kind in pid ipc uts; do busybox readlink /proc/self/ns/$kind; done").output.split()
        for name in ("pod", "one", "two")
    }
    assert len(links["pod"]) == 3
    assert links["one"] == links["pod"]
    assert set(links["two"]).isdisjoint(links["pod"])


def test_containers_share_the_shared_memory_of_the_pod(pod: Runtime, tmp_path: Path) -> None:
    """CRI engines bind one tmpfs of the host to /dev/shm of each container."""
    memory = tmp_path / "shm"
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "shm", str(memory)], check=True)
    try:
        bind = {"destination": "/dev/shm", "type": "bind", "source": str(memory), "options": ["rbind", "rw"]}
        for name in ("one", "two"):
            path = bundle(tmp_path, name)
            spec = json.loads(Path(f"{path}/config.json").read_text())
            spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] != "/dev/shm"] + [bind]
            write(path, spec)
            pod.run_detached(path, name)
        assert pod.shell("one", "echo shared > /dev/shm/it").code == 0
        assert pod.shell("two", "cat /dev/shm/it").output == "shared\n"
        assert "No space left" in pod.shell("two", "dd if=/dev/zero of=/dev/shm/all bs=64k count=20").errors
        assert os.listdir(memory) == []
    finally:
        subprocess.run(["umount", str(memory)], check=True)


def test_namespace_of_another_pod_is_refused(pod: Runtime, tmp_path: Path) -> None:
    """For example of `podman run --pod=... --pid=container:foreign`. It is not replaced by the namespace of the pod."""
    linux = make_bundle(str(tmp_path / "scratch"), FOREVER)["linux"]
    for kind, path in (("pid", f"/proc/{os.getpid()}/ns/pid"), ("ipc", "/proc/1/ns/ipc"), ("uts", "/run/utsns/none")):
        others = [entry for entry in linux["namespaces"] if entry["type"] != kind]
        joining = linux | {"namespaces": [*others, {"type": kind, "path": path}]}
        refused = pod("create", "--bundle", bundle(tmp_path, f"one-{kind}", linux=joining), "one")
        words = f"hawse: linux.namespaces[type={kind}].path: {path}: belongs to no container in the sandbox pod ["
        assert (refused.code, refused.errors.startswith(words)) == (1, True), refused


def test_all_of_a_container_can_be_killed_after_its_first_process(pod: Runtime, tmp_path: Path) -> None:
    """In the PID namespace of another container the other processes continue, and nothing else ends them before."""
    linux = make_bundle(str(tmp_path / "scratch"), FOREVER)["linux"]
    others = [entry for entry in linux["namespaces"] if entry["type"] != "pid"]
    joined = {"type": "pid", "path": f"/proc/{pod.state('pod')['pid']}/ns/pid"}
    path = bundle(
        tmp_path, "one", ["/bin/sh", "-c", "sleep 4321 & exit 0"], linux=linux | {"namespaces": [*others, joined]}
    )
    pod.run_detached(path, "one")
    wait_until(lambda: pod.state("one")["status"] == "stopped")
    left = "ps | grep -c '[s]leep 4321'"
    assert pod.shell("pod", left).output == "1\n"
    assert "container not running: one" in pod("kill", "one", "9").errors
    assert pod("kill", "--all", "one", "9").code == 0
    wait_until(lambda: pod.shell("pod", left).output == "0\n")
    assert pod("kill", "--all", "one", "9").code == 0


def test_created_container_is_deleted_without_force(pod: Runtime, tmp_path: Path) -> None:
    """As under runc, which engines call when a start has failed. A creation writes the pid file last."""
    pid_file = tmp_path / "pid"
    words = pod.argv("create", "--bundle", bundle(tmp_path, "one"), "--pid-file", str(pid_file), "one")
    null = subprocess.DEVNULL
    with subprocess.Popen(words, stdin=null, stdout=null, stderr=null) as creating:
        wait_until(pid_file.exists)
        state = json.loads(Path(f"{pod.root}/one/state.json").read_text())
        assert (state["status"], str(state["pid"])) == ("created", pid_file.read_text())
    assert creating.returncode == 0
    assert pod("delete", "one").code == 0
    assert pod("state", "one").code == 1


def test_only_the_proxy_has_the_streams_of_a_container(runtime: Runtime, tmp_path: Path) -> None:
    """An engine reads until the other end is closed in every process, so only the proxy may keep it open."""
    for name in ("pod", "one"):
        pipes = [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        numbers = {os.fstat(fd).st_ino for fd in theirs}
        words = runtime.argv("create", "--bundle", bundle(tmp_path, name), name)
        assert subprocess.run(words, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2], check=False).returncode == 0
        for fd in theirs:
            os.close(fd)
        names = {f"pipe:[{number}]" for number in numbers}
        assert set(holders(names.__contains__)) - {os.getpid()} == {runtime.state(name)["pid"]}
        for ours in (pipes[0][1], pipes[1][0], pipes[2][0]):
            os.close(ours)
    for name in ("one", "pod"):
        assert runtime("delete", name).code == 0


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({KIND: "container", SANDBOX: "nobody"}, "sandbox nobody does not exist"),
        ({KIND: "container", SANDBOX: "one"}, "one is not a sandbox: it has joined pod"),
        ({KIND: "container"}, f"annotations: {SANDBOX} is missing"),
        ({KIND: "container", SANDBOX: "../pod"}, "invalid container ID format"),
    ],
)
def test_invalid_sandbox_cannot_be_joined(
    pod: Runtime, tmp_path: Path, annotations: dict[str, str], words: str
) -> None:
    pod.run_detached(bundle(tmp_path, "one"), "one")
    refused = pod("create", "--bundle", bundle(tmp_path, "two", annotations=annotations), "two")
    assert (refused.code, words in refused.errors) == (1, True), refused
    assert pod("state", "two").code == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arguments": ["/bin/none"]}, "no such file or directory"),
        ({"groups": (99,)}, "99"),
        ({"mounts": [{"destination": "/data", "type": "bind", "source": "/gone", "options": ["bind"]}]}, "/gone"),
    ],
)
def test_container_that_cannot_be_created_leaves_nothing(
    pod: Runtime, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    before = snapshot()
    refused = pod("create", "--bundle", bundle(tmp_path, "one", **changes), "one")
    assert refused.code != 0
    assert words in refused.errors.lower(), refused
    assert os.listdir(pod.root) == ["pod"]
    assert shared(pod) == ["pod"]
    prove_unchanged(before)
    pod.run_detached(bundle(tmp_path, "two", groups=(5,)), "two")


def test_creation_by_a_killed_engine_leaves_nothing(pod: Runtime, tmp_path: Path) -> None:
    before = snapshot()
    path = bundle(tmp_path, "one", groups=(5, 6))
    creating = pod.start("create", "--bundle", path, "one", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until(lambda: os.path.exists(f"{pod.root}/one/state.json"))
    creating.kill()
    creating.wait()
    # The proxy has lost its monitor, and the monitor its caller. Both undo their steps.
    wait_until(lambda: shared(pod) == ["pod"])
    assert pod("delete", "--force", "one").code == 0
    prove_unchanged(before)
    pod.run_detached(path, "one")
    assert pod.shell("one", "probe /dev/vfio/5").code == 0


@pytest.mark.parametrize("engine", ["waits for the creation", "has killed it"])
def test_container_deleted_during_its_creation_leaves_nothing(pod: Runtime, tmp_path: Path, engine: str) -> None:
    """containerd does this after a creation that it has cancelled: at once and with --force."""
    before = snapshot()
    path = bundle(tmp_path, "one", groups=(5, 7))
    null = subprocess.DEVNULL
    creating = pod.start("create", "--bundle", path, "one", stdin=null, stdout=null, stderr=subprocess.PIPE)
    wait_until(lambda: os.path.exists(f"{pod.root}/one/state.json"))
    if engine == "has killed it":
        creating.kill()
    deleted = pod("delete", "--force", "one")
    assert (deleted.code, deleted.errors) == (0, "")
    # By then it is removed from the VM, together with its directories.
    assert shared(pod) == ["pod"]
    assert os.listdir(pod.root) == ["pod"]
    _, errors = creating.communicate(timeout=patience(10))
    if engine != "has killed it":
        assert (creating.returncode, errors) == (1, b"hawse: container one was deleted while it was created\n")
    prove_unchanged(before)
    pod.run_detached(path, "one")
    assert pod.shell("one", "probe /dev/vfio/5").code == 0


def test_files_mounted_after_the_start_of_the_sandbox_are_shared(pod: Runtime, tmp_path: Path) -> None:
    """For example the root file system of a later container, when the monitor already uses a private mount
    namespace."""
    path = bundle(tmp_path, "one")
    subprocess.run(["mount", "-t", "tmpfs", "late", f"{path}/rootfs/tmp"], check=True)
    try:
        Path(f"{path}/rootfs/tmp/late").write_text("here")
        pod.run_detached(path, "one")
        assert pod.shell("one", "cat /tmp/late").output == "here"
        assert pod("delete", "--force", "one").code == 0
    finally:
        subprocess.run(["umount", f"{path}/rootfs/tmp"], check=True)


def test_network_is_that_of_the_pod_or_a_new_one(pod: Runtime, tmp_path: Path) -> None:
    """Engines pass the network namespace of the sandbox by its pid. That of another pod is refused."""
    linux = make_bundle(str(tmp_path / "scratch"), FOREVER)["linux"]

    def joining(name: str, path: str) -> str:
        others = [entry for entry in linux["namespaces"] if entry["type"] != "network"]
        network = {"type": "network"} | ({"path": path} if path else {})
        return bundle(tmp_path, name, linux=linux | {"namespaces": [*others, network]})

    pod.run_detached(joining("one", f"/proc/{pod.state('pod')['pid']}/ns/net"), "one")
    pod.run_detached(joining("two", ""), "two")
    inside, pods, new = (pod.shell(name, "busybox readlink /proc/self/ns/net").output for name in ("one", "pod", "two"))
    assert inside == pods != new
    assert pod.shell("two", "ls /sys/class/net").output == "lo\n"
    on_host = [os.readlink(f"/proc/{pod.state(name)['pid']}/ns/net") for name in ("pod", "one", "two")]
    assert on_host[0] == on_host[1] != on_host[2]
    with Namespace() as other:
        refused = pod("create", "--bundle", joining("three", other.path), "three")
    assert refused.code == 1
    assert f"{other.path}: not the network of sandbox pod, which the container joins" in refused.errors


def test_containers_end_with_their_sandbox(tmp_path: Path) -> None:
    before = snapshot()
    runtime = Runtime(str(tmp_path))
    runtime.configure(GROUPS)
    for how in ("its first container", "its monitor"):
        runtime.run_detached(bundle(tmp_path, "pod"), "pod")
        with runtime.start("run", "--keep", "--bundle", bundle(tmp_path, "one", groups=(5,)), "one") as process:
            wait_until(lambda: runtime("state", "one").code == 0 and runtime.state("one")["status"] == "running")
            # The status changes shortly before `start` returns.
            assert runtime("exec", "one", "/bin/true").code == 0
            if how == "its monitor":
                os.kill(runtime.monitor("pod"), signal.SIGKILL)
            else:
                assert runtime("kill", "pod", "KILL").code == 0
            assert process.wait() in (1, 255)
        wait_until(lambda: runtime.state("pod")["status"] == "stopped")
        assert runtime.state("one")["status"] == "stopped"
        late = runtime("create", "--bundle", bundle(tmp_path, "two"), "two")
        assert "is stopped: no container can join it" in late.errors
        for name in ("one", "pod"):
            assert runtime("delete", name).code == 0
        prove_unchanged(before)
        shutil.rmtree(tmp_path / "one")
        shutil.rmtree(tmp_path / "pod")
        shutil.rmtree(tmp_path / "two")
