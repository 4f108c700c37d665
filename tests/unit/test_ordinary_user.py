"""Commands of a user who is not root: a sentence names what cannot be read, and `hawse doctor` reports the rest."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.cli.devices import _monitors
from tests.support.command import Command, Done

NOBODY = 65534


class Guest(Command):
    """`hawse` as another user than root; the state directory and the templates are root's, with their usual modes."""

    def __call__(self, *words: str, options: tuple[str, ...] = ()) -> Done:
        os.seteuid(NOBODY)
        try:
            return super().__call__(*words, options=options)
        finally:
            os.seteuid(0)


@pytest.fixture
def hawse() -> Iterator[Guest]:
    # Not below pytest's own directory, which no other user can enter.
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        made = Guest(directory)
        made.configure(f'[vm]\nqemu = "/none"\n[image]\ncache = "{directory}/cache"\n')
        made.store("web").make()
        os.chmod(made.root, 0o711)
        os.makedirs(f"{directory}/cache/templates", mode=0o755)
        os.chmod(f"{directory}/cache/templates", 0o700)
        yield made


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
def test_state_of_a_container_that_cannot_be_read_is_no_bug(hawse: Guest, words: tuple[str, ...]) -> None:
    done = hawse(*words)
    assert done.code == 1
    assert done.errors.startswith(f"hawse: {hawse.root}/web/")
    assert done.errors.endswith(": Permission denied [run as root]\n")


def test_a_container_that_does_not_exist_is_reported_as_such(hawse: Guest) -> None:
    assert hawse("state", "other").errors == "hawse: container does not exist: other\n"


def test_permission_error_of_root_is_still_reported_as_a_bug(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied", "/file")

    monkeypatch.setattr("hawse.cli.features.run", refuse)
    assert "this is a bug in hawse" in Command(str(tmp_path))("features").errors


def test_doctor_reports_what_it_cannot_read_and_goes_on(hawse: Guest) -> None:
    done = hawse("doctor", "--json")
    assert (done.code, done.errors) == (1, "")
    found = {
        check["name"]: (check["verdict"], check["found"], check["remedy"])
        for check in json.loads(done.output)["checks"]
    }
    templates = f"{Path(hawse.root).parent}/cache/templates"
    assert found["templates"] == ("warning", f"{templates} cannot be read: Permission denied", "run as root")
    assert found["sandboxes"] == ("warning", f"{hawse.root} cannot be read: Permission denied", "run as root")
    assert {"QEMU", "jail", "IOMMU", "bindings"} < set(found)


def test_devices_are_listed_without_the_names_of_sandboxes(hawse: Guest) -> None:
    os.seteuid(NOBODY)
    try:
        assert _monitors(hawse.root) == {}
    finally:
        os.seteuid(0)
