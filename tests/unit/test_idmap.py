"""Mappings of owners: of mounts and of a container's user namespace."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.linux import user_namespaces
from hawse.oci.default_spec import example
from hawse.oci.guest.hugetlbfs import Hugetlbfs
from hawse.oci.guest.idmap import IdMap, Maps, Range, as_field, check_user_map, of_linux, take_out
from hawse.oci.guest.mounts import HostFiles
from hawse.oci.guest.specification import GuestPlan, plan_guest
from hawse.oci.pods import CONTAINER, SANDBOX, SINGLE
from tests.support.oci import bundle_with
from tests.support.processes import children

UIDS, GIDS = [(0, 100000, 65536)], [(0, 200000, 65536)]
MAPPED = {"uidMappings": as_field(UIDS), "gidMappings": as_field(GIDS)}
OWN: Any = (tuple(UIDS), tuple(GIDS))
BELOW = IdMap(tuple(UIDS), tuple(GIDS), recursive=True)
BIND = {"destination": "/x", "type": "bind", "source": "/data"}


@pytest.mark.parametrize(
    ("mount", "container", "expected"),
    [
        ({}, OWN, None),
        ({"options": ["rbind", "rro"]}, OWN, None),
        ({"uidMappings": [], "gidMappings": None}, OWN, None),
        ({"uidMappings": [{"containerID": 0, "hostID": 1, "size": 0}]}, OWN, None),
        (MAPPED, ([], []), IdMap(*OWN)),
        (MAPPED | {"options": ["rbind"]}, ([], []), IdMap(*OWN)),
        (MAPPED | {"options": ["idmap"]}, ([], []), IdMap(*OWN)),
        (MAPPED | {"options": ["rbind", "ridmap"]}, ([], []), BELOW),
        ({"options": ["bind", "idmap"]}, OWN, IdMap(*OWN)),
        ({"options": ["ridmap"]}, OWN, BELOW),
    ],
)
def test_mapping_of_a_mount(mount: dict[str, Any], container: Any, expected: IdMap | None) -> None:
    rest, owners = take_out("mounts[0]", BIND | mount, container, bind=True)
    assert owners == expected
    assert not {"uidMappings", "gidMappings"} & rest.keys()
    assert not {"idmap", "ridmap"} & set(rest.get("options") or ())
    assert {key: rest[key] for key in BIND} == BIND
    kept = [option for option in mount.get("options") or () if option not in ("idmap", "ridmap")]
    assert (rest.get("options") or []) == kept


@pytest.mark.parametrize(
    ("mount", "bind", "words"),
    [
        (MAPPED, False, r"mounts\[0\]\.uidMappings: only a bind mount can map owners"),
        ({"options": ["idmap"]}, False, r"mounts\[0\]\.options: idmap: only a bind mount"),
        ({"options": ["ridmap"]}, True, r"mounts\[0\]\.options: ridmap: the mount needs mappings"),
        ({"uidMappings": as_field(UIDS)}, True, r"mounts\[0\]\.uidMappings: the mount needs mappings of users and of"),
        ({"gidMappings": as_field(GIDS)}, True, r"mounts\[0\]\.uidMappings: the mount needs mappings"),
    ],
)
def test_mapping_that_a_mount_cannot_have(mount: dict[str, Any], bind: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        take_out("mounts[0]", BIND | mount, ([], []), bind=bind)
    assert caught.value.hint


def test_owner_without_a_mapping_is_nobody() -> None:
    owners = IdMap(((0, 100000, 10),), ((5, 7, 1),))
    assert owners.owner(3, 5) == (100003, 7)
    assert owners.owner(10, 0) == (65534, 65534)


def test_mappings_of_linux() -> None:
    assert of_linux({}) == ([], [])
    assert of_linux(MAPPED) == (UIDS, GIDS)


def maps(path: str) -> Any:
    if path == "/empty":
        return [], []
    if path != "/run/userns/pod":
        raise FileNotFoundError(2, "No such file or directory")
    return UIDS, GIDS


def planned(tmp_path: Path, role: str, user: dict[str, Any], mounts: list[Any] = [], **linux: Any) -> GuestPlan:  # noqa: B006
    spec = example()
    spec["linux"]["namespaces"].append({"type": "user"} | user)
    spec["linux"] |= linux
    spec["mounts"] += mounts
    files = HostFiles(
        user_maps=maps,
        exists=lambda _path: True,
        hugetlbfs=lambda path: Hugetlbfs(2048, 0o755, 0, 0) if path == "/huge" else None,
        tmpfs_size=lambda path: 4096 if path == "/sandbox/shm" else 0,
    )
    return plan_guest(bundle_with(tmp_path, spec), container="c1", role=role, files=files)


@pytest.mark.parametrize(
    ("role", "user", "linux", "own", "joined", "mapped"),
    [
        (SINGLE, {}, MAPPED, True, "", True),
        (SANDBOX, {}, MAPPED, True, "", True),  # containerd
        (SANDBOX, {"path": "/run/userns/pod"}, MAPPED, True, "", True),  # CRI-O, containerd 2
        (SANDBOX, {"path": "/run/userns/pod"}, {}, True, "", True),
        (SINGLE, {"path": "/run/userns/pod"}, {}, True, "", True),
        (CONTAINER, {"path": "/proc/7/ns/user"}, MAPPED, False, "/proc/7/ns/user", False),
        (CONTAINER, {"path": "/run/userns/pod"}, {}, False, "/run/userns/pod", False),
        (CONTAINER, {}, MAPPED, True, "", True),
    ],
)
def test_user_namespace_is_made_with_its_mappings_or_joined(
    tmp_path: Path, role: str, user: dict[str, str], linux: dict[str, Any], own: bool, joined: str, mapped: bool
) -> None:
    plan = planned(tmp_path, role, user, **linux)
    assert ({"type": "user"} in plan.spec["linux"]["namespaces"]) is own
    assert plan.namespaces.joins.get("user", "") == joined
    fields = {key: plan.spec["linux"].get(key) for key in MAPPED}
    assert fields == (MAPPED if mapped else dict.fromkeys(MAPPED))


@pytest.mark.parametrize(
    ("user", "linux", "words"),
    [
        ({}, {}, r"linux\.uidMappings and gidMappings: the user namespace has no users or no groups"),
        ({}, {"uidMappings": as_field(UIDS)}, "has no users or no groups"),
        ({"path": "/empty"}, {}, r"type=user\]\.path: /empty: the user namespace has no mappings"),
        ({"path": "/gone"}, {}, r"linux\.namespaces\[type=user\]\.path: /gone: no such file or directory"),
    ],
)
def test_user_namespace_without_mappings_is_refused(
    tmp_path: Path, user: dict[str, str], linux: dict[str, Any], words: str
) -> None:
    """As under runc, which says "no uid mappings found"."""
    with pytest.raises(ConfigError, match=words) as caught:
        planned(tmp_path, SINGLE, user, **linux)
    assert caught.value.hint


def test_shares_have_mappings_and_the_guests_runtime_sees_none(tmp_path: Path) -> None:
    mounts = [
        BIND | MAPPED | {"options": ["rbind", "ridmap"]},
        {"destination": "/huge", "type": "bind", "source": "/huge", **MAPPED},
        {"destination": "/dev/shm", "type": "bind", "source": "/sandbox/shm", **MAPPED},
    ]
    plan = planned(tmp_path, CONTAINER, {"path": "/proc/7/ns/user"}, mounts, **MAPPED)
    assert plan.shares[-1].owners == BELOW
    assert plan.shares[0].owners is None, "engines change the owners of the root file system themselves"
    [huge] = plan.mounts.huge.values()
    assert (huge.uid, huge.gid) == (100000, 200000)
    assert len(plan.mounts.memory) == 1, "every user can write to it"
    assert "Mappings" not in str(plan.spec["mounts"])
    assert "idmap" not in str(plan.spec["mounts"])


def test_view_of_the_kernel_cannot_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mounts\[7\]\.uidMappings: /sys cannot be mapped"):
        planned(tmp_path, SINGLE, {}, [BIND | {"source": "/sys"} | MAPPED], **MAPPED)


def test_namespace_of_the_host_has_the_mappings_that_it_was_made_with(tmp_path: Path) -> None:
    uids, gids = [(0, 100000, 10), (20, 7, 1)], [(0, 200000, 10)]
    descriptors = len(os.listdir("/proc/self/fd"))
    before = set(children(os.getpid()))  # for example the lab's virtual machine, if lab tests ran before
    fd = user_namespaces.create(uids, gids)
    try:
        assert user_namespaces.read(f"/proc/self/fd/{fd}") == (uids, gids)
    finally:
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    for path in ("/proc/self/ns/net", "/proc/self/ns/user", f"{tmp_path}/gone", "/dev/null"):
        with pytest.raises(OSError, match=r"user namespace|Invalid argument|No such file"):
            user_namespaces.read(path)
    with pytest.raises(OSError, match="Invalid argument"):
        user_namespaces.create([(0, 0, 10), (5, 50, 10)], gids)
    assert set(children(os.getpid())) <= before, "no child is left"


PLAIN: dict[str, Any] = {"uid": 0, "gid": 0}
WHOLE = [(0, 0, 2**32 - 1)]


@pytest.mark.parametrize("maps", [(UIDS, GIDS), (WHOLE, WHOLE), ([(0, 5, 1), (1, 6, 9)], [(5, 0, 5), (0, 5, 5)])])
def test_mappings_that_the_kernel_takes_are_taken(maps: Maps) -> None:
    check_user_map("config.json", maps, PLAIN)


@pytest.mark.parametrize(
    ("uids", "gids", "user", "words"),
    [
        ([(1, 5, 9)], GIDS, PLAIN, r"linux\.uidMappings: 0, root of the user namespace, is not mapped"),
        (UIDS, [(1, 5, 9)], PLAIN, r"linux\.gidMappings: 0, root of the user namespace, is not mapped"),
        ([(0, 5, 9), (8, 50, 9)], GIDS, PLAIN, r"linux\.uidMappings: two ranges have the containerID 8"),
        (UIDS, [(0, 5, 9), (20, 13, 9)], PLAIN, r"linux\.gidMappings: two ranges have the hostID 13"),
        ([(0, 2**32 - 5, 5)], GIDS, PLAIN, "the last valid ID is 4294967294"),
        (UIDS, [(0, 0, 2**32)], PLAIN, "the last valid ID is 4294967294"),
        ([(number, number, 1) for number in range(341)], GIDS, PLAIN, "341 ranges, and the kernel accepts 340"),
        ([(0, 5, 9)], GIDS, {"uid": 9, "gid": 0}, r"process\.user\.uid: 9 is not mapped"),
        (UIDS, [(0, 5, 9)], {"uid": 0, "gid": 9}, r"process\.user\.gid: 9 is not mapped"),
        (UIDS, [(0, 5, 9)], PLAIN | {"additionalGids": [3, 9]}, r"process\.user\.additionalGids: 9 is not mapped"),
    ],
)
def test_mappings_that_cannot_work_are_named(
    uids: Sequence[Range], gids: Sequence[Range], user: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_user_map("config.json", (uids, gids), user)


@pytest.mark.parametrize("option", ["idmap=uids=0-1-10", "ridmap=uids=0-1-10;gids=0-1-10", "idmap="])
@pytest.mark.parametrize("bind", [False, True])
def test_crun_s_own_option_is_refused(option: str, bind: bool) -> None:
    with pytest.raises(ConfigError, match=r"x\.options: '.*' is not an option of the specification"):
        take_out("x", {"destination": "/d", "options": ["bind", option]}, (UIDS, GIDS), bind=bind)
