"""Commands of a user who is not root: errors name what cannot be read, and `hawse doctor` reports everything else."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.__main__ import VERBS
from hawse.cli.own.devices import _monitors
from hawse.oci.default_spec import example
from tests.support.command import Command, Done
from tests.support.forked import in_child

NOBODY = 65534


class Guest(Command):
    """`hawse` as another user than root; the state directory and the templates belong to root and have their usual
    modes."""

    def __call__(self, *words: str, options: tuple[str, ...] = ()) -> Done:
        os.seteuid(NOBODY)
        try:
            return super().__call__(*words, options=options)
        finally:
            os.seteuid(0)


@pytest.fixture
def hawse() -> Iterator[Guest]:
    # Not below pytest's directory, which other users cannot enter.
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        guest = Guest(directory)
        guest.configure(f'[vm]\nqemu = "/none"\n[image]\ncache = "{directory}/cache"\n')
        guest.store("web").make()
        os.chmod(guest.root, 0o711)
        os.makedirs(f"{directory}/cache/templates", mode=0o755)
        os.chmod(f"{directory}/cache/templates", 0o700)
        yield guest


def test_list_names_the_directory(hawse: Guest) -> None:
    done = hawse("list")
    assert (done.code, done.errors) == (1, f"hawse: {hawse.root} cannot be read: Permission denied [run as root]\n")


def test_template_list_names_the_directory(hawse: Guest) -> None:
    templates = f"{Path(hawse.root).parent}/cache/templates"
    done = hawse("template", "list")
    assert (done.code, done.errors) == (1, f"hawse: {templates} cannot be read: Permission denied [run as root]\n")


@pytest.mark.parametrize(
    "words",
    [
        ("state", "web"),
        ("start", "web"),
        ("kill", "web"),
        ("delete", "web"),
        ("delete", "--force", "web"),
        ("exec", "web", "true"),
        ("ps", "web"),
        ("pause", "web"),
        ("resume", "web"),
        ("events", "--stats", "web"),
        ("update", "--memory", "1", "web"),
        ("attach", "web", "0000:3b:00.0"),
    ],
    ids=" ".join,
)
def test_unreadable_state_is_not_reported_as_a_bug(hawse: Guest, words: tuple[str, ...]) -> None:
    done = hawse(*words)
    assert done.code == 1
    assert done.errors.startswith(f"hawse: {hawse.root}/web/")
    assert done.errors.endswith(": Permission denied [run as root]\n")


def test_missing_container_is_reported_as_such(hawse: Guest) -> None:
    assert hawse("state", "other").errors == "hawse: container does not exist: other\n"


def test_permission_error_of_root_is_still_reported_as_a_bug(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied", "/file")

    monkeypatch.setattr("hawse.cli.runc.features.run", refuse)
    assert "this is a bug in hawse" in Command(str(tmp_path))("features").errors


def test_doctor_reports_what_it_cannot_read_and_goes_on(hawse: Guest) -> None:
    done = hawse("doctor", "--json")
    assert (done.code, done.errors) == (1, "")
    lines = {
        check["name"]: (check["verdict"], check["found"], check["remedy"])
        for check in json.loads(done.output)["checks"]
    }
    templates = f"{Path(hawse.root).parent}/cache/templates"
    assert lines["templates"] == ("warning", f"{templates} cannot be read: Permission denied", "run as root")
    assert lines["sandboxes"] == ("warning", f"{hawse.root} cannot be read: Permission denied", "run as root")
    assert {"QEMU", "jail", "IOMMU", "bindings"} < set(lines)


def test_devices_are_listed_without_the_names_of_sandboxes(hawse: Guest) -> None:
    os.seteuid(NOBODY)
    try:
        assert _monitors(hawse.root) == {}
    finally:
        os.seteuid(0)


#: Every verb, in the forms that reach the host: state, configuration, cache and sysfs. ID is a container of root.
COMMANDS = [
    "--help", "--version", "features", "list", "list --format json", "state ID", "state none", "devices",
    "devices --json", "doctor", "doctor --json", "doctor --repair", "spec --bundle DIR", "create --bundle BUNDLE c2",
    "create --bundle /none c2", "run --bundle BUNDLE c2", "start ID", "kill ID", "kill --all ID KILL", "delete ID",
    "delete --force ID", "delete --force none", "exec ID true", "ps ID", "events ID", "events --stats ID",
    "update --memory 64m ID", "pause ID", "resume ID", "attach ID 5", "detach ID 5", "image build", "image verify",
    "template list", "template build", "template remove --all", "timeline DIR/none", "bind 0000:00:00.0",
    "unbind 0000:00:00.0", "unbind --all", "install podman", "install docker", "install containerd", "install crio",
    "install --undo docker", "install --dry-run docker --program /bin/true", "checkpoint ID", "restore ID",
]  # fmt: skip
#: Commands that need no privileges succeed.
WORKS = ("--help", "--version", "features", "devices", "delete --force none", "install --dry-run docker")


def as_nobody(hawse: Guest, words: list[str], directory: str) -> tuple[int, str, str]:
    """A command as another user, not only with another effective id, in a forked child."""

    def run() -> tuple[int, str, str]:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.chdir(directory)
        done = Command.__call__(hawse, *words)
        return done.code, done.output, done.errors

    for name in VERBS.values():  # the project's directory may be accessible only to root
        importlib.import_module(f"hawse.cli.{name}")
    code, output, errors = in_child(run)
    return code, output, errors


@pytest.mark.parametrize("mode", [0o711, 0o700, 0o755], ids=oct)
@pytest.mark.parametrize("words", COMMANDS)
def test_every_verb_shows_readable_data_or_reports_a_sentence(hawse: Guest, words: str, mode: int) -> None:
    """``mode`` is that of the directory of the containers: hawse's own, one that an engine has created, and an open
    one."""
    parent = str(Path(hawse.root).parent)
    os.chmod(hawse.root, mode)
    os.makedirs(f"{parent}/bundle/rootfs")
    (Path(parent) / "bundle/config.json").write_text(json.dumps(example()))
    os.mkdir(f"{parent}/own")
    os.chown(f"{parent}/own", NOBODY, NOBODY)
    places = {"ID": "web", "DIR": f"{parent}/own", "BUNDLE": f"{parent}/bundle"}
    code, output, errors = as_nobody(
        hawse, [places.get(word, word.replace("DIR", places["DIR"])) for word in words.split()], f"{parent}/own"
    )
    assert "this is a bug" not in errors
    assert "Traceback" not in errors + output
    if words.startswith(WORKS) and not (words.startswith("delete") and mode == 0o700):
        assert (code, errors) == (0, "")
    elif words.startswith("doctor"):
        assert (code, errors) == (1, "")
        assert "not ready for containers: " in output or '"ready": false' in output
    elif code:
        lines = errors.splitlines()
        assert len(lines) == 1 or lines[0].startswith("hawse: warning: "), errors
        assert lines[-1].startswith("hawse: ")
        does_not_exist = "does not exist" in lines[-1] or words.startswith(("checkpoint", "restore"))
        assert lines[-1].endswith("]") or does_not_exist, f"no remedy: {lines[-1]}"
    assert sorted(os.listdir(hawse.root)) == ["web"]


def test_every_verb_is_among_the_commands() -> None:
    assert set(VERBS) <= {words.split()[0] for words in COMMANDS}


def test_list_shows_readable_containers_and_names_the_others(hawse: Guest) -> None:
    """Below a directory of another engine, which every user may list."""
    os.chmod(hawse.root, 0o755)
    store = hawse.store("open")
    store.make()
    os.chmod(store.path, 0o755)
    store.write({"id": "open", "pid": 0, "status": "stopped", "bundle": "/b", "created": "now", "owner": "root"})
    code, output, errors = as_nobody(hawse, ["list", "--quiet"], "/")
    assert (code, output) == (0, "open\n")
    assert errors == f"hawse: warning: web is not listed: {hawse.root}/web/state.json cannot be read [run as root]\n"


@pytest.mark.parametrize("words", ["list", "devices", "state web", "create c2"])
def test_unreadable_configuration_and_log_are_named(hawse: Guest, words: str) -> None:
    os.chmod(hawse.config, 0o600)
    parent = str(Path(hawse.root).parent)
    code, _, errors = as_nobody(hawse, ["--log", f"{parent}/log", *words.split()], "/")
    assert "this is a bug" not in errors
    assert code == 1
    assert errors.startswith("hawse: ")
    assert errors.endswith("]\n")
