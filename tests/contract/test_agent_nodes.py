"""Device nodes that the real agent creates in a running container, and the rules of its device cgroup."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import StateError
from tests.support.agent import Agent

RULES = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]
NULL = {"path": "/dev/null0", "major": 1, "minor": 3, "mode": 0o640, "uid": 7, "gid": 8}
ZERO = {"path": "/dev/vfio/5", "major": 1, "minor": 5, "mode": 0o600, "uid": 0, "gid": 0}
DEVICES = [{"host": {"group": 45}, "guest": {"group": 5}}]
SHOWN = "dev/hawse/devices.json"


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """The root directory of the container."""
    (tmp_path / "rootfs/dev").mkdir(parents=True)
    return tmp_path / "rootfs"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent(str(tmp_path / "run"), root=str(tmp_path / "root")) as started:
        yield started


def create(
    agent: Agent, container: Path, rules: list[dict[str, Any]], *, devices: list[dict[str, Any]] | None = None
) -> None:
    spec = {
        "process": {"args": ["/bin/true"]}, "root": {"path": str(container)}, "annotations": {"chroot": ""},
        "linux": {"resources": {"devices": rules}},
    }  # fmt: skip
    agent.call(
        "create", container="c1", process=1, descriptors=[], joins={}, devices=devices or [], spec=spec
    )  # fmt: skip


def allow(major: int, minor: int) -> dict[str, Any]:
    return {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}


def rules_set(agent: Agent) -> list[Any]:
    return [call["resources"]["devices"] for call in agent.crun_calls("update")]


def test_nodes_are_created_allowed_listed_and_removed(agent: Agent, container: Path) -> None:
    create(agent, container, RULES)
    agent.call("add_nodes", container="c1", nodes=[NULL, ZERO], devices=DEVICES)
    status = (container / "dev/null0").stat()
    assert stat.S_ISCHR(status.st_mode)
    assert (stat.S_IMODE(status.st_mode), status.st_rdev, status.st_uid, status.st_gid) == (
        0o640,
        os.makedev(1, 3),
        7,
        8,
    )
    assert (container / "dev/vfio/5").stat().st_rdev == os.makedev(1, 5)
    assert json.loads((container / SHOWN).read_text()) == DEVICES
    assert rules_set(agent) == [[*RULES, allow(1, 5)]], "the rule for the other exists"
    agent.call(
        "remove_nodes", container="c1", nodes=[ZERO], group=None, force=False, seconds=1, devices=[]
    )  # fmt: skip
    assert os.listdir(container / "dev/vfio") == []
    assert (container / "dev/null0").exists()
    assert rules_set(agent)[1:] == [RULES]
    assert json.loads((container / SHOWN).read_text()) == []


def test_failed_creation_of_nodes_leaves_nothing(agent: Agent, container: Path) -> None:
    create(agent, container, RULES)
    (container / "dev/vfio").mkdir()
    (container / "dev/vfio/5").write_text("the container's own")
    with pytest.raises(StateError, match="/dev/vfio/5: another file exists at this path"):
        agent.call("add_nodes", container="c1", nodes=[NULL, ZERO], devices=DEVICES)
    assert sorted(os.listdir(container / "dev")) == ["vfio"]
    assert (container / "dev/vfio/5").read_text() == "the container's own"
    assert rules_set(agent) == [[*RULES, allow(1, 5)], RULES]


def test_container_without_device_rules_gets_no_rule(agent: Agent, container: Path) -> None:
    """It can open every device already; a rule would deny all others."""
    create(agent, container, [])
    agent.call("add_nodes", container="c1", nodes=[ZERO], devices=[])
    assert (container / "dev/vfio/5").exists()
    assert rules_set(agent) == []


def test_list_of_devices_in_the_container_is_changed_in_place(agent: Agent, container: Path, tmp_path: Path) -> None:
    create(agent, container, RULES, devices=DEVICES)
    file = tmp_path / "run/containers/c1/devices.json"
    [call] = agent.crun_calls("create")
    assert [(mount["source"], mount["destination"]) for mount in call["spec"]["mounts"][1:]] == [
        (str(file), f"/{SHOWN}")
    ]
    assert json.loads(file.read_text()) == DEVICES
    before = file.stat().st_ino
    agent.call("add_nodes", container="c1", nodes=[], devices=[])
    assert (json.loads(file.read_text()), file.stat().st_ino) == ([], before)
    assert not (container / SHOWN).exists()


@pytest.mark.parametrize(("group", "removed"), [(None, True), (5, False)])
def test_nodes_of_a_group_in_use_are_kept(
    agent: Agent, container: Path, tmp_path: Path, group: int | None, removed: bool
) -> None:
    """The group's node is opened to check that no process uses it; a node that cannot be opened is an error."""
    create(agent, container, RULES)
    agent.call("add_nodes", container="c1", nodes=[ZERO], devices=[])
    (tmp_path / "root/dev/vfio/5").mkdir(parents=True)
    remove: dict[str, Any] = {"nodes": [ZERO], "group": group, "force": False, "seconds": 1, "devices": []}
    if removed:
        agent.call("remove_nodes", container="c1", **remove)
    else:
        with pytest.raises(Exception, match="dev/vfio/5 in the guest: Is a directory"):
            agent.call("remove_nodes", container="c1", **remove)
    assert (container / "dev/vfio/5").exists() is not removed
