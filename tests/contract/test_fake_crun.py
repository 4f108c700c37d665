"""fake_crun.py behaves as crun does, for the commands that the agent runs."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from hawse.agent.container.crun import Crun, explain, read_log
from hawse.agent.system.reaper import Reaper
from hawse.errors import CommandError
from tests.support.bundles import drop_cgroups, make_bundle, write
from tests.support.patience import patience, wait_until
from tests.support.runtime import handing_on

FAKE = str(Path(__file__).parents[1] / "support" / "fake_crun.py")
#: crun refuses a host with cgroups of both versions, so it gets a mount namespace with version 2 only.
REAL = [
    "unshare", "--mount", "sh", "-ec",
    'mount -t tmpfs none /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec crun "$@"', "sh",
]  # fmt: skip


class Host:
    """A crun with a private root and a bundle. ``output``: the output of the programs of the container."""

    def __init__(self, directory: Path, command: list[str]) -> None:
        self.root, self.bundle = directory / "root", directory / "bundle"
        self.log, self.pid_file = str(directory / "log"), directory / "pid"
        self._output = directory / "output"
        self._output.touch()
        options = [f"--root={self.root}", "--cgroup-manager=disabled", "--log-format=json", f"--log=file:{self.log}"]
        self._command = [*command, *options]
        self.spec = make_bundle(str(self.bundle), ["/bin/sh", "-c", "echo started; exec sleep 1000"])
        drop_cgroups(self.spec, namespace=True)
        self.spec["linux"] |= {"resources": {}, "maskedPaths": [], "readonlyPaths": []}
        kinds = ("mount", "pid", "uts", "ipc")
        self.spec["linux"]["namespaces"] = [{"type": kind} for kind in kinds]
        del self.spec["process"]["rlimits"]  # not every host permits to raise limits

    def __call__(self, *arguments: str, descriptors: tuple[int, ...] = ()) -> int:
        """Run a command; returns its exit code. It gets the descriptors as 3 and so on."""
        argv, null = [*self._command, *arguments], subprocess.DEVNULL
        with open(self._output, "ab") as output:
            return handing_on(argv, *descriptors, stdin=null, stdout=output, stderr=output).wait(patience(20))

    def create(self, *options: str, descriptors: tuple[int, ...] = ()) -> int:
        write(str(self.bundle), self.spec)
        options = (f"--bundle={self.bundle}", f"--pid-file={self.pid_file}", *options)
        return self("create", *options, "c1", descriptors=descriptors)

    def start(self) -> None:
        """Start the container as the agent does, without a command of crun."""
        Crun(cast(Reaper, None), directory=str(self.root), root=str(self.root)).start("c1")

    def await_output(self, text: str) -> None:
        wait_until(lambda: self._output.read_text().endswith(text), seen=self._output.read_text)

    @property
    def output(self) -> str:
        return self._output.read_text()


@pytest.fixture(params=["crun", "fake"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, REAL if request.param == "crun" else [FAKE])
    yield host
    if host.pid_file.exists():
        try:
            os.kill(int(host.pid_file.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
    host("delete", "--force", "c1")


def test_created_container_waits_for_its_start(host: Host) -> None:
    assert host.create() == 0
    pid = int(host.pid_file.read_text())
    assert os.path.exists(f"/proc/{pid}")
    assert os.path.exists(f"{host.root}/c1/exec.fifo")
    assert host.output == ""
    host.start()
    host.await_output("started\n")
    assert int(host.pid_file.read_text()) == pid


def test_command_starts_a_created_container(host: Host) -> None:
    assert host.create() == 0
    assert host("start", "c1") == 0
    host.await_output("started\n")


def test_configuration_is_read_from_another_file(host: Host) -> None:
    host.spec["process"]["args"] = ["/bin/sh", "-c", "echo another"]
    config = host.bundle / "another.json"
    config.write_text(json.dumps(host.spec))
    host.spec["process"]["args"] = ["/bin/sh", "-c", "echo config.json"]
    assert host.create(f"--config={config}") == 0
    host.start()
    host.await_output("another\n")


def test_deleted_container_has_no_directory(host: Host) -> None:
    assert host.create() == 0
    os.kill(int(host.pid_file.read_text()), signal.SIGKILL)
    assert host("delete", "--force", "c1") == 0
    assert not os.path.exists(f"{host.root}/c1")


def test_exec_runs_another_process(host: Host, tmp_path: Path) -> None:
    assert host.create() == 0
    host.start()
    host.await_output("started\n")
    process = host.spec["process"] | {"args": ["/bin/sh", "-c", "echo executed"]}
    (tmp_path / "process.json").write_text(json.dumps(process))
    pid_file = tmp_path / "second"
    options = [f"--process={tmp_path}/process.json", "--detach", f"--pid-file={pid_file}"]
    assert host("exec", *options, "c1") == 0
    assert int(pid_file.read_text()) > 0
    host.await_output("executed\n")


@pytest.mark.parametrize("verb", ["create", "exec"])
def test_missing_program_is_named_in_the_log(host: Host, tmp_path: Path, verb: str) -> None:
    missing = ["/bin/nothing"]
    if verb == "create":
        host.spec["process"]["args"] = missing
        assert host.create() != 0
    else:
        assert host.create() == 0
        host.start()
        host.await_output("started\n")
        (tmp_path / "process.json").write_text(json.dumps(host.spec["process"] | {"args": missing}))
        assert host("exec", f"--process={tmp_path}/process.json", "--detach", f"--pid-file={tmp_path}/x", "c1") != 0
    error = explain(read_log(host.log), verb=verb, command="/bin/nothing")
    assert isinstance(error, CommandError), error
    assert error.exit_code == 127
    assert 'exec: "/bin/nothing": executable file not found in $PATH' in error.message


def test_descriptors_are_preserved(host: Host) -> None:
    reading, writing = os.pipe()
    host.spec["process"]["args"] = ["/bin/sh", "-c", "cat <&3"]
    assert host.create("--preserve-fds=1", descriptors=(reading,)) == 0
    os.close(reading)
    os.write(writing, b"through a pipe\n")
    os.close(writing)
    host.start()
    host.await_output("through a pipe\n")


def test_terminal_is_sent_to_the_console_socket(host: Host, tmp_path: Path) -> None:
    host.spec["process"] |= {"terminal": True, "args": ["/bin/sh", "-c", "test -t 0 && echo a terminal; read x"]}
    path = str(tmp_path / "console")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        assert host.create(f"--console-socket={path}") == 0
        connection, _ = listening.accept()
        with connection:
            _, ancillary, _, _ = connection.recvmsg(100, socket.CMSG_SPACE(4))
    [master] = array.array("i", cast(Any, ancillary[0][2]))
    try:
        assert os.isatty(master)
        host.start()
        assert os.read(master, 100) == b"a terminal\r\n"
    finally:
        os.close(master)
