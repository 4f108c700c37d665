"""What a mount of the specification becomes: a row for each kind that hawse.oci.guest.mounts lists."""

from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.notes import Note
from hawse.oci.guest.bind_sources import DeviceNode
from hawse.oci.guest.dev_shm import guest_name
from hawse.oci.guest.host_sockets import FIFO, SOCKET, Special
from hawse.oci.guest.hugetlbfs import Hugetlbfs
from hawse.oci.guest.idmap import IdMap, Maps
from hawse.oci.guest.mounts import BoundNode, GuestMount, GuestMounts, HostFiles, MountPlanner
from hawse.oci.guest.overlay import Overlay
from hawse.oci.guest.share import Share

IN_SHARE, SOCKETS = "/run/hawse/share/c1/mount3", "/run/hawse/sockets/c1/mount3"
MEMORY, PAGES = f"/run/hawse/shm/{guest_name('/srv/shm')}", f"/run/hawse/hugepages/{guest_name('/srv/huge')}"
UIDS, GIDS = [(0, 100000, 65536)], [(0, 200000, 65536)]
OWNERS = IdMap(tuple(UIDS), tuple(GIDS))
MAPPED: dict[str, Any] = {
    f"{kind}Mappings": [{"containerID": 0, "hostID": outside, "size": 65536}]
    for kind, outside in (("uid", 100000), ("gid", 200000))
}
#: The sources of this host that are no ordinary files.
NODES = {
    "/dev/sdz": DeviceNode("b", 8, 400, 0o660, 0, 6),
    "/srv/chr": DeviceNode("c", 188, 0, 0o600, 1, 2),
    "/srv/null": DeviceNode("c", 1, 3, 0o666, 0, 0),
    "/dev/null": DeviceNode("c", 1, 3, 0o666, 0, 0),
}
SPECIAL = {
    "/srv/socket": Special(SOCKET, "/srv/socket", 0o660, 7, 8),
    "/srv/fifo": Special(FIFO, "/srv/fifo", 0o600, 0, 0),
    "/dev/log": Special(SOCKET, "/srv/journal", 0o666, 0, 0),
    "/srv/notify": Special(SOCKET, "/srv/notify", 0o666, 0, 0),
}
HUGE = {"/srv/huge": Hugetlbfs(1048576, 0o755, 3, 4)}
SIZES = {"/srv/shm": 65536}
HOST = HostFiles(
    is_dir=lambda path: path not in ("/srv/file", *SPECIAL),
    exists=lambda path: path != "/srv/missing",
    tmpfs_size=lambda path: SIZES.get(path, 0),
    hugetlbfs=HUGE.get,
    node=NODES.get,
    special=lambda path: SPECIAL.get(path) or next((each for each in SPECIAL.values() if each.path == path), None),
)


def planner(*, maps: Maps = ([], []), forwarded: tuple[str, ...] = (), files: HostFiles = HOST) -> MountPlanner:
    return MountPlanner("/bundle", "c1", maps, forwarded, "/srv/notify", files)


def bind(source: str, *options: str, to: str = "/x", **fields: Any) -> dict[str, Any]:
    """A bind mount with these options beside rbind."""
    return {"destination": to, "type": "bind", "source": source, "options": ["rbind", *options], **fields}


def share(source: str, *, is_dir: bool = True, readonly: bool = False, **fields: Any) -> Share:
    """The share of the mount 3, with the files of which other shares of the same source have the same."""
    return Share(name="mount3", source=source, is_dir=is_dir, readonly=readonly, **{"common": True, **fields})


def own(place: str, words: str) -> Note:
    """The warning about a bind of a view of the kernel."""
    return Note("warning", f"/bundle/config.json: mounts[3].source: {place} is the guest's{words}")


PLAIN = ", not the host's [bind files that are not below /proc, /sys or /dev]"
VFIO = (
    ": it contains only the VFIO devices of the host that linux.devices lists [list them there: --device /dev/vfio/NN "
    "for each group]"
)


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        # A share: a directory or file of the host.
        (bind("/srv/data"), GuestMount(bind(IN_SHARE), share=share("/srv/data"))),
        (bind("data"), GuestMount(bind(IN_SHARE), share=share("/bundle/data"))),
        (bind("/srv/file", "ro"), GuestMount(
            bind(IN_SHARE, "ro"), share=share("/srv/file", is_dir=False, readonly=True)
        )),
        (bind("/srv/data", "rprivate", "rro"), GuestMount(
            bind(IN_SHARE, "rprivate", "rro"),
            share=share("/srv/data", readonly=True, private=True, readonly_below=True),
        )),
        ({"destination": "/x", "source": "/srv/data", "options": ["bind"]}, GuestMount(
            {"destination": "/x", "source": IN_SHARE, "options": ["bind"]}, share=share("/srv/data", recursive=False)
        )),
        ({"destination": "/x", "type": "bind", "source": "/srv/data"}, GuestMount(
            bind(IN_SHARE), share=share("/srv/data")
        )),
        (bind("/srv/data", **MAPPED), GuestMount(bind(IN_SHARE), share=share("/srv/data", owners=OWNERS))),
        # An overlay, which is mounted on the host.
        (
            {"destination": "/x", "type": "overlay", "options": ["lowerdir=/a:/b", "ro", "nodev"]},
            GuestMount(
                {"destination": "/x", "type": "bind", "source": IN_SHARE, "options": ["bind", "ro", "nodev"]},
                share=share(
                    "the overlay on /a", readonly=True, private=True, recursive=False,
                    overlay=Overlay(lowers=("/a", "/b")),
                ),
            ),
        ),
        # A socket that is not forwarded, a FIFO, a socket in /dev, the socket for notifications.
        (bind("/srv/socket"), "is a UNIX socket of the host: connections to it are refused"),
        (bind("/srv/fifo"), "is a FIFO of the host"),
        (bind("/dev/log"), "/srv/journal is a UNIX socket of the host"),
        (bind("/srv/notify"), GuestMount(bind(IN_SHARE), share=share("/srv/notify", is_dir=False))),
        # Huge pages.
        (bind("/srv/huge", "nosuid"), GuestMount(
            bind(PAGES, "nosuid"), huge=(guest_name("/srv/huge"), HUGE["/srv/huge"]), page_kib=1048576
        )),
        (bind("/srv/huge", **MAPPED), GuestMount(
            bind(PAGES), huge=(guest_name("/srv/huge"), Hugetlbfs(1048576, 0o755, 100003, 200004)), page_kib=1048576
        )),
        # Shared memory, and the same file system at another path.
        (bind("/srv/shm", to="/dev/shm/"), GuestMount(
            bind(MEMORY, to="/dev/shm/"), memory=(guest_name("/srv/shm"), 65536)
        )),
        (bind("/srv/shm", **MAPPED, to="/dev/shm"), GuestMount(
            bind(MEMORY, to="/dev/shm"), memory=(guest_name("/srv/shm"), 65536)
        )),
        (bind("/srv/shm"), GuestMount(bind(IN_SHARE), share=share("/srv/shm"))),
        (bind("/srv/data", to="/dev/shm"), GuestMount(bind(IN_SHARE, to="/dev/shm"), share=share("/srv/data"))),
        # Views of a kernel.
        (bind("/sys/fs/cgroup", "ro"), GuestMount(
            bind("/sys/fs/cgroup", "ro"), notes=(own("/sys/fs/cgroup", PLAIN),)
        )),
        (bind("/proc/"), GuestMount(bind("/proc"), notes=(own("/proc", PLAIN),))),
        (bind("/dev/vfio"), GuestMount(bind("/dev/vfio"), notes=(own("/dev/vfio", VFIO),))),
        (bind("/dev/vfio/vfio"), GuestMount(bind("/dev/vfio/vfio"), notes=(own("/dev/vfio/vfio", PLAIN),))),
        (bind("/dev/null"), GuestMount(bind("/dev/null"), notes=(own("/dev/null", PLAIN),))),
        # Device nodes.
        (bind("/dev/sdz", to="/dev/xvda"), GuestMount(None, bound=BoundNode(3, "/dev/sdz", {
            "path": "/dev/xvda", "type": "b", "major": 8, "minor": 400, "fileMode": 0o660, "uid": 0, "gid": 6,
        }, nodev=False))),
        (bind("/srv/chr", "nodev"), GuestMount(None, bound=BoundNode(3, "/srv/chr", {
            "path": "/x", "type": "c", "major": 188, "minor": 0, "fileMode": 0o600, "uid": 1, "gid": 2,
        }, nodev=True))),
        (bind("/srv/null"), GuestMount(None, bound=BoundNode(3, "/srv/null", {
            "path": "/x", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 0, "gid": 0,
        }, nodev=False))),
        # File systems of the guest's kernel.
        *(
            ({"destination": "/x", "type": kind, "source": kind, "options": ["nosuid"]},
             GuestMount({"destination": "/x", "type": kind, "source": kind, "options": ["nosuid"]}))
            for kind in ("tmpfs", "proc", "sysfs", "mqueue", "devpts", "cgroup")
        ),
        (
            {"destination": "/x", "type": "hugetlbfs", "source": "h", "options": ["pagesize=1G"]},
            GuestMount(
                {"destination": "/x", "type": "hugetlbfs", "source": "h", "options": ["pagesize=1G"]}, page_kib=1048576
            ),
        ),
        (bind("/srv/data", type="hugetlbfs"), GuestMount(bind(IN_SHARE, type="hugetlbfs"), share=share("/srv/data"))),
        ({"destination": "/x", "type": "debugfs", "source": "none"}, "debugfs shows the guest kernel"),
    ],
)  # fmt: skip
def test_mount_becomes(mount: dict[str, Any], expected: GuestMount | str) -> None:
    """A text is part of the only warning about a mount that is shared, or left to the guest's kernel, all the same."""
    before = copy.deepcopy(mount)
    planned = planner().plan(3, mount)
    assert mount == before
    if isinstance(expected, GuestMount):
        assert planned == expected
        return
    [(level, text)] = planned.notes
    assert level == "warning"
    assert text.startswith("/bundle/config.json: mounts[3].")
    assert expected in text
    assert (planned.share is not None, planned.socket) == (mount["type"] == "bind", None)
    assert planned.entry == (mount | {"source": IN_SHARE} if planned.share else mount)


@pytest.mark.parametrize("mapped", [False, True])
def test_forwarded_socket_has_a_share_that_nothing_else_uses(tmp_path: Path, mapped: bool) -> None:
    path = f"{tmp_path}/socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        special = Special(SOCKET, path, 0o660, 7, 8)
        files = HostFiles(special={path: special}.get, node=lambda _: None)
        planned = planner(forwarded=(path,), files=files).plan(3, bind(path, **MAPPED if mapped else {}))
    owners = OWNERS if mapped else None
    uid, gid = (100007, 200008) if mapped else (7, 8)
    assert planned == GuestMount(
        bind(SOCKETS),
        share=share(path, is_dir=False, common=False, owners=owners),
        socket=Special(SOCKET, "", 0o660, uid, gid),
    )


@pytest.mark.parametrize("option", ["idmap", "ridmap"])
def test_option_maps_owners_as_the_user_namespace_does(option: str) -> None:
    planned = planner(maps=(UIDS, GIDS)).plan(3, bind("/srv/data", option))
    owners = IdMap(tuple(UIDS), tuple(GIDS), recursive=option == "ridmap")
    assert planned == GuestMount(bind(IN_SHARE), share=share("/srv/data", owners=owners))


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (bind("/srv/missing"), r"source: /srv/missing does not exist"),
        (bind(""), r"source: missing"),
        ({"destination": "/x", "type": "bind"}, r"source: missing"),
        ({"destination": "/x", "source": "/srv/data"}, r"type: missing"),
        (bind("/srv/data", "rshared"), r"options: rshared: "),
        (bind("/sys", **MAPPED), r"uidMappings: /sys cannot be mapped"),
        (bind("/dev/vfio/7"), r"source: /dev/vfio/7 is a device of the host"),
        (bind("/dev/vfio/devices/vfio3"), r"source: /dev/vfio/devices/vfio3 is a device of the host"),
        ({"destination": "/x", "type": "tmpfs", **MAPPED}, r"uidMappings: only a bind mount can map owners"),
        ({"destination": "/x", "type": "ext4", "source": "/dev/sdz"}, r"type: ext4: the disk '/dev/sdz' of the host"),
        ({"destination": "/x", "type": "overlay", "options": []}, r"options: "),
    ],
)
def test_mount_that_a_guest_cannot_have_is_refused(mount: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^/bundle/config\.json: mounts\[3\]\.{words}") as caught:
        planner().plan(3, mount)
    assert caught.value.hint


def test_mounts_are_collected_in_their_order() -> None:
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        bind("/srv/fifo", to="/f"),
        bind("/dev/sdz", to="/d"),
        bind("/srv/huge", to="/h"),
        bind("/srv/shm", to="/dev/shm"),
        {"destination": "/h2", "type": "hugetlbfs", "source": "h"},
        bind("/sys", to="/sys"),
        bind("/srv/huge", to="/again"),
        bind("/srv/data", to="/data"),
    ]
    planned = planner().plan_all(mounts)
    assert [mount["destination"] for mount in planned.entries] == [
        "/proc", "/f", "/h", "/dev/shm", "/h2", "/sys", "/again", "/data",
    ]  # fmt: skip
    assert [(each.name, each.source) for each in planned.shares] == [("mount1", "/srv/fifo"), ("mount8", "/srv/data")]
    assert [(node.index, node.destination) for node in planned.bound] == [(2, "/d")]
    assert planned.huge == {guest_name("/srv/huge"): HUGE["/srv/huge"]}
    assert planned.memory == {guest_name("/srv/shm"): 65536}
    assert planned.page_sizes == {2048, 1048576}
    assert [note.text.split(": ")[1] for note in planned.notes] == ["mounts[1].source", "mounts[6].source"]
    assert planned.sockets == {}
    assert planner().plan_all([]) == GuestMounts()
