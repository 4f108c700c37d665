"""Podman and Docker run hawse with the same commands, and containers behave the same."""

from __future__ import annotations

import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import traces
from tests.support.bundles import build_probe
from tests.support.docker_cli import Engine, serving
from tests.support.engines import SHOW_LIMITS, read_hosts_disk
from tests.support.patience import patience, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.engine]

#: Succeeds when the server of `serving` accepts connections.
LISTENS = "busybox netstat -ltn | grep -q :8080"


@pytest.fixture
def service(engine: Engine, files: Path) -> Iterator[str]:
    """A container that serves files of a volume, with limits."""
    with serving(engine, files, "--memory", "300m", "--cpus", "1") as name:
        yield name


def test_command_runs_with_user_directory_environment_and_stdin(engine: Engine) -> None:
    script = "id -u; pwd; echo $GREETING; echo $(cat /etc/hostname); cat; touch /file; exit 3"
    done = engine(
        "run", "--rm", "--interactive", "--user", "1000:1000", "--workdir", "/tmp", "--env", "GREETING=hello",
        "--hostname", "inside", "--read-only", "--tmpfs", "/not/there/before", engine.image, "sh", "-c", script,
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
    ids=["failing", "missing", "directory"],
)
def test_program_that_cannot_run_has_a_code_and_an_error(
    engine: Engine, command: list[str], code: int, words: str
) -> None:
    done = engine("run", "--rm", engine.image, *command)
    assert done.code == code, done
    assert words in done.errors.lower()


def test_network_of_the_host_is_refused(engine: Engine) -> None:
    done = engine("run", "--rm", "--network", "host", engine.image, "true")
    assert done.code == engine.refusal_code
    assert engine.host_network_error in done.errors


def test_container_has_a_terminal(engine: Engine) -> None:
    """Each line ends with one carriage return, although conmon sets the terminal's modes again (conmon src/ctrl.c)."""
    output = engine.on_terminal("run", "--rm", "--interactive", "--tty", engine.image, "sh", "-c", "tty; echo end")
    assert output == "/dev/pts/0\r\nend\r\n"


def test_running_container_is_used(engine: Engine, service: str, tmp_path: Path) -> None:
    """ps, exec with and without a terminal, logs, published ports, the container's address, update, cp."""
    assert "Up" in engine.must("ps", "--filter", f"name={service}", "--format", "{{.Status}}")
    done = engine("exec", service, "sh", "-c", "cat /data/page; exit 3")
    assert (done.code, done.output) == (3, "a page\n")
    assert "/dev/pts/" in engine.on_terminal("exec", "--interactive", "--tty", service, "tty")
    logs = engine("logs", service)
    assert (logs.output, logs.errors) == ("to stdout\n", "to stderr\n")
    wait_until(lambda: engine("exec", service, "sh", "-c", LISTENS).code == 0)
    address = engine.inspect(service)["NetworkSettings"]["IPAddress"]
    for place in ("127.0.0.1:18080", f"{address}:8080"):
        with urllib.request.urlopen(f"http://{place}/page", timeout=patience(5)) as answer:
            assert answer.read() == b"a page\n"
    engine.must("update", "--memory", "400m", "--memory-swap", "400m", "--cpus", "0.5", service)
    assert engine.must("exec", service, "sh", "-c", SHOW_LIMITS) == f"{400 << 20}\n50000 100000\n"
    engine.must("exec", service, "sh", "-c", "echo the container > /etc/whose")
    engine.must("cp", f"{service}:/etc/whose", f"{tmp_path}/whose")
    assert (tmp_path / "whose").read_text() == "the container\n"
    engine.must("cp", f"{tmp_path}/whose", f"{service}:/etc/copied")
    assert engine.must("exec", service, "cat", "/etc/copied") == "the container\n"


def test_container_is_paused_stopped_started_again_and_killed(engine: Engine, service: str) -> None:
    engine.must("pause", service)
    assert engine.inspect(service)["State"]["Status"] == "paused"
    engine.must("unpause", service)
    engine.must("stop", "--time", "20", service)
    assert engine.inspect(service)["State"]["ExitCode"] == 7
    assert engine("logs", service).output.endswith("asked to end\n")
    engine.must("start", service)
    assert engine.must("exec", service, "echo", "again") == "again\n"
    engine.must("kill", "--signal", "KILL", service)
    assert engine.must("wait", service) == "137\n"


def test_named_volume_outlives_its_container(engine: Engine) -> None:
    engine.must("run", "--rm", "--volume", "kept:/data", engine.image, "sh", "-c", "echo kept > /data/it")
    assert engine.must("run", "--rm", "--volume", "kept:/data:ro", engine.image, "cat", "/data/it") == "kept\n"
    engine.must("volume", "rm", "kept")


def test_container_drives_a_vfio_device(engine: Engine, nodes: Path, tmp_path: Path) -> None:
    """With the same arguments as with runc, except for the node: the group is emulated, so the host has no node."""
    done = engine(
        "run", "--rm", "--device", f"{nodes}/vfio:/dev/vfio/vfio", "--device", f"{nodes}/5:/dev/vfio/5",
        "--ulimit", "memlock=-1:-1", "--volume", f"{build_probe(str(tmp_path))}:/probe:ro", engine.image, "/probe",
        "/dev/vfio/5",
    )  # fmt: skip
    assert done.code == 0, done
    assert "dma" in done.output.lower()


def test_privileged_container_has_no_device_of_the_host(engine: Engine) -> None:
    """The engine then requests every node of the host, including disks. The guest kernel resolves their numbers."""
    done = engine("run", "--rm", "--privileged", engine.image, "sh", "-c", read_hosts_disk())
    assert done.code == 1, done
    assert "No such device or address" in done.errors


@pytest.mark.parametrize(
    ("engine", "victim"),
    [("podman", "QEMU"), ("podman", "monitor"), ("docker", "QEMU"), ("docker", "monitor"), ("docker", "shim")],
    indirect=["engine"],
)
def test_container_whose_vm_was_killed_can_be_started_again(engine: Engine, victim: str) -> None:
    engine.settle()
    before = traces.take(engine.runtime_root)
    engine.must("run", "--detach", "--name", "victim", engine.image, "sleep", "1000")
    try:
        os.kill(engine.processes_of("victim")[victim], signal.SIGKILL)
        assert engine.must("wait", "victim") in ("137\n", "255\n")
        assert engine.inspect("victim")["State"]["Status"] == "exited"
        assert engine("exec", "victim", "true").code != 0
        engine.must("start", "victim")
        assert engine.must("exec", "victim", "echo", "again") == "again\n"
    finally:
        engine.remove("victim")
    traces.prove_same(before, lambda: traces.take(engine.runtime_root))
