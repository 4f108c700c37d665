"""Values of a specification that are invalid for every runtime; mounts and names that the guest gets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.oci.checks import checked_mount
from hawse.oci.default_spec import example
from hawse.oci.guest.mounts import HostFiles
from hawse.oci.guest.share import Share
from hawse.oci.guest.specification import plan_guest
from hawse.oci.load import load_bundle, load_process
from tests.support.bundles import write


def planned(path: Path, spec: dict[str, Any], **options: Any) -> Any:
    """The plan of a bundle with this specification."""
    (path / "rootfs").mkdir(exist_ok=True)
    write(str(path), spec)
    return plan_guest(load_bundle(str(path)), container="c1", **options)


def limit(kind: str, soft: int = 1, hard: int = 1) -> dict[str, Any]:
    return {"type": kind, "soft": soft, "hard": hard}


def without(kind: str) -> list[dict[str, str]]:
    """The example's namespaces except one."""
    return [namespace for namespace in example()["linux"]["namespaces"] if namespace["type"] != kind]


ALL = without("")
MAPPING = [{"containerID": 0, "hostID": 1000, "size": 1}]


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("process", {"rlimits": [limit("RLIMIT_FLY")]}, r"process\.rlimits\[0\]\.type: 'RLIMIT_FLY' is not a resource"),
        ("process", {"rlimits": [limit("NOFILE")]}, r"process\.rlimits\[0\]\.type: 'NOFILE' is no"),
        ("process", {"rlimits": [limit("RLIMIT_AS"), limit("RLIMIT_AS")]}, r"rlimits\[1\]: RLIMIT_AS is listed twice"),
        ("process", {"rlimits": [limit("RLIMIT_AS", 5, 4)]}, r"rlimits\[0\]: RLIMIT_AS: soft 5 is above hard 4"),
        ("linux", {"namespaces": [*ALL, {"type": "x"}]}, r"namespaces\[6\]\.type: 'x' is not a kind of namespace"),
        ("linux", {"namespaces": [*ALL, ALL[0]]}, r"linux\.namespaces\[6\]: the pid namespace is listed twice"),
        ("linux", {"namespaces": [*ALL, {"type": "time"}]}, r"namespaces\[6\]: .* cannot create a time namespace"),
        ("linux", {"namespaces": without("mount")}, r"linux\.namespaces: none of type mount"),
        ("linux", {"namespaces": without("uts")}, "hostname: the container has no uts namespace"),
        ("linux", {"uidMappings": MAPPING}, r"linux\.uidMappings: the container has no user namespace"),
        ("linux", {"gidMappings": MAPPING}, r"linux\.gidMappings: the container has no user namespace"),
        ("linux", {"rootfsPropagation": "viral"}, r"linux\.rootfsPropagation: 'viral' is unknown"),
        ("linux", {"resources": {"unified": {"io.max": "x"}}}, r"linux\.resources\.unified: 'io\.max' cannot be set"),
        ("linux", {"resources": {"unified": {"memory.x/../y": "x"}}}, r"unified: 'memory\.x/\.\./y' cannot be set"),
    ],
)  # fmt: skip
def test_invalid_value_is_named(tmp_path: Path, part: str, change: dict[str, Any], words: str) -> None:
    spec = example()
    spec[part] |= change
    with pytest.raises(ConfigError, match=words) as caught:
        planned(tmp_path, spec)
    assert caught.value.hint


def test_exec_process_is_checked_like_the_first(tmp_path: Path) -> None:
    write(str(tmp_path), {"args": ["a"], "cwd": "/", "rlimits": [limit("RLIMIT_AS", 2)]})
    with pytest.raises(ConfigError, match=r"config\.json: rlimits\[0\]: RLIMIT_AS: soft 2 is above hard 1"):
        load_process(f"{tmp_path}/config.json")
    write(str(tmp_path), {"args": ["a"], "cwd": "/", "ioPriority": {"class": "IOPRIO_CLASS_RT"}})
    with pytest.raises(ConfigError, match=r"config\.json: ioPriority: "):
        load_process(f"{tmp_path}/config.json")


@pytest.mark.parametrize("option", ["shared", "rshared", "unbindable", "runbindable"])
@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
def test_mount_option_that_a_guest_cannot_apply_is_refused(tmp_path: Path, kind: str, option: str) -> None:
    spec = example()
    spec["mounts"].append({"destination": "/x", "type": kind, "source": "/", "options": [option]})
    with pytest.raises(ConfigError, match=rf"mounts\[7\]\.options: {option}: "):
        planned(tmp_path, spec)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["rbind"], {}),
        (["bind"], {"recursive": False}),
        ([], {}),
        (["rbind", "rprivate", "ro"], {"readonly": True, "private": True}),
        (["bind", "private", "rro"], {"readonly": True, "readonly_below": True, "private": True, "recursive": False}),
        (["rbind", "rslave", "rw"], {}),
        (["rbind", "ro", "rw"], {}),
        (["rbind", "rw", "ro"], {"readonly": True}),
        (["rbind", "ro", "rro"], {"readonly": True, "readonly_below": True}),
        (["rbind", "rro", "rw"], {"readonly": True, "readonly_below": True}),
        (["rbind", "rro", "rrw"], {}),
    ],
)
def test_mount_options_decide_over_the_properties_of_a_share(
    tmp_path: Path, options: list[str], expected: dict[str, Any]
) -> None:
    spec = example()
    spec["mounts"].append({"destination": "/x", "type": "bind", "source": str(tmp_path), "options": options})
    share = planned(tmp_path, spec).shares[-1]
    assert share == Share(
        name="mount7", source=str(tmp_path), is_dir=True, common=True, **({"readonly": False} | expected)
    )


def test_container_without_a_uts_namespace_has_the_host_name_of_the_host(tmp_path: Path) -> None:
    spec = example()
    del spec["hostname"]
    spec["linux"]["namespaces"] = without("uts")
    plan = planned(tmp_path, spec, files=HostFiles(host_name="the-host"))
    assert plan.spec["hostname"] == "the-host"
    assert {"type": "uts"} in plan.spec["linux"]["namespaces"]
    assert planned(tmp_path, spec).spec["hostname"] == os.uname().nodename


def test_domain_name_becomes_a_setting(tmp_path: Path) -> None:
    spec = example() | {"domainname": "example.org"}
    spec["linux"]["sysctl"] = {"kernel.shm_rmid_forced": "1"}
    plan = planned(tmp_path, spec)
    assert "domainname" not in plan.spec
    assert plan.spec["linux"]["sysctl"] == {"kernel.domainname": "example.org", "kernel.shm_rmid_forced": "1"}


def test_cpu_burst_becomes_a_cgroup_file(tmp_path: Path) -> None:
    spec = example()
    spec["linux"]["resources"]["cpu"] = {"quota": 100, "burst": 50}
    assert planned(tmp_path, spec).spec["linux"]["resources"]["unified"] == {"cpu.max.burst": "50"}


@pytest.mark.parametrize(
    ("mount", "options"),
    [
        ({"type": "bind"}, ["rbind"]), ({"type": "bind", "options": ["ro"]}, ["rbind", "ro"]),
        ({"type": "bind", "options": ["bind"]}, ["bind"]), ({"options": ["rbind", "ro"]}, ["rbind", "ro"]),
        ({"type": "bind", "options": ["bind", "tmpcopyup"]}, ["bind"]),
        ({"type": "tmpfs", "options": ["tmpcopyup", "ro"]}, ["tmpcopyup", "ro"]), ({"type": "tmpfs"}, None),
    ],
)  # fmt: skip
def test_mount_is_translated_for_the_guests_runtime(mount: dict[str, Any], options: list[str] | None) -> None:
    """The options decide whether a mount is a bind, and only a tmpfs supports tmpcopyup."""
    bind = mount.get("type") == "bind" or "type" not in mount
    checked = checked_mount("mounts[0]", {"destination": "/x", "source": "/s"} | mount, bind=bind)
    assert checked.get("options") == options


def test_mount_without_a_type_must_be_a_bind() -> None:
    with pytest.raises(ConfigError, match=r"mounts\[0\]\.type: missing"):
        checked_mount("mounts[0]", {"destination": "/x", "options": ["ro"]}, bind=False)
