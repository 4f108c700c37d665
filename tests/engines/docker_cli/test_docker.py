"""What Docker Engine does in its own way (docs/docker.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.version import VERSION
from tests.support import traces
from tests.support.docker import IMAGE, Docker
from tests.support.docker_cli import serving
from tests.support.patience import wait_until
from tests.support.runtime import Runtime

pytestmark = [pytest.mark.vm, pytest.mark.engine]


def test_containers_leave_nothing_and_the_daemon_does_not_grow(docker: Docker, hawse: Runtime) -> None:
    """For containers in a row and two at once. The daemon and its containerd keep no descriptor of each container. The
    daemon itself sometimes opens one more, as it does with runc."""

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


@pytest.fixture(scope="module")
def service(docker: Docker, files: Path) -> Iterator[str]:
    """A container that serves files of a volume, for several tests: the last one stops it."""
    with serving(docker, files) as name:
        yield name


def test_container_without_a_network_has_a_loopback(docker: Docker) -> None:
    assert docker.must("run", "--rm", "--network", "none", IMAGE, "ls", "/sys/class/net") == "lo\n"


def test_namespaces_of_another_container_are_refused(docker: Docker, service: str) -> None:
    """The other container is in another VM, since Docker has no pods."""
    words = {"network": "only one VM can use an interface", "pid": "the container runs on another kernel"}
    for kind, why in words.items():
        done = docker("run", "--rm", f"--{kind}", f"container:{service}", IMAGE, "true")
        assert done.code == 125, done
        assert why in done.errors


def test_runtime_is_run_with_its_arguments(docker: Docker) -> None:
    """Docker writes a script with the arguments, in which a shell splits them (moby daemon/runtime_unix.go)."""
    said = docker.must("run", "--rm", "--runtime", "arguments", "--env", "A=b  c", IMAGE, "sh", "-c", 'echo "$A"')
    assert said == "b  c\n"


def test_docker_reads_the_version(docker: Docker) -> None:
    """`docker info` parses every line with "version", and the line that begins with "commit:"."""
    said = docker.must("info", "--format", "{{.DefaultRuntime}} {{.RuncCommit.ID}}")
    assert said == f"hawse {VERSION}\n"
    components = docker.must("version", "--format", "{{range .Server.Components}}{{.Name}} {{.Version}}\n{{end}}")
    assert f"hawse {VERSION}" in components.splitlines()


def test_docker_reads_statistics_and_processes(docker: Docker, service: str) -> None:
    used, pids = docker.must("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", service).split()[::3]
    assert used.endswith("MiB")
    assert int(pids) > 1
    [process] = docker.must("top", service).splitlines()[1:]
    assert "echo to stdout" in process


def test_checkpoint_is_refused(docker: Docker, service: str) -> None:
    done = docker("checkpoint", "create", service, "first")
    assert done.code == 1
    assert "unknown command 'checkpoint'" in done.errors
    assert docker.must("exec", service, "echo", "on") == "on\n"


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


def test_containers_of_a_compose_file_resolve_their_names(docker: Docker, tmp_path: Path) -> None:
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


def test_containers_outlive_the_daemon(docker: Docker, service: str) -> None:
    """With "live-restore", while the daemon and its containerd are restarted."""
    started = docker.inspect(service)["State"]["StartedAt"]
    docker.restart()
    state = docker.inspect(service)["State"]
    assert (state["Status"], state["StartedAt"]) == ("running", started)
    assert docker.must("exec", service, "cat", "/data/page") == "a page\n"
    docker.must("stop", "--time", "20", service)
    assert docker.inspect(service)["State"]["ExitCode"] == 7
    assert docker("logs", service).output.endswith("asked to end\n")
