"""A process gives up capabilities and access to files by the kernel's own means."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hawse.container import proxy
from hawse.linux import capabilities, landlock, processes
from hawse.linux.mounts import _libc, check


def in_child(act: Callable[[], Any]) -> Any:
    """The return value of a forked child. Raises AssertionError where the child raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = {"returned": act()}
        except BaseException:
            answer = {"raised": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        answer = json.loads(file.read())
    os.waitpid(child, 0)
    assert "raised" not in answer, answer["raised"]
    return answer["returned"]


def sets() -> dict[str, int]:
    text = Path("/proc/self/status").read_text()
    return {name: int(value, 16) for name, value in re.findall(r"Cap(\w+):\t(\w+)", text)}


@pytest.mark.parametrize("names", [(), ("CHOWN",), ("CHOWN", "SYS_ADMIN", "MKNOD")])
def test_all_capabilities_but_the_kept_ones_are_dropped_from_every_set(names: tuple[str, ...]) -> None:
    def act() -> Any:
        capabilities.keep_only(names)
        return sets()

    kept = sum(1 << capabilities.NUMBERS[name] for name in names)
    assert in_child(act) == {"Inh": 0, "Prm": kept, "Eff": kept, "Bnd": kept, "Amb": 0}


def test_capabilities_that_are_gone_are_not_regained() -> None:
    def act() -> Any:
        capabilities.keep_only(("CHOWN",))
        capabilities.keep_only(("CHOWN", "SYS_ADMIN"))
        return sets()["Eff"]

    assert in_child(act) == 1


def test_landlock_forbids_files_and_leaves_open_descriptors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")

    def attempt(act: Callable[[], object]) -> str:
        try:
            act()
        except OSError as error:
            return os.strerror(error.errno or 0)
        return "done"

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
            "open": attempt(lambda: os.open(tmp_path / "file", os.O_RDONLY)),
            "list": attempt(lambda: os.listdir("/")),
            "make": attempt(lambda: os.mkdir(tmp_path / "new")),
            "remove": attempt(lambda: os.unlink(tmp_path / "file")),
            "execute": attempt(lambda: os.execv("/bin/true", ["true"])),
        }

    found = in_child(act)
    if found is None:
        pytest.skip("this kernel has no Landlock")
    assert (found.pop("read what is open"), found.pop("receive")) == ("content", "sent")
    assert set(found.values()) == {"Permission denied"}, found


def test_confined_proxy_reaches_nothing_but_its_descriptors(tmp_path: Path) -> None:
    """As uid 0 it could connect to sockets of root, change limits of its processes, and make a user namespace."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/socket")
        listener.listen()

        def attempt(act: Callable[[], object]) -> str:
            try:
                act()
            except OSError as error:
                return os.strerror(error.errno or 0)
            return "done"

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
                "connect": attempt(lambda: unconnected.connect(f"{tmp_path}/socket")),
                "make a socket": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
                "limit another process": attempt(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)),
                "signal another process": attempt(lambda: os.kill(os.getppid(), 0)),
                "make a user namespace": attempt(lambda: check(_libc.unshare(0x10000000), "")),
                "open a file": attempt(lambda: os.open("/etc/passwd", os.O_RDONLY)),
                "fork": attempt(os.fork),
            }

        received, outcomes = in_child(act)
    assert received == ["sent"]
    assert [name for name, outcome in outcomes.items() if outcome == "done"] == [], outcomes


def test_a_kernel_without_landlock_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "_SYS_CREATE_RULESET", 10_000)
    assert landlock.restrict() is False
