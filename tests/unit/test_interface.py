"""A command meets a monitor of another version of hawse: verbs that end a container work, others fail with one
sentence."""

from __future__ import annotations

import ast
import hashlib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import hawse as package
from hawse.commands.client import check_version
from hawse.host.mounts.origins import Origin
from hawse.monitor import service
from hawse.oci.process.inherited import Inherited
from hawse.plan.capacity import Room
from hawse.plan.model import Attachment, ContainerPlan
from hawse.state.interface import ALWAYS, INTERFACE, from_text, obstacle, to_text
from hawse.state.store import CREATED, Store
from hawse.version import VERSION
from tests.support.command import Command
from tests.support.fake_monitor import FakeMonitor
from tests.support.ready import EMULATED, JOINS, Ready, annotated

OLDER, NEWER = f"{INTERFACE - 1} 0.0.9\n", f"{INTERFACE + 1} 9.0.0\n"
HINT = "delete the container and create it again; until then only state, list, kill and delete work"
#: Verbs that call the monitor, and the status in which they do so.
REFUSED = [
    ("start c1", CREATED),
    ("exec c1 true", "running"),
    ("pause c1", "running"),
    ("resume c1", "paused"),
    ("update --memory 64m c1", "running"),
    ("ps c1", "running"),
    ("events --stats c1", "running"),
    ("attach c1 5", "running"),
    ("detach c1 5", "running"),
]


@pytest.fixture
def host(tmp_path: Path) -> Ready:
    return Ready(str(tmp_path))


@pytest.fixture
def hawse(host: Ready) -> Command:
    command = Command(host.directory)
    command.configure(host.config(more=EMULATED))
    return command


@pytest.fixture
def monitor(hawse: Command, host: Ready) -> Iterator[FakeMonitor]:
    room = msgspec.to_builtins(Room(spares=[]))
    with FakeMonitor(hawse.store("c1"), {"room": room}, bundle=host.bundle) as monitor:
        yield monitor


def write_lock(monitor: FakeMonitor, text: str) -> None:
    """Make it the monitor of another version."""
    Path(monitor.store.path, "lock").write_text(text)


@pytest.mark.parametrize(
    ("text", "whose"),
    [
        (OLDER, f"of hawse 0.0.9, with interface {INTERFACE - 1}"),
        (NEWER, f"of hawse 9.0.0, with interface {INTERFACE + 1}"),
        ("", "of an older hawse"),
        ("garbled\n", "of an older hawse"),
    ],
)
@pytest.mark.parametrize(("words", "status"), REFUSED)
def test_verb_is_refused_before_the_monitor_is_called(
    hawse: Command, monitor: FakeMonitor, words: str, status: str, text: str, whose: str
) -> None:
    monitor.change(status=status)
    write_lock(monitor, text)
    done = hawse(*words.split())
    assert done.code == (255 if words.startswith("exec") else 1)
    assert done.errors == (
        f"hawse: container c1: its monitor is {whose}, and this command of hawse {VERSION}, with interface {INTERFACE} "
        f"[{HINT}]\n"
    )
    assert monitor.methods == []
    assert monitor.proxies.empty()


@pytest.mark.parametrize("text", [OLDER, NEWER, ""])
def test_verbs_that_show_or_end_a_container_work(hawse: Command, monitor: FakeMonitor, text: str) -> None:
    write_lock(monitor, text)
    assert json.loads(hawse("state", "c1").output)["status"] == "running"
    assert "c1" in hawse("list").output
    assert hawse("kill", "c1", "KILL").code == 0
    assert hawse("kill", "--all", "c1", "15").code == 0
    assert hawse("delete", "--force", "c1").code == 0
    assert monitor.calls == [
        ("kill", {"container": "c1", "signal": 9, "all": False}),
        ("kill", {"container": "c1", "signal": 15, "all": True}),
        ("delete", {"container": "c1"}),
    ]
    assert not Path(monitor.store.path).exists()


def test_container_cannot_join_a_sandbox_of_another_version(hawse: Command, host: Ready) -> None:
    with FakeMonitor(hawse.store("pod")) as pod:
        write_lock(pod, OLDER)
        host.write(annotated(JOINS))
        done = hawse("create", "--bundle", host.bundle, "c2")
    assert done.code == 1
    assert done.errors.startswith("hawse: container c2: its monitor is of hawse 0.0.9")
    assert (pod.methods, Path(hawse.root, "c2").exists()) == ([], False)


def test_container_that_has_joined_has_the_number_of_its_sandbox(hawse: Command, monitor: FakeMonitor) -> None:
    joined = hawse.store("c2")
    joined.make(sandbox=monitor.store)
    assert joined.monitor_interface() == (INTERFACE, VERSION)
    write_lock(monitor, NEWER)
    assert joined.monitor_interface() == (INTERFACE + 1, "9.0.0")


def test_monitor_writes_its_number_when_it_takes_the_lock(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "c1")
    store.make()
    assert store.monitor_interface() == (0, "")
    store.lock()
    assert store.monitor_interface() == (INTERFACE, VERSION)


def test_monitor_that_has_no_lock_yet_is_of_the_command_that_started_it(tmp_path: Path) -> None:
    """Its socket is bound before the monitor has loaded its code."""
    store = Store(str(tmp_path), "c1")
    store.make()
    check_version(store, "await_machine")
    Path(store.path, "lock").touch()
    check_version(store, "go_on")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (to_text(), (INTERFACE, VERSION)), (b"7 1.2.3\n", (7, "1.2.3")), (b"7\n", (7, "")), (b"", (0, "")),
        (b"x 1\n", (0, "")), (b"-1 1\n", (0, "")), (b"9999999999 1\n", (0, "")), (b"7 \xff\n", (7, "\ufffd")),
        (b"7 " + b"v" * 60, (7, "v" * 40)),
    ],
)  # fmt: skip
def test_lock_file_is_read(text: bytes, expected: tuple[int, str]) -> None:
    assert from_text(text) == expected


@pytest.mark.parametrize("method", ALWAYS)
def test_methods_that_end_a_container_work_with_every_version(method: str) -> None:
    assert obstacle(method, (0, "")) == obstacle(method, (INTERFACE + 5, "9")) == ""


def methods() -> list[str]:
    """The names of the monitor's methods: those of the table, and those that it compares a call's method with."""
    tree = ast.parse(Path(service.__file__).read_text())
    names = set(service.CALLS)
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == "method":
            for each in ast.walk(node.comparators[0]):
                if isinstance(each, ast.Constant):
                    names.add(str(each.value))
    return sorted(names)


def surface() -> dict[str, Any]:
    """The methods of the interface and the typed messages."""
    types = [ContainerPlan, Attachment, Room, Inherited, Origin]
    return {"methods": methods(), "types": without_descriptions(msgspec.json.schema_components(types)[1])}


def without_descriptions(schema: Any) -> Any:
    """A schema without the classes' docstrings."""
    if isinstance(schema, dict):
        return {key: without_descriptions(part) for key, part in schema.items() if key != "description"}
    return [without_descriptions(part) for part in schema] if isinstance(schema, list) else schema


#: The number, and the digest of what it stands for.
KNOWN = (1, "1b503a7a6712f435")


def test_number_is_raised_when_messages_change() -> None:
    """Until 0.1.0 is released, only the digest is replaced. From then on INTERFACE is raised with it, unless commands
    and monitors of both versions understand each other."""
    assert {"create", "exec", "kill", "delete", "room"} <= set(methods())
    digest = hashlib.sha256(json.dumps(surface(), sort_keys=True).encode()).hexdigest()[:16]
    assert (INTERFACE, digest) == KNOWN, "raise INTERFACE in hawse/state/interface.py if need be, and correct KNOWN"


def test_version_is_that_of_the_distribution() -> None:
    root = Path(package.__path__[0]).parents[1]
    with open(root / "pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["version"] == VERSION
