"""Podman drives hawse by its own conventions (docs/podman.md)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.version import VERSION
from tests.support import traces
from tests.support.bundles import build_probe
from tests.support.engines import SHOW_LIMITS, read_hosts_disk
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

#: Where tests of virtual machines have programs.
VM = Path(__file__).parents[1] / "vm"
#: Says that it is there, serves its files over HTTP, and has an end of its own for SIGTERM.
SERVICE = "trap 'echo asked to end; exit 7' TERM; echo to stdout; echo to stderr >&2; busybox httpd -p 8080 -h /data; "
SERVICE += "while :; do sleep 1; done"
LISTENS = "busybox netstat -ltn | grep -q :8080"


def test_a_command_runs_with_what_it_was_given(podman: Podman) -> None:
    script = "id -u; pwd; echo $GREETING; echo $(cat /etc/hostname); cat; touch /file; exit 3"
    done = podman(
        "run", "--rm", "--interactive", "--user", "1000:1000", "--workdir", "/tmp", "--env", "GREETING=hello",
        "--hostname", "inside", "--read-only", "--tmpfs", "/not/there/before", IMAGE, "sh", "-c", script,
        stdin="from stdin\n",
    )  # fmt: skip
    assert done.output.splitlines() == ["1000", "/tmp", "hello", "inside", "from stdin"]
    assert "Read-only file system" in done.errors
    assert done.code == 3


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["/bin/false"], 1, ""),
        (["/bin/nothing"], 127, "no such file or directory"),
        (["/etc"], 126, "permission denied"),
    ],
)
def test_what_cannot_run_is_told_by_code_and_words(podman: Podman, command: list[str], code: int, words: str) -> None:
    done = podman("run", "--rm", IMAGE, *command)
    assert done.code == code, done
    assert words in done.errors.lower()


def test_the_hosts_network_is_refused(podman: Podman) -> None:
    done = podman("run", "--rm", "--network", "host", IMAGE, "true")
    assert done.code == 126
    assert "the container would have the host's network, which a virtual machine cannot share" in done.errors


def test_a_terminal_is_one(podman: Podman) -> None:
    """Its line ends, too: conmon sets the terminal anew (conmon src/ctrl.c), and each still has one return."""
    said = podman.on_terminal("run", "--rm", "--interactive", "--tty", IMAGE, "sh", "-c", "tty; echo end")
    assert said == "/dev/pts/0\r\nend\r\n"


def test_a_descriptor_is_handed_on(podman: Podman) -> None:
    reading, writing = os.pipe()
    argv = ["podman", "run", "--rm", "--preserve-fds", "1", IMAGE, "cat", "/proc/self/fd/3"]
    pipe = subprocess.PIPE
    process = handing_on(argv, reading, env=podman.environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    os.close(reading)
    os.write(writing, b"from a pipe\n")
    os.close(writing)
    output, errors = process.communicate(timeout=patience(100))
    assert (process.returncode, output) == (0, b"from a pipe\n"), errors


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("files")
    (directory / "page").write_text("a page\n")
    return directory


@pytest.fixture
def service(podman: Podman, files: Path) -> Iterator[str]:
    """A container that serves files of a volume."""
    podman.must(
        "run", "--detach", "--name", "service", "--publish", "127.0.0.1:18080:8080", "--volume", f"{files}:/data",
        "--tmpfs", "/scratch", "--memory", "300m", "--cpus", "1", IMAGE, "sh", "-c", SERVICE,
    )  # fmt: skip
    # Until then a signal has no trap, and a container's first process ignores it.
    wait_until(lambda: "to stdout" in podman("logs", "service").output)
    yield "service"
    podman("rm", "--force", "--time", "0", "service")


def test_a_container_is_used_while_it_runs(podman: Podman, service: str) -> None:
    assert "Up" in podman.must("ps", "--filter", f"name={service}", "--format", "{{.Status}}")
    done = podman("exec", service, "sh", "-c", "cat /data/page; exit 3")
    assert (done.code, done.output) == (3, "a page\n")
    assert "/dev/pts/" in podman.on_terminal("exec", "--interactive", "--tty", service, "tty")
    logs = podman("logs", service)
    assert (logs.output, logs.errors) == ("to stdout\n", "to stderr\n")
    # Through the published port, and from the host to the container's own address.
    wait_until(lambda: podman("exec", service, "sh", "-c", LISTENS).code == 0)
    address = podman.inspect(service)["NetworkSettings"]["IPAddress"]
    for place in ("127.0.0.1:18080", f"{address}:8080"):
        with urllib.request.urlopen(f"http://{place}/page", timeout=patience(5)) as answer:
            assert answer.read() == b"a page\n"
    memory = podman.must("stats", "--no-stream", "--format", "{{.MemUsageBytes}} {{.PIDs}} {{.CPUNano}}", service)
    used, pids, cpu = (float(re.match(r"[\d.]+", word)[0]) for word in (*memory.split(" / ")[:1], *memory.split()[-2:]))  # type: ignore[index]
    assert used > 0
    assert pids > 1
    assert cpu > 0
    title, *processes = podman.must("top", service, "pid", "args").splitlines()
    assert title.split() == ["PID", "COMMAND"]
    assert len(processes) == 1  # the host's are not shown
    assert processes[0].split()[0] == "1"
    assert "echo to stdout" in processes[0]
    assert "httpd -p 8080" in podman.must("top", service, "-o", "pid,args")


def test_limits_change_while_it_runs(podman: Podman, service: str) -> None:
    podman.must("update", "--memory", "400m", "--memory-swap", "400m", "--cpus", "0.5", service)
    assert podman.must("exec", service, "sh", "-c", SHOW_LIMITS) == f"{400 << 20}\n50000 100000\n"


def test_what_podman_reads_of_its_version(podman: Podman) -> None:
    said = podman.must("info", "--format", "{{.Host.OCIRuntime.Name}}: {{.Host.OCIRuntime.Version}}")
    assert said.startswith(f"hawse: hawse version {VERSION}\n"), said


def test_files_are_copied_from_and_to_the_container_and_not_the_host(
    podman: Podman, service: str, files: Path, tmp_path: Path
) -> None:
    podman.must("exec", service, "sh", "-c", "echo the container > /etc/whose")
    podman.must("cp", f"{service}:/etc/whose", f"{tmp_path}/whose")
    assert (tmp_path / "whose").read_text() == "the container\n"
    podman.must("cp", f"{tmp_path}/whose", f"{service}:/data/copied")
    assert (files / "copied").read_text() == "the container\n"
    (files / "copied").unlink()
    name = f"hawse-{os.getpid()}"
    podman.must("cp", f"{tmp_path}/whose", f"{service}:/etc/{name}")
    assert podman.must("exec", service, "cat", f"/etc/{name}") == "the container\n"
    assert not os.path.exists(f"/etc/{name}")
    # What only the guest has, the host cannot write to; it is not lost in silence.
    assert "read-only file system" in podman("cp", f"{tmp_path}/whose", f"{service}:/scratch/x").errors


def test_a_container_is_paused_stopped_started_again_and_killed(podman: Podman, service: str) -> None:
    podman.must("pause", service)
    assert podman.inspect(service)["State"]["Status"] == "paused"
    podman.must("unpause", service)
    podman.must("stop", "--time", "20", service)
    assert podman.inspect(service)["State"]["ExitCode"] == 7
    assert podman.must("logs", service).endswith("asked to end\n")
    podman.must("start", service)
    assert podman.must("exec", service, "echo", "again") == "again\n"
    podman.must("kill", "--signal", "KILL", service)
    assert podman.must("wait", service) == "137\n"


def test_a_named_volume_outlives_its_container(podman: Podman) -> None:
    podman.must("run", "--rm", "--volume", "kept:/data", IMAGE, "sh", "-c", "echo kept > /data/it")
    assert podman.must("run", "--rm", "--volume", "kept:/data:ro", IMAGE, "cat", "/data/it") == "kept\n"
    podman.must("volume", "rm", "kept")


def test_directory_and_image_are_mounted_as_overlays(podman: Podman, tmp_path: Path) -> None:
    """What is written to the directory goes with the container."""
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


def test_containers_of_a_network_know_each_other_by_name(podman: Podman) -> None:
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
    """As a unit of systemd with Notify=true has it (Quadlet, `podman generate systemd`): conmon relays from a socket
    that Podman mounts at /run/notify. In the other mode Podman is ready once the container runs."""
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
            found = [host.next()[1] for _ in range(3 if mode == "container" else 1)]
            conmon = podman.inspect("notifies")["State"]["ConmonPid"]
            if mode == "container":
                assert sorted(found) == [[f"MAINPID={conmon}"], ["READY=1"], ["WATCHDOG=1"]]
                wait_until(lambda: "notified" in podman("logs", "notifies").output)
            else:
                assert found == [[f"MAINPID={conmon}", "READY=1"]]
        finally:
            podman("rm", "--force", "--time", "0", "notifies")


def test_a_vfio_device_is_one(podman: Podman, nodes: Path, tmp_path: Path) -> None:
    """The same arguments as with runc, but for the emulated group's node, which is no host's."""
    done = podman(
        "run", "--rm", "--device", f"{nodes}/vfio:/dev/vfio/vfio", "--device", f"{nodes}/5:/dev/vfio/5",
        "--ulimit", "memlock=-1:-1", "--volume", f"{build_probe(str(tmp_path))}:/probe:ro", IMAGE, "/probe",
        "/dev/vfio/5",
    )  # fmt: skip
    assert done.code == 0, done
    assert "dma" in done.output.lower()


def test_a_privileged_container_has_no_device_of_the_host(podman: Podman) -> None:
    """Podman names every node of the host then, its disks too, but the kernel behind the numbers is the guest's."""
    done = podman("run", "--rm", "--privileged", IMAGE, "sh", "-c", read_hosts_disk())
    assert done.code == 1, done
    assert "No such device or address" in done.errors


def test_a_disk_is_passed_and_a_terminal_of_the_host_refused(podman: Podman, tmp_path: Path) -> None:
    with loop_devices(str(tmp_path), []) as [disk]:
        disk.fill(0, b"of the host")
        script = "head -c 11 /dev/xvda; echo x > /dev/xvda"
        done = podman("run", "--rm", "--device", f"/dev/{disk.name}:/dev/xvda:r", IMAGE, "sh", "-c", script)
        assert done.output == "of the host", done
        assert "Operation not permitted" in done.errors
        assert disk.holders() == set()
    refused = podman("run", "--rm", "--device", "/dev/tty1", IMAGE, "true")
    assert "linux.devices: /dev/tty1 (4:1, tty1, driver tty)" in refused.errors


@pytest.mark.parametrize("victim", ["QEMU", "monitor"])
def test_a_container_whose_machine_is_killed(podman: Podman, hawse: Runtime, victim: str) -> None:
    podman.must("run", "--rm", IMAGE, "true")
    podman.await_cleanup()  # a process that is still exiting must not be part of the comparison
    before = traces.take(hawse.root)
    podman.must("run", "--detach", "--name", "victim", IMAGE, "sleep", "1000")
    try:
        [name] = os.listdir(hawse.root)
        monitor = hawse.monitor(name)
        os.kill(qemu_of(monitor) if victim == "QEMU" else monitor, signal.SIGKILL)
        assert podman.must("wait", "victim") in ("137\n", "255\n")
        assert podman.inspect("victim")["State"]["Status"] == "exited"
        assert podman("exec", "victim", "true").code != 0
        # It is as any that has ended: it can be begun again.
        podman.must("start", "victim")
        assert podman.must("exec", "victim", "echo", "again") == "again\n"
    finally:
        podman("rm", "--force", "--time", "0", "victim")
    traces.prove_same(before, lambda: traces.take(hawse.root))


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


def test_a_pod_of_a_kubernetes_file_is_one_machine(podman: Podman, hawse: Runtime, tmp_path: Path) -> None:
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


def test_a_device_is_one_containers_of_a_pod(podman: Podman, nodes: Path, tmp_path: Path) -> None:
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
        podman("pod", "rm", "--force", "--time", "0", "pod")


def test_pod_has_users_of_its_own_who_drive_a_device(podman: Podman, nodes: Path, tmp_path: Path) -> None:
    """Its containers join the user namespace of the first by path, and the node is at a path of another name.

    Without a network: Podman 4.3 leaves that of such a pod mounted, with runc as well.
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
        podman("pod", "rm", "--force", "--time", "0", "pod")


def test_the_containers_of_a_pod_share_what_it_says(podman: Podman) -> None:
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
        podman("pod", "rm", "--force", "--time", "0", "pod")


#: Containers in a row, and a fifth of it at once.
ROUNDS = rounds(5, soak=100)


@pytest.mark.soak
def test_containers_in_a_row_and_at_once_leave_nothing(podman: Podman, hawse: Runtime) -> None:
    """No process of hawse or Podman exists between them, so nothing can grow but what is compared."""

    def look() -> traces.Kinds:
        # Of Podman's own directories those of containers, and that for temporary files, which is the runtime's, too.
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


#: Of a pod's machine, whose processes a container sees that has no namespace of its own for them: the agent is the
#: first. Threads, KiB of memory, descriptors.
AGENT = "grep -E 'Threads|RssAnon' /proc/1/status; echo Descriptors: $(ls /proc/1/fd | wc -l)"
#: What an interpreter may have more: its first threads cost the agent from half a MiB to two and a half.
SLACK_KIB = 4096


@pytest.mark.soak
def test_containers_in_a_row_grow_nothing_of_their_pods(podman: Podman, hawse: Runtime) -> None:
    """What lives as long as a pod has no more after ROUNDS more containers: the monitor, QEMU, the agent.

    Of QEMU descriptors alone are compared: without KVM it keeps what it has translated of all that has run.
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
        podman("pod", "rm", "--force", "--time", "0", "pod")
