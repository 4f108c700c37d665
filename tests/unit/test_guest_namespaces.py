"""The namespaces of a container in the guest: created, joined or refused; mappings of users; names."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.oci.guest.idmap import Maps, as_field
from hawse.oci.guest.namespaces import Namespaces, plan_namespaces, user_maps_of, with_names, with_namespaces
from hawse.oci.pods import CONTAINER, SANDBOX, SINGLE
from hawse.oci.types import Linux, Namespace

UIDS, GIDS = [(0, 100000, 65536)], [(0, 200000, 65536)]
MAPPED: dict[str, Any] = {"uidMappings": as_field(UIDS), "gidMappings": as_field(GIDS)}
NO_MAPS: Maps = ([], [])


def linux(*namespaces: str) -> Linux:
    """With these namespaces, as "kind" or "kind:path"; a new network and mounts unless they name others."""
    kinds = {text.partition(":")[0] for text in namespaces}
    every = [*namespaces, *(kind for kind in ("network", "mount") if kind not in kinds)]
    return Linux(namespaces=[Namespace(type=t.partition(":")[0], path=t.partition(":")[2]) for t in every])


@pytest.mark.parametrize(
    ("role", "namespaces", "own", "joins", "network"),
    [
        (SINGLE, ["pid", "uts", "ipc", "cgroup"], ("pid", "uts", "ipc", "cgroup", "mount"), {}, ""),
        (SINGLE, ["network:/run/netns/a"], ("mount",), {}, "/run/netns/a"),
        (SINGLE, ["user:/run/userns/a"], ("user", "mount"), {}, ""),
        # CRI-O creates the namespaces of a sandbox beforehand.
        (SANDBOX, ["pid:/a", "ipc:/b", "uts:/c", "user:/d"], ("pid", "ipc", "uts", "user", "mount"), {}, ""),
        (SANDBOX, ["network:/run/netns/a"], ("mount",), {}, "/run/netns/a"),
        (
            CONTAINER,
            ["pid:/a", "uts:/c", "user:/d"],
            ("network", "mount"),
            {"pid": "/a", "uts": "/c", "user": "/d"},
            "",
        ),
        (CONTAINER, ["pid", "ipc:/b"], ("pid", "network", "mount"), {"ipc": "/b"}, ""),
        (CONTAINER, ["network:/run/netns/a"], ("mount",), {}, "/run/netns/a"),
    ],
)
def test_namespace_is_created_or_joined(
    role: str, namespaces: list[str], own: tuple[str, ...], joins: dict[str, str], network: str
) -> None:
    assert plan_namespaces("config.json", linux(*namespaces), role) == Namespaces(own, joins, network)


@pytest.mark.parametrize(
    ("role", "namespaces", "words"),
    [
        (SINGLE, ["time"], r"linux\.namespaces\[0\]: the guest's runtime cannot create a time namespace"),
        (SINGLE, ["pid", "ipc:/x"], r"linux\.namespaces\[1\]: the ipc namespace at /x belongs to the host kernel"),
        (CONTAINER, ["mount:/x"], r"linux\.namespaces\[0\]: the mount namespace at /x belongs to the host kernel"),
        (CONTAINER, ["cgroup:/x"], r"linux\.namespaces\[0\]: the cgroup namespace at /x belongs to the host kernel"),
    ],
)
def test_namespace_of_the_host_is_refused(role: str, namespaces: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config\.json: {words}") as caught:
        plan_namespaces("config.json", linux(*namespaces), role)
    assert caught.value.hint


@pytest.mark.parametrize(("missing", "what"), [("network", "network, which a virtual machine"), ("mount", "mounts")])
def test_host_network_and_host_mounts_are_refused(missing: str, what: str) -> None:
    others = [Namespace(type=kind) for kind in ("network", "mount") if kind != missing]
    with pytest.raises(ConfigError, match=f"none of type {missing}: the container would use the host's {what}"):
        plan_namespaces("config.json", Linux(namespaces=others), SINGLE)


def spec_of(path: str = "", **fields: Any) -> dict[str, Any]:
    """A specification with a user namespace."""
    user = {"type": "user"} | ({"path": path} if path else {})
    return {"process": {"user": {"uid": 5}}, "linux": {"namespaces": [user, {"type": "mount"}], **fields}}


def read(path: str) -> Maps:
    """The mappings of namespaces of the host."""
    if path != "/ns":
        raise FileNotFoundError(2, "No such file or directory")
    return UIDS, GIDS


OWN = Namespaces(("user", "mount"), {}, "")
NONE = Namespaces(("mount",), {}, "")
JOINED = Namespaces(("mount",), {"user": "/ns"}, "")


@pytest.mark.parametrize(
    ("namespaces", "spec", "maps", "in_guest"),
    [
        (OWN, spec_of(**MAPPED), (UIDS, GIDS), MAPPED),
        (OWN, spec_of("/ns", **MAPPED), (UIDS, GIDS), MAPPED),
        (OWN, spec_of("/ns"), (UIDS, GIDS), MAPPED),
        (OWN, spec_of("/ns", uidMappings=as_field(UIDS)), (UIDS, GIDS), MAPPED),
        # Mounts can be mapped as in the namespace that is joined; the guest's runtime must not create another one.
        (JOINED, spec_of("/ns", **MAPPED), (UIDS, GIDS), {}),
        (JOINED, spec_of("/ns"), NO_MAPS, {}),
        (NONE, spec_of(), NO_MAPS, {}),
    ],
)
def test_mappings_are_those_of_the_specification_or_of_the_path(
    namespaces: Namespaces, spec: dict[str, Any], maps: Maps, in_guest: dict[str, Any]
) -> None:
    before = copy.deepcopy(spec)
    user_maps = user_maps_of("config.json", spec, namespaces, read)
    assert user_maps == maps
    changed = with_namespaces(spec, namespaces, user_maps)["linux"]
    assert changed.pop("namespaces") == [{"type": kind} for kind in namespaces.own]
    assert changed == in_guest
    assert spec == before


def test_mappings_of_the_specification_stay_as_they_are_written() -> None:
    """The guest's kernel refuses an empty range, as the host's refuses it under runc."""
    empty = {"containerID": 70000, "hostID": 300000, "size": 0}
    mapped: dict[str, Any] = {"uidMappings": [*as_field(UIDS), empty], "gidMappings": as_field(GIDS)}
    spec = spec_of(**mapped)
    maps = user_maps_of("config.json", spec, OWN, read)
    assert with_namespaces(spec, OWN, maps)["linux"]["uidMappings"] == mapped["uidMappings"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (spec_of(), r"linux\.uidMappings and gidMappings: the user namespace has no users or no groups"),
        (spec_of("/gone"), r"linux\.namespaces\[type=user\]\.path: /gone: no such file or directory"),
        (spec_of(**MAPPED) | {"process": {"user": {"uid": 65536}}}, r"process\.user\.uid: 65536 is not mapped"),
        (spec_of("/ns") | {"process": {"user": {"gid": 65536}}}, r"process\.user\.gid: 65536 is not mapped"),
    ],
)
def test_user_namespace_without_its_users_is_refused(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config\.json: {words}") as caught:
        user_maps_of("config.json", spec, OWN, read)
    assert caught.value.hint


UTS, OTHER = {"type": "uts"}, {"type": "mount"}


@pytest.mark.parametrize(
    ("namespaces", "names", "kinds", "hostname", "sysctl"),
    [
        (Namespaces(("uts",), {}, ""), {"hostname": "a"}, [UTS], "a", None),
        (Namespaces(("uts",), {}, ""), {}, [UTS], None, None),
        (Namespaces(("uts",), {}, ""), {"domainname": "d"}, [UTS], None, {"kernel.domainname": "d"}),
        (Namespaces(("uts",), {}, ""), {"domainname": ""}, [UTS], None, None),
        (Namespaces((), {"uts": "/x"}, ""), {"hostname": "a"}, [], "a", None),
        (Namespaces((), {}, ""), {}, [UTS], "the-host", None),
        (Namespaces((), {}, ""), {"hostname": "", "domainname": ""}, [UTS], "the-host", None),
    ],
)
def test_names_are_those_of_the_container_or_of_the_host(
    namespaces: Namespaces,
    names: dict[str, str],
    kinds: list[dict[str, str]],
    hostname: str | None,
    sysctl: dict[str, str] | None,
) -> None:
    given = [{"type": kind} for kind in namespaces.own]
    spec: dict[str, Any] = {"linux": {"namespaces": given}, **names}
    before = copy.deepcopy(spec)
    changed = with_names("config.json", spec, namespaces, "the-host")
    assert changed["linux"]["namespaces"] == kinds
    assert (changed.get("hostname"), changed["linux"].get("sysctl")) == (hostname, sysctl)
    assert "domainname" not in changed
    assert spec == before


@pytest.mark.parametrize("sysctl", [{"kernel.domainname": "own"}, {"kernel.shm_rmid_forced": "1"}])
def test_domain_is_a_sysctl_that_the_specification_can_set_itself(sysctl: dict[str, str]) -> None:
    spec = {"linux": {"namespaces": [UTS], "sysctl": sysctl}, "domainname": "d"}
    changed = with_names("config.json", spec, Namespaces(("uts",), {}, ""), "the-host")
    assert changed["linux"]["sysctl"] == {"kernel.domainname": "d"} | sysctl


@pytest.mark.parametrize("field", ["hostname", "domainname"])
def test_name_without_a_uts_namespace_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config\.json: {field}: the container has no uts namespace"):
        with_names("config.json", {"linux": {"namespaces": [OTHER]}, field: "a"}, NONE, "the-host")
