"""ctr, the client of containerd, runs hawse: single containers and their tasks."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hawse.state.store import Store
from tests.support.containerd import Containerd
from tests.support.engines import read_hosts_disk
from tests.support.images import BUSYBOX_IMAGE, write_busybox
from tests.support.patience import patience, wait_until
from tests.support.processes import qemu_of
from tests.support.runtime import HAWSE, Result

pytestmark = [pytest.mark.vm, pytest.mark.engine]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """containerd with an image. stop() checks that nothing is left."""
    directory = str(tmp_path_factory.mktemp("ctr"))
    containerd = Containerd(directory, hawse='[devices]\nannotations = ["devices"]\n[emulated]\n5 = ["edu"]\n')
    try:
        containerd.load(write_busybox(f"{directory}/busybox.tar"))
        yield containerd
    finally:
        containerd.stop()


def argv(engine: Containerd, name: str, *options: str) -> list[str]:
    """The arguments of `ctr run` with hawse, up to the command."""
    runtime = ["--runc-binary", engine.binary, "--runc-root", engine.runtime_root]
    return ["run", *runtime, *options, BUSYBOX_IMAGE.name, name]


def run(engine: Containerd, script: str, *options: str) -> Result:
    """Run a container to its end; nothing of it may be left."""
    before = engine.containers()
    result = engine.ctr(*argv(engine, "one", "--rm", *options), "/bin/sh", "-c", script)
    # ctr returns before the shim has exited.
    wait_until(lambda: engine.containers() == before and engine.shims("one") == [])
    assert "one" not in engine.ctr("containers", "list", "-q").output.split()
    return result


@pytest.fixture
def stays(engine: Containerd, tmp_path: Path) -> Iterator[Callable[..., Result]]:
    """A function that runs `ctr task VERB` for a container, which runs until SIGTERM and is deleted after the test."""
    # The first process of a PID namespace ignores signals without a handler (pid_namespaces(7)).
    script = "trap 'exit 5' TERM; echo >/said/ready; while :; do sleep 3600 & wait; done"
    mount = f"type=bind,src={tmp_path},dst=/said,options=rbind:rw"
    started = engine.ctr(*argv(engine, "stays", "--detach", "--mount", mount), "/bin/sh", "-c", script)
    assert started.code == 0, started
    wait_until((tmp_path / "ready").exists)

    def task(verb: str, *words: str) -> Result:
        return engine.ctr("task", verb, *words)

    yield task
    task("delete", "--force", "stays")
    assert engine.ctr("containers", "delete", "stays").code == 0
    wait_until(lambda: engine.left() == [])


def status(task: Callable[..., Result]) -> str:
    [line] = [line for line in task("list").output.splitlines() if line.startswith("stays")]
    return line.split()[2]


def test_commands_of_the_page_succeed(engine: Containerd, tmp_path: Path) -> None:
    """The commands of docs/containerd.md, unchanged, except that `hawse install` writes to a file of the test."""
    page = (Path(__file__).parents[2] / "docs" / "containerd.md").read_text()
    program = tmp_path / "bin" / "hawse"
    program.parent.mkdir()
    own = f"--config {tmp_path}/hawse.toml"
    install = f'[ "$1" = install ] && exec {HAWSE} {own} "$@" --file {tmp_path}/config.toml --program {program}'
    program.write_text(f'#!/bin/sh\n{install}\nexec {engine.binary} "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "IMAGE": BUSYBOX_IMAGE.name,
        "CONTAINERD_ADDRESS": engine.address,
        "CONTAINERD_NAMESPACE": engine.namespace,
    }
    script = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    done = subprocess.run(
        ["sh", "-exc", script], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, timeout=patience(100),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "/dev/vfio/5\n" in done.stdout
    [shown] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    written = (tmp_path / "config.toml").read_text().replace(str(program), "/usr/bin/hawse")
    assert tomllib.loads(written) == {"version": 2} | tomllib.loads(shown)
    wait_until(lambda: engine.left() == [])
    # The page does not set the root of the runtime, so it is the default of the shim. Nothing is left in it.
    os.rmdir(f"/run/containerd/runc/{engine.namespace}")


def test_run_returns_output_errors_and_exit_code(engine: Containerd) -> None:
    done = run(engine, "echo out; echo error >&2; id; exit 3")
    assert (done.code, done.output, done.errors) == (3, "out\nuid=0 gid=0 groups=0\n", "error\n")


def test_run_of_a_missing_program_fails(engine: Containerd) -> None:
    done = engine.ctr(*argv(engine, "one", "--rm"), "/bin/nothing")
    assert done.code == 1
    assert 'exec: "/bin/nothing": executable file not found in $PATH' in done.errors
    wait_until(lambda: engine.left() == [])


def test_run_with_the_network_of_the_host_is_refused(engine: Containerd) -> None:
    done = run(engine, "true", "--net-host")
    assert done.code == 1
    assert "the container would use the host's network, which a virtual machine cannot share" in done.errors


def test_run_with_mounts_environment_and_seccomp(engine: Containerd, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("words\n")
    mount = f"type=bind,src={tmp_path},dst=/mnt/deep,options=rbind:ro"
    options = ["--env", "A=b", "--mount", mount, "--read-only", "--cwd", "/work", "--seccomp"]
    script = "echo $A; pwd; cat /mnt/deep/kept; touch /mnt/deep/new; touch /new; grep Seccomp: /proc/self/status"
    done = run(engine, script, *options)
    assert done.output == "b\n/work\nwords\nSeccomp:\t2\n"
    assert done.errors.count("Read-only file system") == 2
    assert os.listdir(tmp_path) == ["kept"]


def test_run_with_a_device_by_annotation(engine: Containerd) -> None:
    done = run(engine, "ls /dev/vfio/5 /dev/vfio/vfio", "--annotation", "hawse.devices=5")
    assert (done.code, done.output) == (0, "/dev/vfio/5\n/dev/vfio/vfio\n")


def test_privileged_run_has_no_device_of_the_host(engine: Containerd) -> None:
    """ctr then requests every node of the host, including disks. The guest kernel resolves their numbers."""
    done = run(engine, read_hosts_disk(), "--privileged")
    assert done.code == 1, done
    assert "No such device or address" in done.errors


def test_run_with_an_address_from_cni(engine: Containerd) -> None:
    """ctr calls the CNI plugins between `create` and `start`, as Docker does from version 28 on."""
    places = {"/etc/cni/net.d": f"{engine.directory}/cni", "/opt/cni/bin": "/usr/lib/cni"}
    binds = [f"mkdir -p {place} && mount --bind {source} {place}" for place, source in places.items()]
    words = engine.argv(*argv(engine, "one", "--rm", "--cni"), "/bin/busybox", "ip", "-o", "addr", "show", "eth0")
    script = " && ".join(["mount -t tmpfs none /opt", *binds, 'exec "$@"'])
    enter = ["nsenter", f"--net={engine.node.path}", "unshare", "--mount", "sh", "-ec", script, "sh"]
    done = subprocess.run([*enter, *words], capture_output=True, text=True, check=False, timeout=patience(40))
    assert done.returncode == 0, done
    assert re.search(r"inet 10\.78\.0\.\d+/24 brd 10\.78\.0\.255 scope global eth0", done.stdout), done
    wait_until(lambda: engine.left() == [])


def test_exec(stays: Callable[..., Result]) -> None:
    done = stays("exec", "--exec-id", "e1", "stays", "/bin/sh", "-c", "echo out; echo error >&2; exit 4")
    assert (done.code, done.output, done.errors) == (4, "out\n", "error\n")
    failed = stays("exec", "--exec-id", "e2", "stays", "/bin/nothing")
    assert 'exec: "/bin/nothing": executable file not found' in failed.errors


def test_exec_takes_input(engine: Containerd, stays: Callable[..., Result]) -> None:
    done = engine.ctr("task", "exec", "--exec-id", "e1", "stays", "md5sum", stdin="data" * 100_000)
    assert done.output.split()[0] == hashlib.md5(b"data" * 100_000).hexdigest()
    assert stays("exec", "--exec-id", "e2", "--detach", "stays", "sleep", "987").code == 0
    # "ExecID:e2" with containerd 1.6, 'exec_id:"e2"' with 1.7
    assert re.search('exec_?id:"?e2"?', stays("ps", "stays").output, re.IGNORECASE)
    assert "sleep 987" in stays("exec", "--exec-id", "e3", "stays", "ps").output
    assert stays("kill", "--exec-id", "e2", "--signal", "SIGKILL", "stays").code == 0
    wait_until(lambda: "sleep 987" not in stays("exec", "--exec-id", "e4", "stays", "ps").output)


@pytest.mark.usefixtures("stays")
def test_exec_with_a_terminal(engine: Containerd) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    words = engine.argv("task", "exec", "--tty", "--exec-id", "e1", "stays", "/bin/sh")
    with subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as client:
        os.close(slave)
        os.write(master, b"tty; until stty size | grep '33 77'; do :; done; exit 6\n")
        seen = b""
        # When the last user of a terminal has closed it, read() fails (Linux drivers/tty/tty_io.c).
        with suppress(OSError):
            while piece := os.read(master, 4096):
                seen += piece
        assert client.wait(patience(20)) == 6
    os.close(master)
    assert b"/dev/pts/" in seen
    assert b"\n33 77\r" in seen


def test_pause_and_resume(stays: Callable[..., Result]) -> None:
    assert stays("pause", "stays").code == 0
    assert status(stays) == "PAUSED"
    assert "cannot exec in a paused state" in stays("exec", "--exec-id", "e1", "stays", "true").errors
    assert stays("resume", "stays").code == 0
    assert status(stays) == "RUNNING"
    assert stays("exec", "--exec-id", "e2", "stays", "true").code == 0


def test_metrics_are_those_of_the_vm(stays: Callable[..., Result]) -> None:
    metrics = json.loads(stays("metrics", "--format", "json", "stays").output)
    assert metrics["memory"]["usage"]["usage"] > 64 * 1024 * 1024
    assert metrics["cpu"]["usage"]["total"] > 0
    assert metrics["pids"]["current"] > 2


def test_kill_and_delete(engine: Containerd, stays: Callable[..., Result]) -> None:
    assert "task must be stopped before deletion" in stays("delete", "stays").errors
    assert "unknown command 'checkpoint'" in stays("checkpoint", "stays").errors
    assert stays("kill", "--signal", "SIGTERM", "stays").code == 0
    wait_until(lambda: status(stays) == "STOPPED")
    done = stays("delete", "stays")
    assert (done.code, "non-zero exit code 5" in done.errors) == (0, True), done
    assert engine.left() == []


def test_killed_container_has_exit_code_137(stays: Callable[..., Result]) -> None:
    assert stays("kill", "--signal", "SIGKILL", "stays").code == 0
    wait_until(lambda: status(stays) == "STOPPED")
    assert "non-zero exit code 137" in stays("delete", "stays").errors


def test_container_whose_vm_is_killed_is_stopped(engine: Containerd, stays: Callable[..., Result]) -> None:
    monitor = Store(f"{engine.runtime_root}/{engine.namespace}", "stays").read()["monitorPid"]
    os.kill(qemu_of(monitor), signal.SIGKILL)
    wait_until(lambda: status(stays) == "STOPPED")
    done = stays("delete", "stays")
    assert re.search("non-zero exit code (137|255)", done.errors), done
    assert engine.left() == []


def test_container_outlives_containerd(engine: Containerd, stays: Callable[..., Result]) -> None:
    engine.restart()
    assert status(stays) == "RUNNING"
    assert stays("exec", "--exec-id", "e1", "stays", "echo", "on").output == "on\n"
    assert stays("kill", "--signal", "SIGTERM", "stays").code == 0
    wait_until(lambda: status(stays) == "STOPPED")
    assert "non-zero exit code 5" in stays("delete", "stays").errors
