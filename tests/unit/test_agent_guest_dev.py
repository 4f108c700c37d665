"""Nodes of a container that shows the guest's own /dev: bound to mount points, and nothing remains in its /dev."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hawse.agent.devices import guest_dev
from hawse.agent.devices.bound_nodes import mount_points, with_bound_nodes
from hawse.errors import StateError

TMPFS = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
DEV = {"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}
OPTIONS = ["bind", "nosuid", "noexec"]


def bind(destination: str, source: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source}


def node(path: str, major: int = 511, minor: int = 0) -> dict[str, Any]:
    return {"path": path, "type": "c", "major": major, "minor": minor}


@pytest.mark.parametrize(
    ("mounts", "path", "expected"),
    [
        ([DEV], "/dev/vfio/71", "/dev/vfio/71"),
        ([TMPFS], "/dev/vfio/71", ""),
        ([TMPFS, bind("/dev/vfio", "/dev/vfio")], "/dev/vfio/71", "/dev/vfio/71"),
        ([TMPFS, bind("/host", "/dev")], "/host/./fuse", "/dev/fuse"),
        ([TMPFS, bind("/host/", "/dev/net")], "/host/tun", "/dev/net/tun"),
        ([DEV, TMPFS], "/dev/fuse", ""),
        ([DEV, {**TMPFS, "destination": "/dev/shm"}], "/dev/shm/node", ""),
        ([{"destination": "/x", "source": "/dev", "options": ["rbind"]}], "/x/node", "/dev/node"),
        ([bind("/x", "/devices")], "/x/node", ""),
        ([], "/dev/node", ""),
    ],
)
def test_place_in_the_guests_dev_is_that_of_the_innermost_mount(
    mounts: list[dict[str, Any]], path: str, expected: str
) -> None:
    assert guest_dev.guest_path(path, mounts) == expected


@pytest.mark.parametrize(
    ("mount", "where"),
    [
        (DEV, "/dev/vfio"),
        (bind("/host", "/dev"), "/host/vfio"),
        (bind("/dev/vfio", "/dev/vfio"), "/dev/vfio"),
        (bind("/mine", "/dev/vfio/devices"), "/mine"),
    ],
)
def test_nodes_of_vfio_are_in_a_directory_of_the_container(mount: dict[str, Any], where: str) -> None:
    devices = [node(f"{where}/71"), node(f"{where}/0")]
    later = {"destination": "/later", "type": "tmpfs"}
    spec: dict[str, Any] = {"mounts": [TMPFS, mount, later], "linux": {"devices": list(devices)}}
    spec, covered = guest_dev.with_covers(spec, container_node=False)
    assert "/dev/vfio" in covered
    covers = [m["destination"] for m in spec["mounts"] if m["type"] == "tmpfs"]
    assert covers == ["/dev", *(["/dev/hawse"] if mount == DEV else []), where, "/later"]
    spec, replaced = with_bound_nodes(spec, "/nodes", root="/nowhere")
    assert replaced == devices
    assert spec["mounts"][-2:] == [
        {"destination": d["path"], "type": "bind", "source": f"/nodes/{number}", "options": OPTIONS}
        for number, d in enumerate(devices)
    ]
    assert spec["linux"]["devices"] == mount_points(devices, spec) == []


@pytest.mark.parametrize("named", [False, True])
def test_container_node_stays(named: bool) -> None:
    devices = [node("/dev/vfio/71"), *([node("/dev/vfio/vfio", 10, 196)] if named else [])]
    spec: dict[str, Any] = {"mounts": [DEV], "linux": {"devices": list(devices)}}
    spec, covered = guest_dev.with_covers(spec, container_node=True)
    assert covered == ["/dev/vfio", "/dev/hawse"]
    spec, replaced = with_bound_nodes(spec, "/nodes", root="/nowhere")
    assert replaced == devices
    bound = [(m["destination"], m["source"]) for m in spec["mounts"] if m["type"] == "bind"]
    vfio = [] if named else [("/dev/vfio/vfio", "/dev/vfio/vfio")]
    assert bound == [("/dev", "/dev"), *vfio, *((d["path"], f"/nodes/{n}") for n, d in enumerate(devices))]


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ([TMPFS], []),
        ([DEV], ["/dev/vfio", "/dev/hawse"]),
        ([TMPFS, bind("/dev/vfio", "/dev/vfio")], ["/dev/vfio"]),
        ([DEV, {**TMPFS, "destination": "/dev/vfio"}], ["/dev/hawse"]),
        ([DEV, {**TMPFS, "destination": "/dev/hawse"}], ["/dev/vfio"]),
        ([TMPFS, bind("/host", "/dev")], []),
        ([bind("/dev", "/dev/below")], []),
        ([bind("/dev", "/host")], []),
        ([], []),
    ],
)
def test_nodes_that_come_later_and_the_list_of_devices_are_in_the_containers_own_directories(
    mounts: list[dict[str, Any]], expected: list[str]
) -> None:
    """Groups may be attached to a container that was created without any."""
    spec, covered = guest_dev.with_covers({"mounts": mounts}, container_node=False)
    assert covered == expected
    assert {mount["destination"] for mount in spec["mounts"] if mount not in mounts} == set(expected)


@pytest.mark.parametrize("everything", [False, True])
def test_other_nodes_are_bound_unless_the_guest_has_them(tmp_path: Path, everything: bool) -> None:
    (tmp_path / "dev").mkdir()
    os.mknod(tmp_path / "dev/same", 0o020666, os.makedev(1, 3))
    os.chmod(tmp_path / "dev/same", 0o666)
    os.mknod(tmp_path / "dev/other", 0o020600, os.makedev(1, 3))
    fifo = {"path": "/dev/fifo", "type": "p"}
    devices = [node("/dev/same", 1, 3), node("/dev/other", 1, 5), node("/dev/new/one", 1, 3), fifo]
    spec: dict[str, Any] = {"mounts": [DEV], "linux": {"devices": list(devices)}}
    spec, replaced = with_bound_nodes(spec, "/nodes", all_nodes=everything, root=str(tmp_path))
    assert replaced == devices[0 if everything else 1 :]
    paths = mount_points(replaced, spec)
    assert paths == [device["path"] for device in replaced]
    guest_dev.create_mount_points(paths, root=str(tmp_path))
    guest_dev.create_mount_points(paths, root=str(tmp_path))
    guest_dev.remove_mount_points(paths, root=str(tmp_path))
    assert (tmp_path / "dev/new/one").exists(), "another container has it"
    guest_dev.remove_mount_points(paths, root=str(tmp_path))
    assert sorted(os.listdir(tmp_path / "dev")) == ["new", "other", "same"]
    assert os.listdir(tmp_path / "dev/new") == []


@pytest.mark.parametrize(
    "change", [{"major": 2}, {"minor": 4}, {"type": "b"}, {"type": "p"}, {"fileMode": 0o600}, {"uid": 1}, {"gid": 1}]
)
def test_node_is_the_same_by_kind_numbers_mode_and_owners(tmp_path: Path, change: dict[str, Any]) -> None:
    path = str(tmp_path / "null")
    os.mknod(path, 0o020666, os.makedev(1, 3))
    os.chmod(path, 0o666)
    assert guest_dev.is_same(node("/dev/null", 1, 3), path)
    assert not guest_dev.is_same(node("/dev/null", 1, 3) | change, path)
    assert not guest_dev.is_same(node("/dev/null", 1, 3), f"{path}-none")


def test_directories_are_made_once(tmp_path: Path) -> None:
    for _ in range(2):
        guest_dev.create_directories(["/dev/vfio", "/dev/hawse"], root=str(tmp_path))
    assert sorted(os.listdir(tmp_path / "dev")) == ["hawse", "vfio"]


def test_mount_point_below_a_link_is_refused(tmp_path: Path) -> None:
    """A container that can write to the guest's /dev must not have files made elsewhere."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "dev/link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="/dev/link/node: the directory link cannot be opened"):
        guest_dev.create_mount_points(["/dev/link/node"], root=str(tmp_path))
    guest_dev.remove_mount_points(["/dev/link/node"], root=str(tmp_path))
    assert os.listdir(tmp_path / "elsewhere") == []
