"""The agent's calls of crun: arguments, descriptors, logs, and the start of a container without a command of crun."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from hawse.agent.container.crun import Crun, read_log
from hawse.agent.system.reaper import Reaper
from hawse.errors import VmError


class FakeReaper:
    """Runs nothing: each command exits with ``code`` and writes ``log``, if any, to its log file."""

    def __init__(self, code: int = 0, log: str | None = None) -> None:
        self.code = code
        self.log = log
        self.calls: list[tuple[list[str], dict[int, str]]] = []

    def spawn(self, argv: Sequence[str], *, descriptors: Mapping[int, int], **_other: Any) -> int:
        files = {theirs: os.readlink(f"/proc/self/fd/{ours}") for theirs, ours in descriptors.items()}
        self.calls.append((list(argv), files))
        if self.log is not None:
            [path] = [word.removeprefix("--log=file:") for word in argv if word.startswith("--log=")]
            Path(path).write_text(self.log)
        return len(self.calls)

    def wait(self, _pid: int) -> int:
        return self.code


def crun(tmp_path: Path, reaper: FakeReaper) -> Crun:
    return Crun(cast(Reaper, reaper), directory=str(tmp_path), program="/bin/crun", root=str(tmp_path / "crun"))


def test_command_has_its_options_and_an_empty_stdio(tmp_path: Path) -> None:
    reaper = FakeReaper()
    crun(tmp_path, reaper).run("pause", "c1", log="log-freeze")
    options = [f"--root={tmp_path}/crun", "--cgroup-manager=cgroupfs", "--log-format=json"]
    argv = ["/bin/crun", *options, f"--log=file:{tmp_path}/log-freeze", "pause", "c1"]
    assert reaper.calls == [(argv, dict.fromkeys(range(3), "/dev/null"))]


def test_passed_descriptors_replace_the_empty_ones(tmp_path: Path) -> None:
    reaper = FakeReaper()
    with (tmp_path / "out").open("w") as file:
        crun(tmp_path, reaper).run("exec", "c1", descriptors={1: file.fileno(), 5: file.fileno()})
    path = str(tmp_path / "out")
    assert reaper.calls[0][1] == {0: "/dev/null", 1: path, 2: "/dev/null", 5: path}


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ('{"msg": "no cgroup"}', "crun pause in the guest: no cgroup"),
        (None, "crun pause in the guest: exit code 3"),
        ("", "crun pause in the guest: exit code 3"),
    ],
)
def test_failure_has_the_text_of_crun_if_any(tmp_path: Path, log: str | None, words: str) -> None:
    with pytest.raises(VmError) as caught:
        crun(tmp_path, FakeReaper(3, log)).run("pause", "c1")
    assert caught.value.message == words


def test_log_of_a_successful_command_is_removed(tmp_path: Path) -> None:
    crun(tmp_path, FakeReaper(0, '{"msg": "a warning"}')).run("pause", "c1")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"msg": "first"}\n{"msg": "last"}\n', "last"),
        ('{"msg": "whole"}\n{"msg": "cut', "whole"),
        ('{"level": "error"}\n[]\n7\n', ""),
        ('{"msg": "early"}\n' + "x" * 70_000 + '\n{"msg": "late"}', "early"),
    ],
)
def test_last_message_of_a_log_is_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log").write_text(text)
    assert read_log(f"{tmp_path}/log") == message


def test_log_is_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"msg": "early"}\n' + "x" * 3000 + '\n{"msg": "late"}')
    assert read_log(f"{tmp_path}/log") == "late"
    assert read_log(f"{tmp_path}/none") == ""


def test_container_is_started_by_its_fifo(tmp_path: Path) -> None:
    """It writes one byte and removes the name first: crun takes a container with a FIFO for one that is not started."""
    directory = tmp_path / "crun/c1"
    directory.mkdir(parents=True)
    os.mkfifo(directory / "exec.fifo")
    reading = os.open(directory / "exec.fifo", os.O_RDONLY | os.O_NONBLOCK)
    reaper = FakeReaper()
    crun(tmp_path, reaper).start("c1")
    assert os.read(reading, 100) == b"\0"
    os.close(reading)
    assert os.listdir(directory) == []
    assert reaper.calls == []


@pytest.mark.parametrize("exists", [False, True])
def test_crun_starts_a_container_whose_fifo_has_no_reader(tmp_path: Path, exists: bool) -> None:
    directory = tmp_path / "crun/c1"
    directory.mkdir(parents=True)
    if exists:
        os.mkfifo(directory / "exec.fifo")
    reaper = FakeReaper()
    crun(tmp_path, reaper).start("c1")
    assert [argv[-2:] for argv, _ in reaper.calls] == [["start", "c1"]]
