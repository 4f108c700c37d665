"""The command line itself: global options, help, errors, and the one place that prints them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hawse.__main__ import HOT, VERBS
from hawse.cli.settings import Settings
from hawse.log import Log
from hawse.state.store import STOPPED, Store
from tests.support.command import Command
from tests.support.fake_monitor import FakeMonitor
from tests.support.runtime import Runtime


@pytest.fixture
def hawse(tmp_path: Path) -> Command:
    return Command(str(tmp_path))


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_has_every_option_and_command(hawse: Command, word: str) -> None:
    done = hawse(options=(word,))
    assert done.code == 0
    for name in ("--root ROOT", "--log-format LOG-FORMAT", "--debug", "--systemd-cgroup"):
        assert f"  {name} " in done.output
    assert all(f" {verb}" in done.output for verb in VERBS)


@pytest.mark.parametrize("word", ["--version", "-v"])
def test_version_has_the_format_that_engines_parse(hawse: Command, word: str) -> None:
    done = hawse("state", "c1", options=(word,))
    assert done.code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == ["hawse", "commit:", "spec:"]


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_each_verb_has_its_help(tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    hawse = Command(str(tmp_path))
    if verb in HOT:
        for word in ("-h", "--help"):
            done = hawse(verb, word)
            assert (done.code, done.output.splitlines()[0].split()[:3]) == (0, ["usage:", "hawse", verb])
        return
    with pytest.raises(SystemExit) as caught:
        hawse(verb, "--help")
    assert caught.value.code == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "no command given [see `hawse --help`]"),
        (["jump"], "unknown command 'jump' [see `hawse --help`]"),
        (["checkpoint", "c1"], "unknown command 'checkpoint': a virtual machine with devices cannot be saved ["),
        (["restore", "--help"], "unknown command 'restore': a virtual machine with devices cannot be saved ["),
        (["--log-format", "xml", "list"], "--log-format 'xml' is neither text nor json [see `hawse --help`]"),
        (["state"], "state: ID is missing [see `hawse state --help`]"),
        (["kill", "a", "b", "c"], "kill: unexpected argument 'c' [see `hawse kill --help`]"),
        (["delete", "--now", "c1"], "delete: unknown option '--now' [see `hawse delete --help`]"),
        (["update", "c1", "--memory"], "update: --memory needs a value [see `hawse update --help`]"),
        (["list", "--nonsense"], "list: unrecognized arguments: --nonsense [see `hawse list --help`]"),
        (["list", "-f", "xml"], "list: argument -f/--format: invalid choice: 'xml'"),
    ],
)
def test_invalid_command_line_is_reported_in_a_sentence(hawse: Command, words: list[str], error: str) -> None:
    done = hawse(*words)
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith(f"hawse: {error}")


@pytest.mark.parametrize(
    "verb",
    ["attach", "create", "delete", "detach", "events", "exec", "kill", "pause", "ps", "resume", "run", "start", "state",
     "update"],
)  # fmt: skip
def test_verb_without_an_id_names_its_own_help(hawse: Command, verb: str) -> None:
    done = hawse(verb)
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith(f"hawse: {verb}: ")
    assert "ID" in done.errors
    assert done.errors.endswith(f"[see `hawse {verb} --help`]\n")


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("text", str)])
def test_error_goes_to_the_log_file_and_to_stderr(hawse: Command, tmp_path: Path, form: str, read: type) -> None:
    log = tmp_path / "log"
    done = hawse("state", "c1", options=("--log", str(log), "--log-format", form))
    assert done.errors == "hawse: container does not exist: c1\n"
    entry = read(log.read_text())
    assert "container does not exist: c1" in str(entry)
    assert isinstance(entry, dict) is (form == "json")


def test_json_without_a_file_goes_only_to_stderr(hawse: Command) -> None:
    done = hawse("state", "c1", options=("--log-format=json",))
    assert json.loads(done.errors)["msg"] == "container does not exist: c1"


def test_bug_is_a_sentence_and_with_debug_a_traceback(hawse: Command) -> None:
    """A state file with a monitor and without a pid was not written by hawse: nothing in the code expects it."""
    store = hawse.store("c1")
    store.make()
    store.write({"ociVersion": "1.0.2", "status": "running"})
    lock = store.lock()
    done = hawse("state", "c1")
    assert done.code == 1
    assert done.errors == "hawse: unexpected KeyError: 'pid' [this is a bug in hawse; --debug shows where]\n"
    with pytest.raises(KeyError):
        hawse("state", "c1", options=("--debug",))
    os.close(lock)


def test_closed_output_ends_the_command_without_a_traceback(tmp_path: Path) -> None:
    """As `hawse list | head -0`: no traceback, neither from the command nor from Python's exit."""
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(Runtime(str(tmp_path)).argv("features"), stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_broken_pipe_elsewhere_is_reported(monkeypatch: pytest.MonkeyPatch, hawse: Command) -> None:
    """As of a socket to another process: without a message, an engine would report no reason."""

    def write(*_arguments: object) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("hawse.cli.runc.features.run", write)
    done = hawse("features")
    assert done.code == 1
    assert done.errors.startswith("hawse: unexpected BrokenPipeError: [Errno 32] Broken pipe [this is a bug in hawse")


def test_module_is_a_program(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "hawse", "--root", str(tmp_path), "list", "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_state_is_printed_in_runcs_keys(hawse: Command) -> None:
    with FakeMonitor(hawse.store("c1"), annotations={"a": "b"}):
        state = json.loads(hawse("state", "c1").output)
    assert (state["id"], state["status"], state["pid"], state["annotations"]) == (
        "c1", "running", os.getpid(), {"a": "b"},
    )  # fmt: skip
    assert "monitorPid" not in state


class TestList:
    """`list` in its three forms."""

    @pytest.fixture
    def two(self, hawse: Command) -> Command:
        with FakeMonitor(hawse.store("b-long-name")) as monitor:
            monitor.change(status=STOPPED)
        with FakeMonitor(hawse.store("a")):
            pass
        os.mkdir(f"{hawse.root}/not an id")
        (Path(hawse.root) / "file").write_text("")
        return hawse

    def test_table_is_aligned(self, two: Command) -> None:
        lines = two("list").output.splitlines()
        assert [line.split()[0] for line in lines] == ["ID", "a", "b-long-name"]
        assert {line.index(word) for line, word in zip(lines, ("PID", "0", "0"), strict=True)} == {14}
        assert lines[0].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
        assert lines[1].endswith("root")

    def test_quiet_has_the_ids(self, two: Command) -> None:
        assert two("list", "-q").output == "a\nb-long-name\n"

    def test_json_has_the_states(self, two: Command) -> None:
        assert [state["id"] for state in json.loads(two("list", "-f", "json").output)] == ["a", "b-long-name"]

    @pytest.mark.parametrize("exists", [False, True])
    def test_no_containers_are_null_in_json(self, hawse: Command, exists: bool) -> None:
        if exists:
            os.mkdir(hawse.root)
        assert hawse("list", "-f", "json").output == "null\n"
        assert hawse("list", "-q").output == ""


def test_invalid_id_is_refused_first(hawse: Command) -> None:
    done = hawse("state", "../c1")
    assert (done.code, "invalid container ID format: '../c1'" in done.errors) == (1, True)


def test_default_root_is_run_hawse() -> None:
    settings = Settings(root=None, log=Log(), config_path=None, debug=False)
    assert settings.store("c1").path == Store("/run/hawse", "c1").path


def test_configuration_is_read_once_on_demand(hawse: Command, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    settings = Settings(root=hawse.root, log=Log(), config_path=str(path), debug=False)
    path.write_text("[vm]\ncpus = 3\n")
    first = settings.config
    path.write_text("[vm]\ncpus = 4\n")
    assert (first.vm.cpus, settings.config) == (3, first)
