"""Processes of the host by pidfds, with the real kernel: a pid that was reused by another process is detected."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.linux import mounts, processes
from hawse.state.store import Store
from tests.support.host_processes import ended_descriptor, reused

#: A socket option that does not exist, like SO_PEERPIDFD before Linux 6.5.
UNKNOWN = 9999


class Peer:
    """A process that has connected to a socket of this one."""

    def __init__(self, directory: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{directory}/socket")
            listener.listen()
            self.pid = os.fork()
            if self.pid == 0:
                listener.close()
                client = socket.socket(socket.AF_UNIX)
                client.connect(f"{directory}/socket")
                signal.pause()
            self.connection, _ = listener.accept()

    def end(self) -> None:
        """Kill the process and wait for it, so that its pid is free."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path)
    yield peer
    peer.end()
    peer.connection.close()


@pytest.mark.parametrize("option", [processes._SO_PEERPIDFD, UNKNOWN])
def test_peer_has_its_pid_and_a_pidfd(peer: Peer, option: int) -> None:
    process, pid = processes.peer(peer.connection, option=option), peer.pid
    assert (process.pid, process.is_alive()) == (pid, True)
    fd = process.open("ns/net")
    assert os.fstat(fd).st_ino == os.stat("/proc/self/ns/net").st_ino
    os.close(fd)
    peer.end()
    assert (process.pid, process.is_alive()) == (pid, False)
    process.close()
    process.close()
    assert not process.is_alive()


@pytest.mark.parametrize("option", [processes._SO_PEERPIDFD, UNKNOWN])
def test_peer_that_has_ended_is_not_alive(peer: Peer, option: int) -> None:
    pid = peer.pid
    peer.end()
    process = processes.peer(peer.connection, option=option)
    assert (process.pid, process.is_alive()) == (pid, False)
    with pytest.raises(OSError, match="No such process"):
        process.take_descriptors([0])


def test_peer_that_ended_before_its_pid_was_opened_is_not_alive(peer: Peer) -> None:
    """On a kernel without SO_PEERPIDFD the pid may be reused by then; the state of the connection shows it."""
    peer.end()
    opened = os.pidfd_open(os.getpid())
    assert not processes.peer(peer.connection, option=UNKNOWN, open_pid=lambda _pid: opened).is_alive()


def test_file_of_a_process_with_a_reused_pid_is_not_opened() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ProcessLookupError, match=f"/proc/{os.getpid()}/ns/net"):
        reused().open("ns/net")
    assert len(os.listdir("/proc/self/fd")) == before


def test_either_all_or_no_descriptors_of_another_process_are_duplicated(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    process = processes.open_process(os.getpid())
    with open(tmp_path / "file") as file:
        [taken] = process.take_descriptors([file.fileno()])
        assert os.readlink(f"/proc/self/fd/{taken}") == f"{tmp_path}/file"
        os.close(taken)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(OSError, match="Bad file descriptor"):
            process.take_descriptors([file.fileno(), 10**6])
        assert len(os.listdir("/proc/self/fd")) == len(before)
        with pytest.raises(ProcessLookupError):
            reused().take_descriptors([file.fileno()])
    process.close()


def entered(process: int) -> str:
    """The outcome of a child with a private mount namespace that enters the mount namespace of a process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            mounts.unshare(mounts.PRIVATE)
            processes.enter_mount_namespace(process)
            os.write(writing, os.readlink("/proc/self/ns/mnt").encode())
        except BaseException as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def test_forked_child_enters_the_mount_namespace_of_a_process() -> None:
    ours = os.pidfd_open(os.getpid())
    assert entered(ours) == os.readlink("/proc/self/ns/mnt")
    os.close(ours)


def test_mount_namespace_of_a_process_that_has_ended_is_an_error() -> None:
    ended = ended_descriptor()
    assert entered(ended) == "[Errno 3] No such process: 'setns'"
    os.close(ended)


def test_monitor_is_opened_by_its_pid_only_while_it_holds_the_lock(tmp_path: Path) -> None:
    """If the lock is free the monitor has ended, and its pid may belong to any process."""
    store = Store(str(tmp_path), "c1")
    store.make()
    assert store.open_monitor(os.getpid()) == -1
    lock = store.lock()
    monitor = store.open_monitor(os.getpid())
    signal.pidfd_send_signal(monitor, 0)
    os.close(monitor)
    for pid in (0, -1, 2**22 + 5, 2**40):
        assert store.open_monitor(pid) == -1
    os.close(lock)
    assert store.open_monitor(os.getpid()) == -1


def test_children_of_a_process_are_found_until_they_end() -> None:
    text = "sleep 1000 & sleep 1001 & echo up; wait"
    with subprocess.Popen(["/bin/sh", "-c", text], stdout=subprocess.PIPE, start_new_session=True) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"up\n"
        parent = processes.open_process(shell.pid)
        children = processes.children_of(parent)
        assert [child.is_alive() for child in children] == [True, True]
        assert {os.readlink(f"/proc/{child.pid}/exe") for child in children} != {os.readlink("/proc/self/exe")}
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
        assert processes.children_of(parent) == []
