"""config.json: accepted and refused values with their errors, and the part of it that the guest gets."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hawse.errors import ConfigError
from hawse.oci.default_spec import example
from hawse.oci.guest.dev_shm import find_tmpfs
from hawse.oci.guest.mounts import HostFiles
from hawse.oci.guest.share import Share
from hawse.oci.guest.specification import GUEST_VERSION, plan_guest
from hawse.oci.load import Bundle, load_bundle, load_process
from hawse.oci.pods import CONTAINER, SANDBOX, SINGLE, read_role, role_of
from tests.support.oci import bundle_with

#: Sections that every container has.
OWN = [{"type": "mount"}, {"type": "uts"}]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def test_example_equals_that_of_runc(tmp_path: Path) -> None:
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True)
    theirs, ours = json.loads((tmp_path / "config.json").read_text()), example()
    assert ours.pop("hostname") == "hawse"
    assert theirs.pop("hostname") == "runc"
    # runc omits the cgroup namespace only on a host without cgroup v2; hawse's guests have only version 2.
    for spec in (ours, theirs):
        spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "cgroup"]
    assert ours == theirs


@pytest.mark.parametrize("version", ["1.0.0", "1.0.2-dev", "1.2.1", "1.1.0-rc.3", "1.3.0+dev"])
def test_supported_versions_are_accepted(tmp_path: Path, version: str) -> None:
    assert bundle_with(tmp_path, example() | {"ociVersion": version}).spec.oci_version == version


@pytest.mark.parametrize("version", ["", "1", "1.0", "0.9.0", "2.0.0", "1.0.0; rm", "1.0.x"])
def test_other_versions_are_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(ConfigError, match="ociVersion: unknown version"):
        bundle_with(tmp_path, example() | {"ociVersion": version})


def test_nul_byte_in_a_path_is_refused(tmp_path: Path) -> None:
    spec = example()
    spec["process"]["cwd"] = "/tmp\0/x"
    with pytest.raises(ConfigError, match=r"process\.cwd"):
        bundle_with(tmp_path, spec)


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/dev/vfio/5", "/dev/vfio/5"),
        ("/dev//vfio/./5", "/dev/vfio/5"),
        ("/dev/x/../vfio/5/", "/dev/vfio/5"),
        ("//dev/vfio/5", "/dev/vfio/5"),
        ("/../dev/vfio/5", "/dev/vfio/5"),
    ],
)
def test_paths_of_devices_are_normalized(tmp_path: Path, path: str, clean: str) -> None:
    spec = example()
    spec["linux"]["devices"] = [{"path": path, "type": "c", "major": 511, "minor": 5}]
    bundle = bundle_with(tmp_path, spec)
    assert bundle.spec.linux is not None
    assert bundle.spec.linux.devices is not None
    assert (bundle.spec.linux.devices[0].path, bundle.raw["linux"]["devices"][0]["path"]) == (clean, clean)


def test_endless_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b" " * (5 * 1024 * 1024))
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        load_bundle(str(tmp_path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(["process", "root", "mounts", "linux", "hooks", "annotations"]), value=json_values)
def test_any_value_in_any_field_is_accepted_or_refused_with_its_name(tmp_path: Path, field: str, value: object) -> None:
    try:
        bundle_with(tmp_path, example() | {field: value})
    except ConfigError as error:
        assert field in error.message or "args" in error.message or "rootfs" in error.message
        assert error.hint


def test_process_file_is_loaded_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "process.json"
    path.write_text(json.dumps({"args": ["id"], "cwd": "/", "unknown": 1}))
    raw, process = load_process(str(path))
    assert raw["unknown"] == 1
    assert process.args == ["id"]
    path.write_text(json.dumps({"args": ["id"]}))
    with pytest.raises(ConfigError, match="cwd: missing"):
        load_process(str(path))


def test_guest_gets_its_part_of_the_specification(tmp_path: Path) -> None:
    spec = example()
    spec["process"] |= {"apparmorProfile": "docker-default", "selinuxLabel": "x"}
    spec["linux"] |= {"cgroupsPath": "/host/path", "mountLabel": "y"}
    spec["linux"]["namespaces"] = [{"type": "network", "path": "/proc/1/ns/net"}, *OWN]
    bundle = bundle_with(tmp_path, spec)
    before = copy.deepcopy(bundle.raw)
    plan = plan_guest(bundle, container="c1")
    assert bundle.raw == before
    assert plan.spec["ociVersion"] == GUEST_VERSION
    assert plan.spec["root"] == {"path": "/run/hawse/share/c1/rootfs", "readonly": True}
    assert plan.spec["linux"]["namespaces"] == OWN
    assert plan.spec["linux"]["cgroupsPath"] == "/hawse/c1"
    assert not {"apparmorProfile", "selinuxLabel"} & plan.spec["process"].keys()
    assert "mountLabel" not in plan.spec["linux"]
    assert plan.shares == (Share(name="rootfs", source=f"{tmp_path}/rootfs", is_dir=True, readonly=True),)


def test_guest_gets_no_host_numbers_and_only_its_own_hooks(tmp_path: Path) -> None:
    spec = example()
    spec["linux"]["resources"]["cpu"] = {"cpus": "6-7", "mems": "1", "quota": 5}
    hook = {"path": "/bin/true"}
    spec["hooks"] = {"prestart": [hook], "startContainer": [hook], "poststop": []}
    plan = plan_guest(bundle_with(tmp_path, spec), container="c1")
    assert plan.spec["linux"]["resources"]["cpu"] == {"quota": 5}
    assert plan.spec["hooks"] == {"startContainer": [hook]}
    assert plan.hooks == {"prestart": [hook]}


@pytest.mark.parametrize("source", [None, ""])
def test_bind_without_a_source_is_refused(tmp_path: Path, source: str | None) -> None:
    spec = example()
    spec["mounts"] = [{"destination": "/data", "type": "bind", "options": ["rbind"], "source": source}]
    with pytest.raises(ConfigError, match=r"mounts\[0\]\.source: missing"):
        plan_guest(bundle_with(tmp_path, spec), container="c1")


def test_warnings_of_the_bundle_are_logged(tmp_path: Path) -> None:
    spec = example()
    spec["mounts"] = [{"destination": "data", "type": "tmpfs", "source": "tmpfs"}]
    notes = plan_guest(bundle_with(tmp_path, spec), container="c1").notes
    assert ("warning", "mounts[0].destination: 'data' is not absolute: it is read as a path below /") in notes


def test_binds_are_shared_and_kernel_views_are_those_of_the_guest(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "file").write_text("")
    spec = example()
    spec["mounts"] = [
        {"destination": "/a", "type": "bind", "source": "data", "options": ["rbind", "ro"]},
        {"destination": "/b", "type": "none", "source": f"{tmp_path}/file", "options": ["bind"]},
        {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    ]
    plan = plan_guest(bundle_with(tmp_path, spec), container="c1")
    assert plan.shares[1:] == (
        Share(name="mount0", source=f"{tmp_path}/data", is_dir=True, readonly=True, common=True),
        Share(name="mount1", source=f"{tmp_path}/file", is_dir=False, readonly=False, recursive=False, common=True),
    )
    assert [mount["source"] for mount in plan.spec["mounts"]] == [
        "/run/hawse/share/c1/mount0", "/run/hawse/share/c1/mount1", "/sys", "tmpfs",
    ]  # fmt: skip


def with_bind(path: Path, source: str) -> Bundle:
    """A bundle with one mount, of that source."""
    mount = {"destination": "/x", "type": "bind", "source": source, "options": ["rbind"]}
    return bundle_with(path, example() | {"mounts": [mount]})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/sys/class/net", "/sys/class/net is the guest's, not the host's"),
        ("/proc/", "/proc is the guest's, not the host's"),
        ("/dev/log", "/dev/log is the guest's, not the host's"),
        ("/dev/vfio/vfio", "/dev/vfio/vfio is the guest's, not the host's"),
        ("/dev", "/dev is the guest's: it contains only the VFIO devices of the host that linux.devices lists"),
        (
            "/dev/vfio/",
            "/dev/vfio is the guest's: it contains only the VFIO devices of the host that linux.devices",
        ),
        ("/dev/vfio/devices", "/dev/vfio/devices is the guest's: it contains only the VFIO devices of the host"),
    ],
)
def test_mount_that_the_guest_replaces_is_a_warning(tmp_path: Path, source: str, words: str) -> None:
    plan = plan_guest(with_bind(tmp_path, source), container="c1")
    [(level, text)] = plan.notes
    assert level == "warning"
    assert text.startswith(f"{tmp_path}/config.json: mounts[0].source: {words}")
    assert text.endswith("]"), "no remedy"
    assert [mount["source"] for mount in plan.spec["mounts"]] == [source.rstrip("/")]


def test_link_to_a_kernel_view_is_that_of_the_guest(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/sys/class")
    plan = plan_guest(with_bind(tmp_path, f"{tmp_path}/link/net"), container="c1")
    [(_, text)] = plan.notes
    assert "/sys/class/net is the guest's, not the host's" in text
    assert [mount["source"] for mount in plan.spec["mounts"]] == ["/sys/class/net"]
    assert len(plan.shares) == 1


def test_link_to_a_vfio_node_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/vfio/12")
    with pytest.raises(ConfigError, match="/dev/vfio/12 is a device of the host"):
        plan_guest(with_bind(tmp_path, f"{tmp_path}/link"), container="c1")


@pytest.mark.parametrize("source", ["/dev/vfio/12", "/dev/vfio/devices/vfio3", "/dev/../dev/vfio/noiommu-0"])
def test_mount_of_a_vfio_node_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(ConfigError, match=r"mounts\[0\]\.source: /dev/vfio/\S+ is a device of the host") as caught:
        plan_guest(with_bind(tmp_path, source), container="c1")
    assert "--device" in caught.value.hint


def test_directory_of_the_host_is_recognized_by_any_path(tmp_path: Path) -> None:
    plan = plan_guest(with_bind(tmp_path, f"/dev/..{tmp_path}"), container="c1")
    assert plan.notes == ()
    assert plan.shares[1].source == str(tmp_path)


@pytest.mark.parametrize(
    ("profile", "warned"), [("docker-default", True), ("localhost/own", True), ("unconfined", False), ("", False)]
)
def test_apparmor_profile_is_a_warning(tmp_path: Path, profile: str, warned: bool) -> None:
    spec = example()
    spec["process"]["apparmorProfile"] = profile
    notes = plan_guest(bundle_with(tmp_path, spec), container="c1").notes
    expected = [("warning", f"process.apparmorProfile: {profile!r} has no effect: ")] if warned else []
    assert [(level, text[: len(words)]) for (level, text), (_, words) in zip(notes, expected, strict=True)] == expected


def test_labels_apply_to_the_vm_and_not_in_the_guest(tmp_path: Path) -> None:
    spec = example()
    spec["process"]["selinuxLabel"] = "system_u:system_r:container_kvm_t:s0"
    spec["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0"
    plan = plan_guest(bundle_with(tmp_path, spec), container="c1")
    assert plan.label == "system_u:system_r:container_kvm_t:s0"
    assert [level for level, text in plan.notes if text.startswith("linux.mountLabel")] == ["debug"]
    assert "Label" not in json.dumps(plan.spec)


MOUNTS = """\
22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /run/pod/my\\040shm rw,nosuid shared:9 - tmpfs shm rw,size=65536k
31 22 0:41 / /run/pod/plain rw - tmpfs tmpfs rw
32 22 0:42 / /run/pod/over rw - tmpfs tmpfs rw,size=2g,mode=755
33 32 8:1 / /run/pod/over rw - ext4 /dev/vdb rw,size=1
"""


@pytest.mark.parametrize(
    ("source", "size"),
    [("/run/pod/my shm", 64 << 20), ("/run/pod/plain", 0), ("/run/pod/over", 0), ("/run/pod", 0), ("/", 0)],
)
def test_tmpfs_must_be_mounted_at_exactly_the_path(source: str, size: int) -> None:
    assert find_tmpfs(MOUNTS, source) == size
    assert find_tmpfs("nonsense\n1 2 3 - \n", source) == 0


def test_shared_memory_is_that_of_the_guest(tmp_path: Path) -> None:
    spec = example()
    bind = {"type": "bind", "options": ["rbind", "rw"]}
    spec["mounts"] = [
        bind | {"destination": "/dev/shm", "source": "/run/pod/shm"},
        bind | {"destination": "/data", "source": "/run/pod/shm"},
    ]
    sizes = {"/run/pod/shm": 4096}.get
    files = HostFiles(exists=lambda _: True, is_dir=lambda _: True, tmpfs_size=lambda source: sizes(source, 0))
    plan = plan_guest(bundle_with(tmp_path, spec), container="c1", files=files)
    [(name, size)] = plan.mounts.memory.items()
    assert size == 4096
    assert plan.spec["mounts"][0] == bind | {"destination": "/dev/shm", "source": f"/run/hawse/shm/{name}"}
    assert [share.name for share in plan.shares] == ["rootfs", "mount1"]


NAMESPACES = [{"type": "pid", "path": "/proc/7/ns/pid"}, {"type": "ipc", "path": "/run/ipcns/x"}, *OWN]


@pytest.mark.parametrize(
    ("role", "own", "joins"),
    [
        (SANDBOX, ["pid", "ipc", "mount", "uts"], {}),
        (CONTAINER, ["mount", "uts"], {"pid": "/proc/7/ns/pid", "ipc": "/run/ipcns/x"}),
    ],
)
def test_namespaces_with_paths_belong_to_the_pod(
    tmp_path: Path, role: str, own: list[str], joins: dict[str, str]
) -> None:
    spec = example()
    spec["linux"]["namespaces"] = [*NAMESPACES, {"type": "network", "path": "/run/netns/pod"}]
    plan = plan_guest(bundle_with(tmp_path, spec), container="c1", role=role)
    assert (plan.spec["linux"]["namespaces"], plan.namespaces.joins) == ([{"type": kind} for kind in own], joins)
    assert plan.namespaces.own == tuple(own)


@pytest.mark.parametrize(
    ("role", "path", "own", "sysctls"),
    [
        (SINGLE, "", [], {"net.core.somaxconn": "9"}),
        (SANDBOX, "/run/netns/pod", [], {"net.core.somaxconn": "9"}),
        (CONTAINER, "/run/netns/pod", [], {"net.core.somaxconn": "9"}),
        (CONTAINER, "", [{"type": "network"}], {}),
    ],
)
def test_network_is_that_of_the_guest_unless_a_container_of_a_pod_has_a_new_one(
    tmp_path: Path, role: str, path: str, own: list[dict[str, str]], sysctls: dict[str, str]
) -> None:
    spec = example()
    spec["linux"]["namespaces"] = [{"type": "network", "path": path}, *OWN]
    spec["linux"]["sysctl"] = {"net.core.somaxconn": "9", "kernel.domainname": "x"}
    plan = plan_guest(bundle_with(tmp_path, spec), container="c1", role=role)
    assert plan.spec["linux"]["namespaces"] == [*own, *OWN]
    assert (plan.namespaces.network, plan.sysctls) == (path, sysctls)
    assert plan.spec["linux"]["sysctl"].keys() | sysctls.keys() == spec["linux"]["sysctl"].keys()
    assert not plan.spec["linux"]["sysctl"].keys() & sysctls.keys()


@pytest.mark.parametrize(
    ("annotations", "role"),
    [
        ({}, (SINGLE, "")),
        ({"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "s"}, (SANDBOX, "")),
        ({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "s"}, (CONTAINER, "s")),
        ({"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": "s"}, (CONTAINER, "s")),
        ({"io.kubernetes.cri.sandbox-id": "s"}, (SINGLE, "")),
        ({"io.kubernetes.cri-o.SandboxID": "s", "io.container.manager": "libpod"}, (CONTAINER, "s")),
        ({"io.container.manager": "libpod"}, (SINGLE, "")),
    ],
)
def test_role_of_a_container_in_a_pod(tmp_path: Path, annotations: dict[str, str], role: tuple[str, str]) -> None:
    assert read_role(annotations) == role
    bundle_with(tmp_path, example() | {"annotations": annotations})
    assert role_of(str(tmp_path)) == role


@pytest.mark.parametrize(
    ("manager", "args", "role"),
    [
        ("libpod", ["/catatonit", "-P"], SANDBOX),
        ("libpod", ["/catatonit", "--", "sh"], SINGLE),
        ("other", ["/catatonit", "-P"], SINGLE),
    ],
)
def test_infra_container_of_podman_5_is_recognized_by_its_program(
    tmp_path: Path, manager: str, args: list[str], role: str
) -> None:
    spec = example() | {"annotations": {"io.container.manager": manager}}
    bundle_with(tmp_path, spec | {"process": spec["process"] | {"args": args}})
    assert role_of(str(tmp_path)) == (role, "")


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"io.kubernetes.cri.container-type": "pod"}, "io.kubernetes.cri.container-type: 'pod' is unknown"),
        ({"io.kubernetes.cri.container-type": "container"}, "io.kubernetes.cri.sandbox-id is missing"),
        ({"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": 1}, "SandboxID is miss"),
    ],
)
def test_invalid_role_is_refused(annotations: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_role(annotations)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"annotations": 1}'])
def test_unreadable_bundle_has_no_role(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert role_of(str(tmp_path)) == (SINGLE, "")


@pytest.mark.parametrize(
    ("limits", "pages"),
    [
        ([{"pageSize": "2MB", "limit": 64 << 20}], {2048: 32}),
        ([{"pageSize": "1GB", "limit": 1 << 30}, {"pageSize": "2MB", "limit": 0}], {1048576: 1, 2048: 0}),
        ([], {}),
    ],
)
def test_huge_pages_come_from_their_limits(tmp_path: Path, limits: list[dict[str, Any]], pages: dict[int, int]) -> None:
    spec = example()
    spec["linux"]["resources"]["hugepageLimits"] = limits
    assert plan_guest(bundle_with(tmp_path, spec), container="c1").hugepages == pages


@pytest.mark.parametrize(
    ("linux", "words"),
    [
        ({"intelRdt": {"closID": "x"}}, "linux.intelRdt"),
        ({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}}, "linux.seccomp.listenerPath"),
        ({"resources": {"hugepageLimits": [{"pageSize": "2 MiB", "limit": 1}]}}, "hugepageLimits"),
        ({"namespaces": [*OWN, {"type": "network"}, {"type": "ipc", "path": "/x"}]}, r"linux.namespaces\[3\]: the ipc"),
    ],
)
def test_unsupported_field_is_refused_by_name(tmp_path: Path, linux: dict[str, Any], words: str) -> None:
    spec = example()
    spec["linux"] |= linux
    with pytest.raises(ConfigError, match=words):
        plan_guest(bundle_with(tmp_path, spec), container="c1")


def test_bundle_is_found_by_a_relative_path(tmp_path: Path) -> None:
    bundle_with(tmp_path, example())
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert load_bundle(".").path == str(tmp_path)
    finally:
        os.chdir(before)


@pytest.mark.parametrize(
    ("namespaces", "path"),
    [
        ([{"type": "network"}, *OWN], ""),
        ([*OWN, {"type": "network", "path": "/run/netns/pod"}], "/run/netns/pod"),
    ],
)
def test_network_namespace_is_not_passed_to_the_guest(
    tmp_path: Path, namespaces: list[dict[str, Any]], path: str
) -> None:
    spec = example()
    spec["linux"]["namespaces"] = namespaces
    plan = plan_guest(bundle_with(tmp_path, spec), container="c1")
    assert plan.namespaces.network == path
    assert "network" not in [namespace["type"] for namespace in plan.spec["linux"]["namespaces"]]


@pytest.mark.parametrize("linux", [{}, {"namespaces": []}, {"namespaces": [{"type": "pid"}]}])
def test_network_of_the_host_is_refused_by_name(tmp_path: Path, linux: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"linux\.namespaces: none of type network: the container would use the host's"
    ):
        plan_guest(bundle_with(tmp_path, example() | {"linux": linux}), container="c1")


def test_network_settings_are_applied_by_the_agent_and_others_by_crun(tmp_path: Path) -> None:
    spec = example()
    spec["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "net/core/somaxconn": "9", "kernel.shm_rmid_forced": "1"}
    plan = plan_guest(bundle_with(tmp_path, spec), container="c1")
    assert plan.sysctls == {"net.ipv4.ip_forward": "1", "net/core/somaxconn": "9"}
    assert plan.spec["linux"]["sysctl"] == {"kernel.shm_rmid_forced": "1"}
