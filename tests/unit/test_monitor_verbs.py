"""Verbs that call the monitor: the call, and the output for its answer, its error and its end."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from hawse.cli.runc import update
from hawse.commands.client import call
from hawse.errors import ConfigError, LinkError, NotFoundError, StateError, VmError
from hawse.link import messages
from hawse.state import sockets
from hawse.state.store import CREATED, PAUSED, RUNNING, STOPPED, Store
from tests.support.command import Command
from tests.support.fake_monitor import HANG_UP, FakeMonitor
from tests.support.runtime import Runtime


@pytest.fixture
def hawse(tmp_path: Path) -> Command:
    return Command(str(tmp_path))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["pause", "c1"], ("pause", {})),
        (["resume", "c1"], ("resume", {})),
        (["kill", "c1"], ("kill", {"signal": 15, "all": False})),
        (["kill", "c1", "KILL"], ("kill", {"signal": 9, "all": False})),
        (["kill", "--all", "c1", "64"], ("kill", {"signal": 64, "all": True})),
        (["kill", "c1", "RTMIN"], ("kill", {"signal": 34, "all": False})),
        (["kill", "-a", "c1"], ("kill", {"signal": 15, "all": True})),
        (["start", "c1"], ("start", {})),
        (["update", "--memory", "64m", "c1"], ("update", {"resources": {"memory": {"limit": 64 << 20}}})),
        (["update", "--pids-limit", "0", "c1"], ("update", {"resources": {"pids": {"limit": 0}}})),
    ],
)
def test_verb_makes_one_call(hawse: Command, words: list[str], call: tuple[str, dict[str, Any]]) -> None:
    with FakeMonitor(hawse.store("c1")) as monitor:
        done = hawse(*words)
    assert (done.code, done.output, done.errors) == (0, "", "")
    method, params = call
    assert monitor.calls == [(method, params | {"container": "c1"})]


def test_monitor_error_reaches_the_user(hawse: Command) -> None:
    failure = VmError("the guest does not answer", hint="look at its console", evidence="panic\noops", exit_code=3)
    with FakeMonitor(hawse.store("c1"), {"pause": failure}):
        done = hawse("pause", "c1")
    assert done.code == 3
    assert done.errors == "hawse: the guest does not answer [look at its console]\n  | panic\n  | oops\n"


def test_monitor_that_ends_before_its_answer_is_reported(hawse: Command) -> None:
    with FakeMonitor(hawse.store("c1"), {"resume": HANG_UP}):
        done = hawse("resume", "c1")
    assert done.code == 1
    assert "container not running: c1: its monitor ended before it answered resume" in done.errors


@pytest.mark.parametrize(
    ("make", "words"),
    [(False, "container does not exist: c1"), (True, "container not running: c1\n")],
)
def test_verb_without_a_monitor_names_the_container(hawse: Command, make: bool, words: str) -> None:
    """A container that never existed is distinguished from one whose monitor has died."""
    if make:
        hawse.store("c1").make()
    done = hawse("pause", "c1")
    assert done.code == 1
    assert words in done.errors


def test_monitor_that_sends_an_event_violates_the_protocol(hawse: Command) -> None:
    """An answer is a reply; no other frame is accepted as one."""
    store = hawse.store("c1")
    store.make()
    with sockets.bind(store.path, "monitor.sock") as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(messages.encode_event("hello", {}))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(LinkError, match="a frame that is not a reply"):
            call(store, "pause", {})
        thread.join()


class TestKill:
    """`kill` of a container that has ended or is about to end."""

    def test_stopped_container_takes_no_signal(self, hawse: Command) -> None:
        with FakeMonitor(hawse.store("c1"), status=STOPPED) as monitor:
            done = hawse("kill", "c1")
        assert (done.code, done.errors) == (1, "hawse: container not running: c1\n")
        assert monitor.calls == []

    @pytest.mark.parametrize("status", [CREATED, PAUSED, RUNNING])
    def test_container_in_another_state_gets_the_signal(self, hawse: Command, status: str) -> None:
        with FakeMonitor(hawse.store("c1"), status=status) as monitor:
            assert hawse("kill", "c1").code == 0
        assert monitor.methods == ["kill"]

    @pytest.mark.parametrize("failure", [StateError("it has ended"), VmError("the guest closed the link"), HANG_UP])
    def test_all_after_the_end_succeeds(self, hawse: Command, failure: object) -> None:
        """Engines send SIGKILL to every process after the end, and runc accepts that."""
        with FakeMonitor(hawse.store("c1"), {"kill": failure}, status=STOPPED) as monitor:
            assert hawse("kill", "--all", "c1", "9").code == 0
        assert monitor.methods == ["kill"]

    def test_all_of_a_running_container_fails_with_its_monitor(self, hawse: Command) -> None:
        with FakeMonitor(hawse.store("c1"), {"kill": VmError("no answer")}):
            done = hawse("kill", "--all", "c1", "9")
        assert (done.code, done.errors) == (1, "hawse: no answer\n")

    def test_one_process_of_a_container_that_ends_meanwhile_is_an_error(self, hawse: Command) -> None:
        with FakeMonitor(hawse.store("c1")) as monitor:

            def end(_params: object) -> StateError:
                monitor.change(status=STOPPED)
                return StateError("it has ended")

            monitor.answers["kill"] = end
            done = hawse("kill", "c1", "9")
        assert (done.code, done.errors) == (1, "hawse: it has ended\n")


class TestStart:
    """`start`, its warnings and its hooks."""

    def test_stopped_container_cannot_be_started(self, hawse: Command) -> None:
        with FakeMonitor(hawse.store("c1"), status=STOPPED) as monitor:
            done = hawse("start", "c1")
        assert done.code == 1
        assert "cannot start a container that has stopped: c1 [delete it and create it" in done.errors
        assert monitor.calls == []

    def test_warnings_are_printed_and_details_are_not(self, hawse: Command) -> None:
        notes = [["warning", "eth0 is down"], ["debug", "a detail"]]
        with FakeMonitor(hawse.store("c1"), {"start": notes}, status=CREATED):
            done = hawse("start", "c1")
        assert (done.code, done.errors) == (0, "hawse: warning: eth0 is down\n")

    def test_poststart_hooks_run_after_the_start(self, hawse: Command, tmp_path: Path) -> None:
        seen = tmp_path / "seen"
        hooks = {
            "poststart": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > {seen}"]}],
            "poststop": [{"path": "/bin/sh", "args": ["sh", "-c", f"touch {tmp_path}/stopped"]}],
        }
        with FakeMonitor(hawse.store("c1"), status=CREATED, hooks=hooks, bundle=str(tmp_path)) as monitor:
            monitor.answers["start"] = lambda _: not seen.exists() or VmError("a hook ran before the start")
            done = hawse("start", "c1")
        assert (done.code, done.errors) == (0, "")
        about = json.loads(seen.read_text())
        assert (about["id"], about["status"], about["pid"]) == ("c1", "running", os.getpid())
        assert not (tmp_path / "stopped").exists()

    @pytest.mark.parametrize("ended", [False, True])
    def test_poststart_hook_that_fails_kills_the_container(self, hawse: Command, tmp_path: Path, ended: bool) -> None:
        """Later hooks do not run. A container that has ended by itself is not killed."""
        later = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {tmp_path}/later"]}
        hooks = {"poststart": [{"path": "/bin/true"}, {"path": "/bin/false"}, later]}
        with FakeMonitor(hawse.store("c1"), status=CREATED, hooks=hooks, bundle=str(tmp_path)) as monitor:
            monitor.answers["kill"] = lambda _: StateError("container not running: c1") if ended else None
            done = hawse("start", "c1")
            assert [(name, params) for name, params in monitor.calls if name != "start"] == [
                ("kill", {"signal": 9, "all": False, "container": "c1"})
            ]
        assert (done.code, done.errors) == (1, "hawse: error running poststart hook #1: /bin/false: exit code 1\n")
        assert not (tmp_path / "later").exists()


class TestUpdate:
    """`update`: the source of the limits."""

    def test_file_replaces_the_options_and_warnings_are_printed(self, hawse: Command, tmp_path: Path) -> None:
        limits = tmp_path / "limits.json"
        limits.write_text('{"pids": {"limit": 5}}')
        with FakeMonitor(hawse.store("c1"), {"update": ["slow", "late"]}) as monitor:
            done = hawse("update", "-r", str(limits), "--memory", "1m", "c1")
        assert monitor.calls == [("update", {"resources": {"pids": {"limit": 5}}, "container": "c1"})]
        assert (done.code, done.errors) == (0, "hawse: warning: slow\nhawse: warning: late\n")

    @pytest.mark.parametrize(
        ("status", "limits", "asked"),
        [
            (RUNNING, {"pids": {"limit": 5}}, False),
            (CREATED, {"pids": {"limit": 5}}, False),
            (PAUSED, {"pids": {"limit": 5}}, False),
            (RUNNING, {"pids": {"limit": 6}}, True),
            (RUNNING, None, True),
            (STOPPED, {"pids": {"limit": 5}}, True),
        ],
    )
    def test_unchanged_limits_are_not_sent(
        self, hawse: Command, status: str, limits: dict[str, Any] | None, asked: bool
    ) -> None:
        """A kubelet sends them every ten seconds. For a container that has ended, the monitor reports the error."""
        with FakeMonitor(hawse.store("c1"), status=status) as monitor:
            store = Store(hawse.store("c1").root, "c1")
            store.write(store.read() | {"status": status, "limits": limits})
            done = hawse("update", "--pids-limit", "5", "c1")
        assert (done.code, done.output, done.errors) == (0, "", "")
        assert monitor.methods == (["update"] if asked else [])

    @pytest.mark.parametrize(
        ("words", "error"),
        [
            (["--cpu-quota", "x", "c1"], "update: --cpu-quota 'x' is not a number"),
            (["--memory", "many", "c1"], "update: --memory 'many' is not a size [write it as 512m]"),
            (["--memory"], "--memory needs a value"),
            (["--weight", "1", "c1"], "unknown option '--weight'"),
            ([], "update: ID is missing [see `hawse update --help`]"),
        ],
    )
    def test_wrong_option_is_named(self, hawse: Command, words: list[str], error: str) -> None:
        done = hawse("update", *words)
        assert done.code == 1
        assert error in done.errors

    def test_standard_input_is_read(self, tmp_path: Path) -> None:
        hawse = Runtime(str(tmp_path))
        with FakeMonitor(Store(hawse.root, "c1")) as monitor:
            assert hawse("update", "-r", "-", "c1", stdin='{"cpu": {"shares": 7}}').code == 0
        assert monitor.calls[0][1]["resources"] == {"cpu": {"shares": 7}}

    def test_standard_input_has_at_most_a_mebibyte(self, tmp_path: Path) -> None:
        hawse = Runtime(str(tmp_path))
        with FakeMonitor(Store(hawse.root, "c1")) as monitor:
            done = hawse("update", "-r", "-", "c1", stdin="{}".ljust(1024 * 1024 + 1))
        assert "update: -: larger than 1048576 bytes" in done.errors
        assert monitor.calls == []

    @pytest.mark.parametrize(("extra", "refused"), [(0, False), (1, True)])
    def test_file_has_at_most_a_mebibyte(self, hawse: Command, tmp_path: Path, extra: int, refused: bool) -> None:
        limits = tmp_path / "limits.json"
        limits.write_bytes(b"{}".ljust(1024 * 1024 + extra))
        with FakeMonitor(hawse.store("c1")) as monitor:
            done = hawse("update", "-r", str(limits), "c1")
        assert ("larger than 1048576 bytes" in done.errors) is refused
        assert bool(monitor.calls) is not refused

    @pytest.mark.parametrize(
        ("text", "words"), [(None, "no such file or directory"), ("{", "not JSON"), ("[" * 200_000, "not JSON")]
    )
    def test_unusable_file_is_named(self, tmp_path: Path, text: str | None, words: str) -> None:
        limits = tmp_path / "limits.json"
        if text is not None:
            limits.write_text(text)
        with pytest.raises(ConfigError, match=f"^update: {limits}: {words}"):
            update._read(str(limits))


class TestPs:
    """`ps`: the guest's table, or the host's for the pids that the engine knows."""

    def test_table_is_that_of_the_guest(self, hawse: Command) -> None:
        rows = [[0, 1, 0, 100, "?", 10, "sleep 1"]]
        with FakeMonitor(hawse.store("c1"), {"listing": rows}) as monitor:
            done = hawse("ps", "c1")
        assert done.output.splitlines()[1].endswith("sleep 1")
        assert monitor.methods == ["listing"]

    def test_json_contains_the_pids_of_the_host(self, hawse: Command) -> None:
        with FakeMonitor(hawse.store("c1"), {"pids": [11, 12]}) as monitor:
            done = hawse("ps", "-f", "json", "c1")
        assert json.loads(done.output) == [11, 12]
        assert monitor.methods == ["pids"]

    def test_options_are_for_the_hosts_ps(self, hawse: Command) -> None:
        with FakeMonitor(hawse.store("c1"), {"pids": [os.getpid()]}):
            done = hawse("ps", "c1", "-e", "-o", "pid,comm")
        title, line = done.output.splitlines()
        assert title.split()[0] == "PID"
        assert line.split()[0] == str(os.getpid())

    def test_failed_ps_is_reported_with_its_output(self, hawse: Command) -> None:
        with FakeMonitor(hawse.store("c1"), {"pids": [1]}):
            done = hawse("ps", "c1", "--nonsense")
        assert done.code == 1
        assert "ps --nonsense: exit code" in done.errors
        assert "  | " in done.errors

    def test_missing_ps_is_reported_in_a_sentence(self, hawse: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/none")
        with FakeMonitor(hawse.store("c1"), {"pids": [1]}):
            done = hawse("ps", "c1", "-ef")
        assert "cannot run ps: No such file or directory [install procps]" in done.errors


def test_not_found_of_the_monitor_is_reported(hawse: Command) -> None:
    with FakeMonitor(hawse.store("c1"), {"pause": NotFoundError("container does not exist: c1")}):
        assert hawse("pause", "c1").errors == "hawse: container does not exist: c1\n"
