"""Processes in a running container: exit codes, concurrency, signals, terminals, large streams, and shared files."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.bundles import FILE_CAPABILITIES, make_bundle, specification, write
from tests.support.patience import patience, wait_until
from tests.support.pod_bundles import FOREVER
from tests.support.running import running_container
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm


@contextmanager
def sleeping(tmp_path_factory: pytest.TempPathFactory, share: str) -> Iterator[tuple[Runtime, str]]:
    """A running container and its bundle. ``share``: the protocol by which the guest gets its files."""
    directory = str(tmp_path_factory.mktemp("exec"))
    bundle = f"{directory}/bundle"
    # As the first process of its PID namespace it also collects orphans.
    make_bundle(bundle, FOREVER, cwd="/tmp", capabilities=FILE_CAPABILITIES)
    with open(f"{bundle}/rootfs/data/from-host", "w") as file:
        file.write("hello\n")
    os.chown(f"{bundle}/rootfs/data/from-host", 1234, 5678)  # clears a set-uid bit, so it comes first
    os.chmod(f"{bundle}/rootfs/data/from-host", 0o4640)
    with running_container(directory, bundle, "c1", configuration=f'[vm]\nshare = "{share}"\n') as runtime:
        yield runtime, bundle


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, str]]:
    """A container with virtiofs, for all tests of this module."""
    with sleeping(tmp_path_factory, "virtiofs") as container:
        yield container


@pytest.fixture(scope="module")
def running_on_9p(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, str]]:
    """A container with 9p."""
    with sleeping(tmp_path_factory, "9p") as container:
        yield container


@pytest.fixture(params=["running", "running_on_9p"], ids=["virtiofs", "9p"])
def running_on_each(request: pytest.FixtureRequest) -> tuple[Runtime, str]:
    """Each of both containers, for tests that depend on files."""
    container: tuple[Runtime, str] = request.getfixturevalue(request.param)
    return container


@pytest.mark.parametrize("code", [0, 3])
def test_exit_code_is_that_of_the_program(running_on_each: tuple[Runtime, str], code: int) -> None:
    runtime, _ = running_on_each
    result = runtime("exec", "c1", "/bin/sh", "-c", f"cat; echo err >&2; exit {code}", stdin="in\n")
    assert (result.code, result.output, result.errors) == (code, "in\n", "err\n")


def test_options_change_the_process_of_the_specification(running: tuple[Runtime, str]) -> None:
    runtime, _ = running
    script = "id -u; id -g; pwd; echo $COLOUR"
    options = ["--user", "1000:1001", "--cwd", "/data", "--env", "COLOUR=blue"]
    assert runtime("exec", *options, "c1", "/bin/sh", "-c", script).output.split() == ["1000", "1001", "/data", "blue"]
    assert runtime("exec", "c1", "/bin/pwd").output == "/tmp\n"


def test_process_file_is_used_unchanged(running: tuple[Runtime, str], tmp_path: Path) -> None:
    runtime, _ = running
    process = specification(["/bin/sh", "-c", "id -u; pwd"], cwd="/data", user={"uid": 7, "gid": 8})["process"]
    (tmp_path / "process.json").write_text(json.dumps(process))
    assert runtime("exec", "--process", str(tmp_path / "process.json"), "c1").output == "7\n/data\n"


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("/no/such/program", 127, "no such file or directory"),
        ("nowhere", 127, "executable file not found in $PATH"),
        ("/data/from-host", 126, "permission denied"),
    ],
)
def test_program_that_cannot_run_is_an_error(running: tuple[Runtime, str], program: str, code: int, words: str) -> None:
    runtime, _ = running
    result = runtime("exec", "c1", program)
    assert result.code == code
    assert words in result.errors
    assert program in result.errors


def test_concurrent_processes_do_not_mix(running: tuple[Runtime, str]) -> None:
    runtime, _ = running
    processes = [
        runtime.start("exec", "c1", "/bin/sh", "-c", f"cat; exit {n}", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for n in range(6)
    ]
    for n, process in enumerate(processes):
        assert process.stdin is not None
        process.stdin.write(f"input {n}\n".encode() * 1000)
        process.stdin.close()
        process.stdin = None
    for n, process in enumerate(processes):
        output, _ = process.communicate(timeout=patience(20))
        assert output == f"input {n}\n".encode() * 1000
        assert process.returncode == n


def test_pid_of_a_detached_process_forwards_signals(running: tuple[Runtime, str], tmp_path: Path) -> None:
    runtime, bundle = running
    pid_file = str(tmp_path / "pid")
    script = "trap 'echo got USR1 > /data/signalled' USR1; echo > /data/trapped; sleep 0.1; while :; do sleep 0.1; done"
    null = subprocess.DEVNULL
    exec_ = ["exec", "--detach", "--pid-file", pid_file, "c1", "/bin/sh", "-c", script]
    assert runtime.start(*exec_, stdin=null, stdout=null, stderr=null).wait() == 0
    with open(pid_file) as file:
        pid = int(file.read())
    wait_until(lambda: os.path.exists(f"{bundle}/rootfs/data/trapped"))
    os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: os.path.exists(f"{bundle}/rootfs/data/signalled"))
    os.kill(pid, signal.SIGKILL)
    # Killing the proxy kills its process.
    wait_until(lambda: "signalled" not in runtime("exec", "c1", "/bin/ps", "-o", "args").output)


def test_large_output_with_a_slow_reader(running: tuple[Runtime, str]) -> None:
    runtime, _ = running
    size = 100 * 1024 * 1024
    flood = runtime.start(
        "exec", "c1", "/bin/dd", "if=/dev/zero", "bs=1M", "count=100",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stuck = runtime.start("exec", "c1", "/bin/yes", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert flood.stdout is not None
    assert stuck.stdout is not None
    assert os.read(stuck.stdout.fileno(), 2) == b"y\n"  # only once: its writer must block, and no other
    received = 0
    while piece := os.read(flood.stdout.fileno(), 65536):
        received += len(piece)
        if received == len(piece):  # the first piece; the rest is not read yet
            assert runtime("exec", "c1", "/bin/echo", "in between").output == "in between\n"
    assert received == size
    assert flood.wait(timeout=patience(10)) == 0
    flood.stdout.close()
    stuck.stdout.close()  # without a reader, yes no longer blocks and is ended
    stuck.kill()
    stuck.wait()
    assert runtime("exec", "c1", "/bin/sh", "-c", "kill $(ps -o pid,args | grep '[y]es' | head -n 1)").code in (0, 1)


def test_a_megabyte_of_stdin_arrives(running: tuple[Runtime, str]) -> None:
    runtime, _ = running
    text = "".join(f"line {n}\n" for n in range(100_000))
    assert runtime("exec", "c1", "/bin/cat", stdin=text).output == text


def test_files_are_shared_in_both_directions(running_on_each: tuple[Runtime, str]) -> None:
    runtime, bundle = running_on_each
    assert runtime("exec", "c1", "/bin/stat", "-c", "%u %g %a", "/data/from-host").output == "1234 5678 4640\n"
    script = "cd /data; echo made > new; chown 42:43 new; chmod 2750 new; mkdir -p d/e; sync"
    assert runtime("exec", "c1", "/bin/sh", "-c", script).code == 0
    status = os.stat(f"{bundle}/rootfs/data/new")
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (42, 43, 0o2750)
    with open(f"{bundle}/rootfs/data/new") as file:
        assert file.read() == "made\n"
    assert os.path.isdir(f"{bundle}/rootfs/data/d/e")


def test_file_that_grows_on_the_host_is_read_whole(running_on_each: tuple[Runtime, str]) -> None:
    runtime, bundle = running_on_each
    log = Path(f"{bundle}/rootfs/data/log")
    log.write_text("first\n")
    assert runtime("exec", "c1", "/bin/cat", "/data/log").output == "first\n"
    with log.open("a") as file:
        file.write("second\n")
    # virtiofsd permits the guest to cache the size of a file for a second.
    wait_until(lambda: runtime("exec", "c1", "/bin/cat", "/data/log").output == "first\nsecond\n")


def test_terminal_over_a_console_socket(running: tuple[Runtime, str], tmp_path: Path) -> None:
    """As with containerd and conmon: the socket gets the master, the command ends, and the size is set later."""
    runtime, _ = running
    path = str(tmp_path / "console.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)
        script = "tty; echo go; read line; stty size; echo $line; exit 5"
        exec_ = ["exec", "--detach", "--tty", "--console-socket", path, "--pid-file", str(tmp_path / "pid"), "c1"]
        result = runtime(*exec_, "/bin/sh", "-c", script)
        assert result.code == 0, result.errors
        connection, _ = listener.accept()
        with connection:
            name, [master], _, _ = socket.recv_fds(connection, 4096, 1)
    assert name.startswith(b"/dev/pts/")
    output = read_until(master, b"go\r\n")
    assert output.startswith(b"/dev/pts/")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    wait_until(lambda: "33 99" in runtime("exec", "c1", "/bin/sh", "-c", "stty size < /dev/pts/0").output)
    os.write(master, b"typed\n")
    assert b"33 99\r\ntyped\r\n" in read_until(master, b"\ntyped\r\n")
    os.close(master)


def test_terminal_of_the_caller_is_raw_while_the_command_runs(running: tuple[Runtime, str]) -> None:
    runtime, _ = running
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 21, 77, 0, 0))
    before = termios.tcgetattr(slave)
    argv = ["exec", "--tty", "c1", "/bin/sh", "-c", "stty size; echo go; read x; echo got $x; exit 4"]
    process = runtime.start(*argv, stdin=slave, stdout=slave, stderr=slave)
    assert b"21 77\r\n" in read_until(master, b"go\r\n")
    os.write(master, b"word\n")
    assert b"got word\r\n" in read_until(master, b"got word\r\n")
    assert process.wait(timeout=patience(10)) == 4
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exec", "--tty", "--detach", "c1", "/bin/true"], "without setting console socket"),
        (["exec", "--console-socket", "/tmp/x", "c1", "/bin/true"], "cannot use console socket"),
        (["exec", "--preserve-fds", "2", "c1", "/bin/true"], "--preserve-fds: descriptor 3 is not open"),
        (["exec", "c1"], "no command given"),
        (["exec", "--user", "root", "c1", "/bin/true"], "--user 'root' is not UID"),
        (["exec", "nobody", "/bin/true"], "container does not exist"),
    ],
)
def test_invalid_exec_is_refused(running: tuple[Runtime, str], arguments: list[str], words: str) -> None:
    runtime, _ = running
    result = runtime(*arguments)
    assert result.code == 255, "runc's exit code for a failed exec"
    assert words in result.errors


def read_until(fd: int, end: bytes) -> bytes:
    """Read a terminal until the output ends with ``end``, or until nothing arrives for 30 s."""
    output = b""
    while end not in output:
        if not select.select([fd], [], [], 30)[0]:
            break
        try:
            output += os.read(fd, 4096)
        except OSError:
            break
    return output


def test_bundle_with_a_terminal_needs_a_console_socket(tmp_path: Path) -> None:
    runtime = Runtime(str(tmp_path))
    bundle = str(tmp_path / "bundle")
    write_terminal_bundle(bundle)
    result = runtime("create", "--bundle", bundle, "c2")
    assert result.code == 1
    assert "without setting console socket" in result.errors
    assert not os.path.exists(f"{runtime.root}/c2")


def test_terminal_without_one_of_the_caller_is_refused_as_by_runc(running: tuple[Runtime, str], tmp_path: Path) -> None:
    """In a session without a controlling terminal, with other files as stdio: the input of the program could never
    end."""
    runtime, _ = running
    bundle, terminal = str(tmp_path / "bundle"), str(tmp_path / "terminal")
    make_bundle(bundle, ["/bin/sh", "-c", "while :; do sleep 3600; done"])
    write_terminal_bundle(terminal)
    runc = ["runc", "--root", str(tmp_path / "runc")]
    name = f"c1-{os.getpid()}"

    def alone(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True, check=False
        )

    null = subprocess.DEVNULL
    subprocess.run([*runc, "run", "--detach", "--bundle", bundle, name], stdin=null, stdout=null, check=True)
    try:
        for code, words in ((1, ["run", "--bundle", terminal, "c2"]), (255, ["exec", "--tty", "c1", "/bin/true"])):
            result = alone(*runc, *(name if word == "c1" else word for word in words))
            refused = alone(*runtime.argv(*words))
            for done in (result, refused):
                assert (done.returncode, done.stdout) == (code, ""), done
                assert "open /dev/tty: no such device or address" in done.stderr, done
    finally:
        subprocess.run([*runc, "delete", "--force", name], check=True)
    assert os.listdir(runtime.root) == ["c1"]


def write_terminal_bundle(bundle: str) -> None:
    """Write a bundle whose process has a terminal."""
    spec = make_bundle(bundle, ["/bin/true"], terminal=True)
    write(bundle, spec)
