"""Docker Engine drives hawse by its own conventions (docs/docker.md)."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.sandbox.state import Store
from hawse.version import VERSION
from tests.support import traces
from tests.support.bundles import build_probe
from tests.support.docker import IMAGE, Docker
from tests.support.engines import SHOW_LIMITS, read_hosts_disk
from tests.support.patience import patience, wait_until
from tests.support.processes import qemu_of
from tests.support.runtime import HAWSE, Runtime

pytestmark = [pytest.mark.vm, pytest.mark.engine]

SERVICE = "trap 'echo asked to end; exit 7' TERM; echo to stdout; echo to stderr >&2; busybox httpd -p 8080 -h /data; "
SERVICE += "while :; do sleep 1; done"
LISTENS = "busybox netstat -ltn | grep -q :8080"


@pytest.fixture(scope="module")
def docker(hawse: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """Its containers outlive it; it knows hawse by a second name, with arguments; and it has the verb checkpoint."""
    runtimes = {"arguments": {"path": HAWSE, "runtimeArgs": hawse.argv()[1:]}}
    more: dict[str, Any] = {"runtimes": runtimes, "live-restore": True, "experimental": True}
    with Docker(str(tmp_path_factory.mktemp("docker")), hawse, **more) as made:
        yield made


def test_a_command_runs_with_what_it_was_given(docker: Docker) -> None:
    script = "id -u; pwd; echo $GREETING; cat /etc/hostname; cat; touch /file; exit 3"
    done = docker(
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
def test_what_cannot_run_is_told_by_code_and_words(docker: Docker, command: list[str], code: int, words: str) -> None:
    done = docker("run", "--rm", IMAGE, *command)
    assert done.code == code, done
    assert words in done.errors.lower()


def test_the_hosts_network_is_refused(docker: Docker) -> None:
    done = docker("run", "--rm", "--network", "host", IMAGE, "true")
    assert done.code == 125
    assert "the host's" in done.errors
    assert "network, which a virtual machine cannot share" in done.errors


def test_no_network_is_the_loopback(docker: Docker) -> None:
    assert docker.must("run", "--rm", "--network", "none", IMAGE, "ls", "/sys/class/net") == "lo\n"


def test_the_namespaces_of_another_container_are_refused(docker: Docker, service: str) -> None:
    """They would be another virtual machine's: Docker has no pods."""
    words = {"network": "two virtual machines cannot have one interface", "pid": "the container has another kernel"}
    for kind, why in words.items():
        done = docker("run", "--rm", f"--{kind}", f"container:{service}", IMAGE, "true")
        assert done.code == 125, done
        assert why in done.errors


def test_a_terminal_is_one(docker: Docker) -> None:
    said = docker.on_terminal("run", "--rm", "--interactive", "--tty", IMAGE, "sh", "-c", "tty; echo end")
    assert said == "/dev/pts/0\r\nend\r\n"


def test_a_runtime_with_arguments_is_run_with_them(docker: Docker) -> None:
    """Docker makes a script of them, whose words the shell splits (moby daemon/runtime_unix.go)."""
    said = docker.must("run", "--rm", "--runtime", "arguments", "--env", "A=b  c", IMAGE, "sh", "-c", 'echo "$A"')
    assert said == "b  c\n"


def test_what_docker_reads_of_its_version(docker: Docker) -> None:
    """`docker info` takes any line with "version" apart, and the one that begins with "commit:"."""
    said = docker.must("info", "--format", "{{.DefaultRuntime}} {{.RuncCommit.ID}}")
    assert said == f"hawse {VERSION}\n"
    components = docker.must("version", "--format", "{{range .Server.Components}}{{.Name}} {{.Version}}\n{{end}}")
    assert f"hawse {VERSION}" in components.splitlines()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("files")
    (directory / "page").write_text("a page\n")
    return directory


@pytest.fixture
def service(docker: Docker, files: Path) -> Iterator[str]:
    """A container that serves files of a volume."""
    docker.must(
        "run", "--detach", "--name", "service", "--publish", "127.0.0.1:18080:8080", "--volume", f"{files}:/data",
        "--memory", "300m", "--cpus", "1", IMAGE, "sh", "-c", SERVICE,
    )  # fmt: skip
    # Until then a signal has no trap, and a container's first process ignores it.
    wait_until(lambda: "to stdout" in docker("logs", "service").output)
    yield "service"
    docker("rm", "--force", "service")


def test_a_container_is_used_while_it_runs(docker: Docker, service: str, tmp_path: Path) -> None:
    assert "Up" in docker.must("ps", "--filter", f"name={service}", "--format", "{{.Status}}")
    done = docker("exec", service, "sh", "-c", "cat /data/page; exit 3")
    assert (done.code, done.output) == (3, "a page\n")
    assert "/dev/pts/" in docker.on_terminal("exec", "--interactive", "--tty", service, "tty")
    logs = docker("logs", service)
    assert (logs.output, logs.errors) == ("to stdout\n", "to stderr\n")
    wait_until(lambda: docker("exec", service, "sh", "-c", LISTENS).code == 0)
    address = docker.inspect(service)["NetworkSettings"]["IPAddress"]
    for place in ("127.0.0.1:18080", f"{address}:8080"):
        with urllib.request.urlopen(f"http://{place}/page", timeout=patience(5)) as answer:
            assert answer.read() == b"a page\n"
    used, pids = docker.must("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", service).split()[::3]
    assert used.endswith("MiB")
    assert int(pids) > 1
    processes = docker.must("top", service).splitlines()[1:]
    assert len(processes) == 1
    assert "echo to stdout" in processes[0]
    docker.must("update", "--memory", "400m", "--memory-swap", "400m", "--cpus", "0.5", service)
    assert docker.must("exec", service, "sh", "-c", SHOW_LIMITS) == f"{400 << 20}\n50000 100000\n"
    docker.must("exec", service, "sh", "-c", "echo the container > /etc/whose")
    docker.must("cp", f"{service}:/etc/whose", f"{tmp_path}/whose")
    assert (tmp_path / "whose").read_text() == "the container\n"
    docker.must("cp", f"{tmp_path}/whose", f"{service}:/etc/copied")
    assert docker.must("exec", service, "cat", "/etc/copied") == "the container\n"


def test_a_container_is_paused_stopped_started_again_and_killed(docker: Docker, service: str) -> None:
    docker.must("pause", service)
    assert docker.inspect(service)["State"]["Status"] == "paused"
    docker.must("unpause", service)
    docker.must("stop", "--time", "20", service)
    assert docker.inspect(service)["State"]["ExitCode"] == 7
    assert docker("logs", service).output.endswith("asked to end\n")
    docker.must("start", service)
    assert docker.must("exec", service, "echo", "again") == "again\n"
    docker.must("kill", "--signal", "KILL", service)
    assert docker.must("wait", service) == "137\n"


def test_a_checkpoint_is_refused(docker: Docker, service: str) -> None:
    done = docker("checkpoint", "create", service, "first")
    assert done.code == 1
    assert "unknown command 'checkpoint'" in done.errors
    assert docker.must("exec", service, "echo", "on") == "on\n"


def test_a_named_volume_outlives_its_container(docker: Docker) -> None:
    docker.must("run", "--rm", "--volume", "kept:/data", IMAGE, "sh", "-c", "echo kept > /data/it")
    assert docker.must("run", "--rm", "--volume", "kept:/data:ro", IMAGE, "cat", "/data/it") == "kept\n"
    docker.must("volume", "rm", "kept")


COMPOSE = f"""
version: "2.4"
services:
  server:
    image: {IMAGE}
    command: ["busybox", "httpd", "-f", "-p", "9000", "-h", "/bin"]
  client:
    image: {IMAGE}
    command: ["sh", "-c", "until busybox wget -qO /dev/null http://server:9000/busybox; do sleep 1; done; echo fetched"]
    depends_on: [server]
"""


def test_two_containers_of_a_compose_file_find_each_other_by_name(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(COMPOSE)

    def compose(*words: str) -> str:
        done = docker.run(["docker-compose", "--file", f"{tmp_path}/compose.yaml", "--project-name", "hawse", *words])
        assert done.code == 0, done
        return done.output

    try:
        compose("up", "--detach")
        wait_until(lambda: "fetched" in compose("logs", "client"))
    finally:
        compose("down", "--timeout", "0")


def test_a_vfio_device_is_one(docker: Docker, nodes: Path, tmp_path: Path) -> None:
    """The same arguments as with runc, but for the emulated group's node, which is no host's."""
    done = docker(
        "run", "--rm", "--device", f"{nodes}/vfio:/dev/vfio/vfio", "--device", f"{nodes}/5:/dev/vfio/5",
        "--ulimit", "memlock=-1:-1", "--volume", f"{build_probe(str(tmp_path))}:/probe:ro", IMAGE, "/probe",
        "/dev/vfio/5",
    )  # fmt: skip
    assert done.code == 0, done
    assert "dma" in done.output.lower()


def test_a_privileged_container_has_no_device_of_the_host(docker: Docker) -> None:
    """Docker names every node of the host then, its disks too, but the kernel behind the numbers is the guest's."""
    done = docker("run", "--rm", "--privileged", IMAGE, "sh", "-c", read_hosts_disk())
    assert done.code == 1, done
    assert "No such device or address" in done.errors


@pytest.mark.parametrize("victim", ["QEMU", "monitor", "shim"])
def test_a_container_whose_machine_is_killed(docker: Docker, victim: str) -> None:
    before = traces.take(docker.runtime_root)
    name = docker.must("run", "--detach", "--name", "victim", IMAGE, "sleep", "1000").strip()
    try:
        monitor = Store(docker.runtime_root, name).read()["monitorPid"]
        pids = {"QEMU": qemu_of(monitor), "monitor": monitor, "shim": shim_of(name)}
        os.kill(pids[victim], signal.SIGKILL)
        assert docker.must("wait", "victim") in ("137\n", "255\n")
        assert docker.inspect("victim")["State"]["Status"] == "exited"
        assert docker("exec", "victim", "true").code != 0
        # It is as any that has ended: it can be begun again.
        docker.must("start", "victim")
        assert docker.must("exec", "victim", "echo", "again") == "again\n"
    finally:
        docker("rm", "--force", "victim")
    traces.prove_same(before, lambda: traces.take(docker.runtime_root))


def shim_of(container: str) -> int:
    """The pid of a container's shim."""
    found = subprocess.run(
        ["pgrep", "-f", f"containerd-shim.* -id {container}"], capture_output=True, text=True, check=True
    )
    return int(found.stdout)


def test_containers_outlive_their_engine(docker: Docker, service: str) -> None:
    """With "live-restore": the daemon and its containerd are begun again while a container runs."""
    started = docker.inspect(service)["State"]["StartedAt"]
    docker.restart()
    state = docker.inspect(service)["State"]
    assert (state["Status"], state["StartedAt"]) == ("running", started)
    assert docker.must("exec", service, "cat", "/data/page") == "a page\n"
    docker.must("stop", "--time", "20", service)
    assert docker.inspect(service)["State"]["ExitCode"] == 7
    assert docker("logs", service).output.endswith("asked to end\n")


def test_nothing_is_left_and_nothing_grows(docker: Docker, hawse: Runtime) -> None:
    """Some in a row, and two at once. The daemon and its containerd live on: they keep no descriptor of each container,
    though the daemon has one more now and then, with runc too."""

    def look() -> traces.Kinds:
        return traces.take(docker.runtime_root, f"{docker.directory}/data/containers")

    assert docker.must("ps", "--all", "--quiet") == ""
    docker.must("run", "--rm", IMAGE, "true")
    before, held = look(), [traces.held(pid).total() for pid in docker.processes]
    for _ in range(4):
        docker.must("run", "--rm", IMAGE, "true")
    names = [docker.must("create", "--rm", IMAGE, "true").strip() for _ in range(2)]
    docker.must("start", *names)
    wait_until(lambda: docker.must("ps", "--all", "--quiet") == "")
    traces.prove_same(before, look)
    more = [traces.held(pid).total() - count for pid, count in zip(docker.processes, held, strict=True)]
    assert max(more) < 6, more
    assert not os.path.isdir(hawse.root) or os.listdir(hawse.root) == []
