"""A process drops capabilities, and access to files by Landlock."""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hawse.linux import landlock, process_capabilities, processes
from hawse.linux.libc import check, libc
from hawse.proxy import main as proxy
from tests.support.forked import in_child, outcome


def sets() -> dict[str, int]:
    text = Path("/proc/self/status").read_text()
    return {name: int(value, 16) for name, value in re.findall(r"Cap(\w+):\t(\w+)", text)}


@pytest.mark.parametrize("names", [(), ("CHOWN",), ("CHOWN", "SYS_ADMIN", "MKNOD")])
def test_only_kept_capabilities_remain_in_every_set(names: tuple[str, ...]) -> None:
    def act() -> Any:
        process_capabilities.keep_only(names)
        return sets()

    kept = sum(1 << process_capabilities.NUMBERS[name] for name in names)
    assert in_child(act) == {"Inh": 0, "Prm": kept, "Eff": kept, "Bnd": kept, "Amb": 0}


def test_dropped_capabilities_cannot_be_regained() -> None:
    def act() -> Any:
        process_capabilities.keep_only(("CHOWN",))
        process_capabilities.keep_only(("CHOWN", "SYS_ADMIN"))
        return sets()["Eff"]

    assert in_child(act) == 1


def test_landlock_denies_new_files_and_keeps_open_descriptors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")

    def act() -> Any:
        before = os.open(tmp_path / "file", os.O_RDWR)
        ours, theirs = socket.socketpair()
        processes.give_up_privileges()
        if not landlock.restrict():
            return None
        theirs.sendall(b"sent")
        return {
            "read what is open": os.read(before, 100).decode(),
            "receive": ours.recv(100).decode(),
            "open": outcome(lambda: os.open(tmp_path / "file", os.O_RDONLY)),
            "list": outcome(lambda: os.listdir("/")),
            "make": outcome(lambda: os.mkdir(tmp_path / "new")),
            "remove": outcome(lambda: os.unlink(tmp_path / "file")),
            "execute": outcome(lambda: os.execv("/bin/true", ["true"])),
        }

    results = in_child(act)
    if results is None:
        pytest.skip("this kernel has no Landlock")
    assert (results.pop("read what is open"), results.pop("receive")) == ("content", "sent")
    assert set(results.values()) == {"Permission denied"}, results


def test_confined_proxy_can_use_only_its_descriptors(tmp_path: Path) -> None:
    """As uid 0 it could connect to root's sockets, change limits of root's processes, and create a user namespace."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/socket")
        listener.listen()

        def act() -> Any:
            ours, theirs = socket.socketpair()
            unconnected = socket.socket(socket.AF_UNIX)
            proxy._confine()
            theirs.sendall(b"sent")
            threads: list[str] = []
            thread = threading.Thread(target=lambda: threads.append(ours.recv(100).decode()))
            thread.start()
            thread.join()
            return threads, {
                "connect": outcome(lambda: unconnected.connect(f"{tmp_path}/socket")),
                "make a socket": outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
                "limit another process": outcome(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)),
                "signal another process": outcome(lambda: os.kill(os.getppid(), 0)),
                "make a user namespace": outcome(lambda: check(libc.unshare(0x10000000), "")),
                "open a file": outcome(lambda: os.open("/etc/passwd", os.O_RDONLY)),
                "fork": outcome(os.fork),
            }

        received, outcomes = in_child(act)
    assert received == ["sent"]
    assert [name for name, answer in outcomes.items() if answer == "done"] == [], outcomes


def test_kernel_without_landlock_is_not_an_error() -> None:
    assert landlock.restrict(create_ruleset=10_000) is False


def test_file_server_keeps_its_capabilities_while_it_acts_for_a_user(tmp_path: Path) -> None:
    """Also in a program that was executed. It creates files with the user's ids in a directory of root."""
    script = (
        "import os, sys\nos.setresgid(-1, 2000, -1)\nos.setresuid(-1, 1000, -1)\n"
        "os.close(os.open(sys.argv[1], os.O_CREAT | os.O_EXCL, 0o644))\n"
    )
    (tmp_path / "roots").mkdir(mode=0o755)
    for kept in (True, False):

        def act(kept: bool = kept) -> int:
            if kept:
                process_capabilities.keep_through_user_changes()
            processes.give_up_privileges()
            path = tmp_path / "roots" / f"made-{kept}"
            words = [sys.executable, "-I", "-S", "-c", script, str(path)]
            return subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode

        assert (in_child(act) == 0) is kept
    status = (tmp_path / "roots/made-True").stat()
    assert (status.st_uid, status.st_gid) == (1000, 2000)
    assert os.listdir(tmp_path / "roots") == ["made-True"]


def test_capabilities_that_cannot_be_kept_are_an_error() -> None:
    def act() -> str:
        process_capabilities.keep_only(("SETUID",))
        return outcome(process_capabilities.keep_through_user_changes)

    assert in_child(act) == "Operation not permitted"
