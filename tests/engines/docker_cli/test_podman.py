"""What Podman does in its own way (docs/podman.md)."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.version import VERSION
from tests.support import traces
from tests.support.bundles import build_probe
from tests.support.docker_cli import serving
from tests.support.loops import loop_devices
from tests.support.notified import Notified
from tests.support.patience import patience, wait_until
from tests.support.podman import IMAGE, Podman
from tests.support.processes import qemu_of
from tests.support.programs import compiled_file
from tests.support.runtime import Runtime, handing_on
from tests.support.soak import rounds
from tests.support.subprocesses import run

pytestmark = [pytest.mark.vm, pytest.mark.engine]

#: The directory with the programs of the VM tests.
VM = Path(__file__).parents[2] / "vm"


@pytest.fixture
def service(podman: Podman, files: Path) -> Iterator[str]:
    """A container that serves files of a volume."""
    with serving(podman, files) as name:
        yield name


def test_file_descriptor_is_preserved(podman: Podman) -> None:
    reading, writing = os.pipe()
    argv = ["podman", "run", "--rm", "--preserve-fds", "1", IMAGE, "cat", "/proc/self/fd/3"]
    pipe = subprocess.PIPE
    process = handing_on(argv, reading, env=podman.environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    os.close(reading)
    os.write(writing, b"from a pipe\n")
    os.close(writing)
    output, errors = process.communicate(timeout=patience(100))
    assert (process.returncode, output) == (0, b"from a pipe\n"), errors


def test_podman_reads_statistics_and_processes(podman: Podman, service: str) -> None:
    memory = podman.must("stats", "--no-stream", "--format", "{{.MemUsageBytes}} {{.PIDs}} {{.CPUNano}}", service)
    used, pids, cpu = (float(re.match(r"[\d.]+", word)[0]) for word in (*memory.split(" / ")[:1], *memory.split()[-2:]))  # type: ignore[index]
    assert used > 0
    assert pids > 1
    assert cpu > 0
    title, *processes = podman.must("top", service, "pid", "args").splitlines()
    assert title.split() == ["PID", "COMMAND"]
    assert len(processes) == 1  # processes of the host are not listed
    assert processes[0].split()[0] == "1"
    assert "echo to stdout" in processes[0]
    assert "httpd -p 8080" in podman.must("top", service, "-o", "pid,args")


def test_podman_reads_the_version(podman: Podman) -> None:
    said = podman.must("info", "--format", "{{.Host.OCIRuntime.Name}}: {{.Host.OCIRuntime.Version}}")
    assert said.startswith(f"hawse: hawse version {VERSION}\n"), said


def test_files_are_copied_to_the_container_and_not_to_the_host(
    podman: Podman, service: str, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "whose").write_text("the container\n")
    podman.must("cp", f"{tmp_path}/whose", f"{service}:/data/copied")
    assert (files / "copied").read_text() == "the container\n"
    (files / "copied").unlink()
    name = f"hawse-{os.getpid()}"
    podman.must("cp", f"{tmp_path}/whose", f"{service}:/etc/{name}")
    assert podman.must("exec", service, "cat", f"/etc/{name}") == "the container\n"
    assert not os.path.exists(f"/etc/{name}")
    # The host cannot write to a tmpfs of the guest, so this must be an error.
    assert "read-only file system" in podman("cp", f"{tmp_path}/whose", f"{service}:/scratch/x").errors


def test_directory_and_image_are_mounted_as_overlays(podman: Podman, tmp_path: Path) -> None:
    """Files that are written to the directory disappear with the container."""
    data = tmp_path / "data and more"
    data.mkdir()
    (data / "file").write_text("below\n")
    script = (
        "cat /data/file; echo above > /data/file; echo new > /data/new; cat /data/*; ls /image/bin/sh; : > /image/x"
    )
    mounts = ["--volume", f"{data}:/data:O", "--mount", f"type=image,source={IMAGE},destination=/image"]
    done = podman("run", "--rm", *mounts, IMAGE, "sh", "-c", script)
    assert done.output == "below\nabove\nnew\n/image/bin/sh\n", done
    assert "Read-only file system" in done.errors
    assert {path.name: path.read_text() for path in data.iterdir()} == {"file": "below\n"}


def test_containers_of_a_network_resolve_their_names(podman: Podman) -> None:
    podman.must("network", "create", "net")
    try:
        podman.must("run", "--detach", "--name", "first", "--network", "net", IMAGE, "sleep", "1000")
        ping = ["busybox", "ping", "-c", "1", "-W", "10", "first"]
        podman.must("run", "--rm", "--cap-add", "NET_RAW", "--network", "net", IMAGE, *ping)
    finally:
        podman("rm", "--force", "--time", "0", "first")
        podman("network", "rm", "--force", "net")


@pytest.mark.parametrize("mode", ["container", "conmon"])
def test_readiness_is_notified_by_the_container_or_by_podman(podman: Podman, mode: str) -> None:
    """In mode "container", for units with Notify=true (Quadlet, `podman generate systemd`), conmon relays notifications
    from a socket that Podman mounts at /run/notify. In mode "conmon", Podman reports once the container runs."""
    program = compiled_file(f"{VM}/notify.c")
    script = "notify 'STATUS=up' 'READY=1\nMAINPID=1' WATCHDOG=1 && echo notified; while :; do sleep 1; done"
    with tempfile.TemporaryDirectory(dir="/tmp") as directory, Notified(f"{directory}/host.sock") as host:
        done = run(
            ["podman", "run", "--detach", "--name", "notifies", f"--sdnotify={mode}",
             "--volume", f"{program}:/bin/notify:ro", IMAGE, "sh", "-c", script],
            environment=podman.environment | {"NOTIFY_SOCKET": host.address}, seconds=75,
        )  # fmt: skip
        try:
            assert done.code == 0, done
            messages = [host.next()[1] for _ in range(3 if mode == "container" else 1)]
            conmon = podman.inspect("notifies")["State"]["ConmonPid"]
            if mode == "container":
                assert sorted(messages) == [[f"MAINPID={conmon}"], ["READY=1"], ["WATCHDOG=1"]]
                wait_until(lambda: "notified" in podman("logs", "notifies").output)
            else:
                assert messages == [[f"MAINPID={conmon}", "READY=1"]]
        finally:
            podman("rm", "--force", "--time", "0", "notifies")


def test_disk_is_passed_and_a_terminal_of_the_host_is_refused(podman: Podman, tmp_path: Path) -> None:
    with loop_devices(str(tmp_path), []) as [disk]:
        disk.fill(0, b"of the host")
        script = "head -c 11 /dev/xvda; echo x > /dev/xvda"
        done = podman("run", "--rm", "--device", f"/dev/{disk.name}:/dev/xvda:r", IMAGE, "sh", "-c", script)
        assert done.output == "of the host", done
        assert "Operation not permitted" in done.errors
        assert disk.holders() == set()
    refused = podman("run", "--rm", "--device", "/dev/tty1", IMAGE, "true")
    assert "linux.devices: /dev/tty1 (4:1, tty1, driver tty)" in refused.errors


FETCH = "busybox wget -qO /dev/null http://127.0.0.1:9000/busybox"
POD = f"""
apiVersion: v1
kind: Pod
metadata: {{name: pod}}
spec:
  containers:
  - name: server
    image: {IMAGE}
    imagePullPolicy: Never
    command: ["sh", "-c", "busybox httpd -f -p 9000 -h /bin"]
    resources: {{limits: {{memory: 200Mi}}}}
  - name: client
    image: {IMAGE}
    imagePullPolicy: Never
    command: ["sh", "-c", "until {FETCH}; do sleep 1; done; sleep 1000"]
"""


def test_pod_of_a_kubernetes_file_is_one_vm(podman: Podman, hawse: Runtime, tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(POD)
    podman.must("kube", "play", f"{tmp_path}/pod.yaml")
    try:
        machines = {hawse.monitor(name) for name in os.listdir(hawse.root)}
        assert (len(os.listdir(hawse.root)), len(machines)) == (3, 1)
        fetched = ("exec", "pod-client", *FETCH.split())
        wait_until(lambda: podman(*fetched).code == 0)
        podman.must("restart", "--time", "0", "pod-client")
        podman.must(*fetched)
    finally:
        podman("kube", "down", f"{tmp_path}/pod.yaml")
    assert os.listdir(hawse.root) == []


def test_device_belongs_to_one_container_of_a_pod(podman: Podman, nodes: Path, tmp_path: Path) -> None:
    podman.must("pod", "create", "--name", "pod")
    try:
        podman.must("run", "--detach", "--pod", "pod", "--name", "without", IMAGE, "sleep", "1000")
        done = podman(
            "run", "--rm", "--pod", "pod", "--device", f"{nodes}/vfio:/dev/vfio/vfio",
            "--device", f"{nodes}/5:/dev/vfio/5", "--ulimit", "memlock=-1:-1",
            "--volume", f"{build_probe(str(tmp_path))}:/probe:ro", IMAGE, "/probe", "/dev/vfio/5",
        )  # fmt: skip
        assert done.code == 0, done
        assert podman("exec", "without", "ls", "/dev/vfio").code != 0
    finally:
        podman.remove_pod("pod")


def test_container_in_a_pod_with_a_user_namespace_drives_a_device(podman: Podman, nodes: Path, tmp_path: Path) -> None:
    """The containers join the user namespace of the first by its path, and the node has another path than usual.

    Without a network, since Podman 4.3 leaves the network namespace of such a pod mounted, with runc as well.
    """
    maps = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")
    podman.must("pod", "create", "--name", "pod", "--network", "none", *maps)
    try:
        script = "echo $(cat /proc/self/uid_map /proc/self/gid_map) $(stat -c '%u %g' /probe /dev/vfio-mine/5);"
        done = podman(
            "run", "--rm", "--pod", "pod", "--device", f"{nodes}/vfio:/dev/vfio/vfio",
            "--device", f"{nodes}/5:/dev/vfio-mine/5", "--ulimit", "memlock=-1:-1",
            "--volume", f"{build_probe(str(tmp_path))}:/probe:ro", IMAGE, "sh", "-c",
            f"{script} exec /probe /dev/vfio-mine/5",
        )  # fmt: skip
        assert done.code == 0, done
        assert done.output.splitlines()[0] == "0 100000 65536 0 200000 65536 65534 65534 0 0"
    finally:
        podman.remove_pod("pod")


def test_containers_of_a_pod_share_the_requested_namespaces(podman: Podman) -> None:
    podman.must("pod", "create", "--name", "pod", "--hostname", "ship", "--share", "net,ipc,uts,pid")
    try:
        script = "echo shared >/dev/shm/file; exec sleep 1234"
        podman.must("run", "--detach", "--pod", "pod", "--name", "first", IMAGE, "sh", "-c", script)
        script = "busybox hostname; until cat /dev/shm/file; do sleep 1; done; busybox ip -o addr show; ps"
        seen = podman.must("run", "--rm", "--pod", "pod", IMAGE, "sh", "-c", script)
        assert seen.startswith("ship\nshared\n")
        assert "sleep 1234" in seen
        own = podman.must("exec", "first", "busybox", "ip", "-o", "addr", "show", "eth0").split()
        assert own[3] in seen.split()
    finally:
        podman.remove_pod("pod")


#: The number of containers in a row; a fifth of it is started at once.
ROUNDS = rounds(5, soak=100)


@pytest.mark.soak
def test_containers_in_a_row_and_at_once_leave_nothing(podman: Podman, hawse: Runtime) -> None:
    """Between them no process of hawse or Podman exists, so nothing else than the compared snapshots can grow."""

    def look() -> traces.Kinds:
        # The directories of containers, and the one for temporary files, which also contains files of the runtime.
        graph = f"{podman.directory}/graph"
        own = [f"{graph}/overlay-containers", f"{podman.directory}/run/overlay-containers"]
        here = {f"{podman.directory}/{name}" for name in os.listdir(podman.directory)}
        layers = {name for name in os.listdir(f"{graph}/overlay") if name != "l"}
        return traces.take(hawse.root, *own) | {"beside": here, "layers": layers}

    podman.must("run", "--rm", IMAGE, "true")
    podman.await_cleanup()  # a process that is still exiting must not be part of the comparison
    before = look()
    for _ in range(ROUNDS):
        podman.must("run", "--rm", IMAGE, "true")
    traces.prove_same(before, look)
    started = [podman.start("run", "--rm", IMAGE, "true") for _ in range(max(2, ROUNDS // 5))]
    assert [process.wait() for process in started] == [0] * len(started)
    traces.prove_same(before, look)
    assert os.listdir(hawse.root) == []


#: Prints threads, KiB of memory and descriptors of the agent: the first process that a container without a PID
#: namespace sees.
AGENT = "grep -E 'Threads|RssAnon' /proc/1/status; echo Descriptors: $(ls /proc/1/fd | wc -l)"
#: The memory by which a Python process may grow: the first threads cost the agent from 0.5 to 2.5 MiB.
SLACK_KIB = 4096


@pytest.mark.soak
def test_containers_in_a_row_do_not_grow_their_pod(podman: Podman, hawse: Runtime) -> None:
    """The monitor, QEMU and the agent live as long as the pod, and do not grow with its containers.

    Of QEMU only the descriptors are compared: without KVM it keeps the translated code of all programs.
    """
    podman.must("pod", "create", "--name", "pod")
    try:
        podman.must("run", "--detach", "--pod", "pod", "--name", "stays", IMAGE, "sleep", "100000")
        [monitor] = {hawse.monitor(name) for name in os.listdir(hawse.root)}
        qemu = qemu_of(monitor)

        def look() -> dict[str, int]:
            words = ["--rm", "--pod", "pod", "--pid", "host", "--privileged", IMAGE, "sh", "-c", AGENT]
            said = re.findall(r"(\w+):\s+(\d+)", podman.must("run", *words))
            held = {f"{name} descriptors": traces.held(pid).total() for name, pid in (("m", monitor), ("q", qemu))}
            return {"monitor KiB": traces.private_kib(monitor)} | held | {name: int(count) for name, count in said}

        def run(count: int) -> None:
            for _ in range(count):
                podman.must("run", "--rm", "--pod", "pod", IMAGE, "true")

        run(3)
        before = look()
        run(ROUNDS)
        after = look()
        print(f"before {ROUNDS} containers {before}, after them {after}")
        for what, count in after.items():
            assert count - before[what] <= (SLACK_KIB if what in ("monitor KiB", "RssAnon") else 0), what
    finally:
        podman.remove_pod("pod")
