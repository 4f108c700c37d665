"""Docker Engine drives hawse by its own conventions (docs/docker.md)."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles import build_probe
from tests.support.docker import IMAGE, Docker
from tests.support.runtime import Runtime, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.engine]

SERVICE = "trap 'echo asked to end; exit 7' TERM; echo to stdout; echo to stderr >&2; busybox httpd -p 8080 -h /data; "
SERVICE += "while :; do sleep 1; done"
LISTENS = "busybox netstat -ltn | grep -q :8080"


@pytest.fixture(scope="module")
def docker(hawse: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with Docker(str(tmp_path_factory.mktemp("docker")), hawse) as made:
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


def test_a_terminal_is_one(docker: Docker) -> None:
    assert "/dev/pts/0" in docker.on_terminal("run", "--rm", "--interactive", "--tty", IMAGE, "tty")


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
        with urllib.request.urlopen(f"http://{place}/page", timeout=20) as answer:
            assert answer.read() == b"a page\n"
    used, pids = docker.must("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", service).split()[::3]
    assert used.endswith("MiB")
    assert int(pids) > 1
    processes = docker.must("top", service).splitlines()[1:]
    assert len(processes) == 1
    assert "echo to stdout" in processes[0]
    docker.must("update", "--memory", "400m", "--memory-swap", "400m", service)
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
        wait_until(lambda: "fetched" in compose("logs", "client"), seconds=120)
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
    numbers = Path("/proc/partitions").read_text().splitlines()[2].split()[:2]  # below a heading and an empty line
    script = f"mknod /tmp/disk b {' '.join(numbers)} && dd if=/tmp/disk of=/dev/null count=1"
    done = docker("run", "--rm", "--privileged", IMAGE, "sh", "-c", script)
    assert done.code == 1, done
    assert "No such device or address" in done.errors


def test_nothing_is_left(docker: Docker, hawse: Runtime) -> None:
    assert docker.must("ps", "--all", "--quiet") == ""
    assert not os.path.isdir(hawse.root) or os.listdir(hawse.root) == []
