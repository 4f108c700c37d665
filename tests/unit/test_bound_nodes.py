"""Device nodes on a shared file system are created in the guest and bound to their paths."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from hawse.agent.devices.bound_nodes import create_node, create_nodes, remove_nodes, with_bound_nodes
from hawse.agent.system.ids import Ids
from hawse.errors import VmError

DEV = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
NULL = {"type": "c", "major": 1, "minor": 3}


@pytest.mark.parametrize(
    ("mounts", "path", "bound"),
    [
        ([DEV], "/dev/null", False),
        ([DEV], "/dev/below/null", False),
        ([DEV], "/dev/../dev/null", False),
        ([DEV], "/opt/null", True),
        ([DEV], "/devices/null", True),
        ([DEV], "/dev/../opt/null", True),
        ([DEV, {"destination": "/dev/shared", "type": "bind", "source": "/s"}], "/dev/shared/null", True),
        ([DEV, {"destination": "/dev/shared", "source": "/s", "options": ["rbind"]}], "/dev/shared/null", True),
        ([DEV, {"destination": "/dev/shared", "source": "/s", "options": ["bind"]}], "/dev/shared", False),
        ([{"destination": "/dev", "type": "bind", "source": "/s"}, DEV], "/dev/null", False),
        ([DEV, {"destination": "/tmp", "type": "tmpfs"}], "/tmp/null", False),
    ],
)
def test_nodes_on_shared_files_are_bound_and_crun_creates_the_others(
    mounts: list[dict[str, Any]], path: str, bound: bool
) -> None:
    device = {"path": path, **NULL}
    spec: dict[str, Any] = {"mounts": list(mounts), "linux": {"devices": [device]}}
    result, replaced = with_bound_nodes(spec, "/nodes")
    if bound:
        bind = {"destination": path, "type": "bind", "source": "/nodes/0", "options": ["bind", "nosuid", "noexec"]}
        assert (replaced, result) == ([device], {"mounts": [*mounts, bind], "linux": {"devices": []}})
    else:
        assert (replaced, result) == ([], {"mounts": mounts, "linux": {"devices": [device]}})


@pytest.mark.parametrize("spec", [{"mounts": [DEV]}, {"mounts": [DEV], "linux": {"devices": None}}])
def test_specification_without_devices_is_unchanged(spec: dict[str, Any]) -> None:
    assert with_bound_nodes(spec, "/nodes") == (spec, [])


@pytest.mark.parametrize("mounts", [None, [], [{"destination": "/devices", "type": "tmpfs"}]])
def test_container_without_a_mount_on_dev_gets_one(mounts: list[dict[str, Any]] | None) -> None:
    """crun creates /dev/null and other nodes there, and must not create them in the shared root file system."""
    device = {"path": "/dev/null", **NULL}
    spec: dict[str, Any] = {"mounts": mounts, "linux": {"devices": [device]}}
    result, replaced = with_bound_nodes(spec, "/nodes")
    assert replaced == []
    assert result["mounts"][1:] == (mounts or [])
    assert {**result["mounts"][0], "options": []} == {**DEV, "options": []}
    assert result["linux"]["devices"] == [device]
    assert spec == {"mounts": mounts, "linux": {"devices": [device]}}, "it is not changed"


@pytest.mark.parametrize("destination", ["/", "/dev", "/dev/"])
def test_mount_on_dev_is_unchanged(destination: str) -> None:
    mounts = [{"destination": destination, "type": "bind", "source": "/s"}]
    spec: dict[str, Any] = {"mounts": mounts}
    assert with_bound_nodes(spec, "/nodes") == (spec, [])


def test_fifo_needs_no_bind() -> None:
    spec: dict[str, Any] = {"linux": {"devices": [{"path": "/opt/fifo", "type": "p"}]}}
    assert with_bound_nodes(spec, "/nodes")[1] == []


def test_every_entry_is_bound_in_a_user_namespace() -> None:
    devices = [
        {"path": path, "type": kind} for path, kind in (("/dev/vfio/5", "c"), ("/dev/u", "u"), ("/x", "b"), ("/p", "p"))
    ]
    spec: dict[str, Any] = {"mounts": [DEV], "linux": {"devices": list(devices)}}
    result, replaced = with_bound_nodes(spec, "/nodes", all_nodes=True)
    assert replaced == devices
    assert result["linux"]["devices"] == []
    assert [(mount["destination"], mount["source"]) for mount in result["mounts"][1:]] == [
        (device["path"], f"/nodes/{number}") for number, device in enumerate(devices)
    ]


def test_owners_are_mapped_and_the_directory_can_be_passed(tmp_path: Path) -> None:
    directory = str(tmp_path / "nodes" / "c1")
    ids = Ids([(0, 1000, 10)], [(0, 2000, 10)], mapped=True)
    create_nodes([{"path": "/a", **NULL, "uid": 3, "gid": 4}, {"path": "/p", "type": "p", "uid": 10}], directory, ids)
    statuses = [os.stat(f"{directory}/{number}") for number in (0, 1)]
    assert [(status.st_uid, status.st_gid) for status in statuses] == [(1003, 2004), (2**32 - 2, 2000)]
    assert stat.S_ISFIFO(statuses[1].st_mode)
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o711


def test_node_to_be_bound_later_is_the_latest(tmp_path: Path) -> None:
    directory = str(tmp_path / "nodes" / "c1")
    for mode, uid in ((0o600, 0), (0o640, 5)):
        path = create_node(directory, (1, 3), mode=mode, uid=uid, gid=6)
    status = os.stat(path)
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 5, 6)
    assert status.st_rdev == os.makedev(1, 3)
    remove_nodes(directory)
    assert not os.path.exists(directory)


def test_nodes_are_made_with_the_modes_and_owners_of_the_specification(tmp_path: Path) -> None:
    directory = str(tmp_path / "nodes" / "c1")
    devices = [
        {"path": "/a", **NULL},
        {"path": "/b", "type": "b", "major": 7, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6},
        {"path": "/c", "type": "u", "major": 1, "minor": 3, "fileMode": 0},
    ]
    create_nodes(devices, directory)
    nodes = []
    for number in range(3):
        status = os.stat(f"{directory}/{number}")
        nodes.append((stat.filemode(status.st_mode), status.st_rdev, status.st_uid, status.st_gid))
    assert nodes == [
        ("crw-rw-rw-", os.makedev(1, 3), 0, 0),
        ("brw-r-----", os.makedev(7, 3), 5, 6),
        ("c---------", os.makedev(1, 3), 0, 0),
    ]
    remove_nodes(directory)
    assert not os.path.exists(directory)
    remove_nodes(directory)


@pytest.mark.parametrize("numbers", [{"major": 2**40}, {"minor": -(2**70)}])
def test_node_that_cannot_be_made_is_named(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(VmError, match=r"linux\.devices: /opt/null: the guest cannot create the node"):
        create_nodes([{"path": "/opt/null", **NULL, **numbers}], f"{tmp_path}/nodes")
