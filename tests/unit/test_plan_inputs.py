"""No step of planning changes the documents that it is given: the bundle's, and those of the steps before it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawse.errors import ConfigError, HawseError
from hawse.oci.default_spec import example
from hawse.oci.guest.bind_sources import DeviceNode
from hawse.oci.guest.host_sockets import SOCKET, Special
from hawse.oci.guest.hugetlbfs import Hugetlbfs
from hawse.oci.guest.mounts import HostFiles
from hawse.oci.guest.specification import plan_guest
from hawse.oci.limits.cgroups import CgroupPlan
from hawse.oci.load import Bundle, load_bundle
from hawse.oci.pods import CONTAINER, SANDBOX, SINGLE
from hawse.planner.container import container_plan
from hawse.planner.devices.device_options import device_options
from hawse.planner.devices.plugs import plug_steps, shape
from hawse.planner.devices.selection import DeviceChecks, select_devices
from hawse.planner.request import ContainerRequest
from hawse.planner.vm import ask_qemu
from hawse.vfio.emulated import read_table
from hawse.vm.ports import plan_ports
from tests.support.bundles import write
from tests.support.ready import DEVICES, EMULATED, Planner, make_qemu
from tests.support.specification import BOOL, LIST, MAP, NUMBER, NUMBERS, OBJECT, OBJECTS, TEXT, TEXTS, leaves, put

#: Of each kind, a value.
VALUES: dict[str, Any] = {
    TEXT: "x", TEXTS: ["x"], BOOL: True, NUMBER: 7, NUMBERS: [7], MAP: {"a": "b"}, OBJECTS: {"eth1": {}},
    OBJECT: {}, LIST: [{}],
}  # fmt: skip
MAPPED = {f"{kind}Mappings": [{"containerID": 0, "hostID": 100000, "size": 65536}] for kind in ("uid", "gid")}
#: Sources of mounts of any kind; none has to exist.
HOST = HostFiles(
    is_dir=lambda path: path == "/srv/data",
    exists=lambda _: True,
    tmpfs_size=lambda path: 4096 if path == "/srv/shm" else 0,
    hugetlbfs=lambda path: Hugetlbfs(2048, 0o755, 0, 0) if path == "/srv/huge" else None,
    node=lambda path: DeviceNode("b", 7, 0, 0o660, 0, 6) if path == "/srv/disk" else None,
    special=lambda path: Special(SOCKET, path, 0o660, 0, 0) if path == "/srv/socket" else None,
    user_maps=lambda _: ([(0, 100000, 65536)], [(0, 100000, 65536)]),
)
SOURCES = ("/srv/data", "/srv/file", "/srv/shm", "/srv/huge", "/srv/disk", "/srv/socket", "/sys", "/dev/vfio/vfio")
MOUNTS = st.one_of(
    st.builds(
        lambda source, to, options, maps: {
            "destination": to, "type": "bind", "source": source, "options": options, **maps,
        },
        st.sampled_from(SOURCES),
        st.sampled_from(["/x", "/dev/shm", "/run/notify", "data"]),
        st.lists(st.sampled_from(["rbind", "ro", "rro", "private", "nodev"]), max_size=3),
        st.sampled_from([{}, {}, MAPPED]),
    ),
    st.sampled_from(
        [
            {"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]},
            {"destination": "/x", "type": "hugetlbfs", "source": "h", "options": ["pagesize=2M"]},
            {"destination": "/x", "type": "overlay", "options": ["lowerdir=/a:/b"]},
        ]
    ),
)  # fmt: skip
NODES = [
    {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o600}
    for path, major, minor in (
        ("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 0, 5), ("/dev/vfio/6", 0, 6), ("/dev/vfio/devices/vfio5", 0, 5),
        ("/dev/iommu", 10, 126), ("/dev/fuse", 10, 229), ("/dev/null", 1, 3),
    )
]  # fmt: skip
RULES = [
    {"allow": False, "access": "rwm"}, {"allow": True, "access": "rwm"},
    {"allow": True, "type": "c", "major": 10, "minor": 196, "access": "rw"},
    {"allow": True, "type": "c", "major": 188, "access": "rwm"},
]  # fmt: skip


@st.composite
def specifications(draw: st.DrawFn) -> dict[str, Any]:
    """Specifications that use every step: most of them can be planned."""
    spec = example()
    process, linux = spec["process"], spec["linux"]
    spec["mounts"] += draw(st.lists(MOUNTS, max_size=3))
    linux["devices"] = draw(st.lists(st.sampled_from(NODES), max_size=4, unique_by=str))
    linux["resources"] = {"devices": draw(st.lists(st.sampled_from(RULES), max_size=3))} | draw(
        st.sampled_from([{}, {"cpu": {"cpus": "0", "mems": "0", "burst": 5, "quota": 7}}, {"pids": {"limit": 0}}])
    )
    user = draw(st.sampled_from([{}, {"type": "user"}, {"type": "user", "path": "/run/userns/x"}]))
    if user:
        linux["namespaces"].append(user)
        linux |= MAPPED
    linux["sysctl"] = draw(st.sampled_from([{}, {"net.core.somaxconn": "9", "kernel.shm_rmid_forced": "1"}]))
    spec |= draw(st.sampled_from([{}, {"domainname": "example.org"}]))
    spec |= draw(st.sampled_from([{}, {"hooks": {"prestart": [{"path": "/x"}], "startContainer": [{"path": "/x"}]}}]))
    process |= draw(st.sampled_from([{}, {"selinuxLabel": ""}, {"apparmorProfile": "x", "oomScoreAdj": 5}]))
    process["env"] = draw(st.sampled_from([[], ["NOTIFY_SOCKET=/run/notify", "A=0000:02:00.0"]]))
    linux |= draw(st.sampled_from([{}, {"mountLabel": "x"}]))
    spec["annotations"] = draw(
        st.sampled_from([{}, {"hawse.devices": "5,7"}, {"hawse.device-mode": "guest-kernel"}, {"hawse.hugepages": ""}])
    )
    return spec


class Unchanged:
    """Checks at its end that a bundle is as at its begin."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def __enter__(self) -> None:
        self._raw = copy.deepcopy(self._bundle.raw)
        self._spec = msgspec.json.encode(self._bundle.spec)

    def __exit__(self, *_: object) -> None:
        assert self._bundle.raw == self._raw
        assert msgspec.json.encode(self._bundle.spec) == self._spec


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    host = Planner(str(tmp_path_factory.mktemp("host")))
    make_qemu(host.qemu, devices=[*DEVICES, "virtio-blk-pci"])
    return host


@pytest.mark.parametrize(("path", "kind"), list(leaves()), ids=[path for path, _ in leaves()])
def test_field_of_the_specification_is_not_changed_by_plan_guest(host: Planner, path: str, kind: str) -> None:
    spec = example()
    put(spec, path, VALUES[kind])
    Path(f"{host.bundle}/config.json").write_text(json.dumps(spec))
    try:
        bundle = load_bundle(host.bundle)
    except ConfigError:
        return
    with Unchanged(bundle):
        try:
            plan_guest(bundle, container="c1")
        except ConfigError:
            return


@settings(max_examples=150)
@given(spec=specifications(), role=st.sampled_from([SINGLE, SANDBOX, CONTAINER]))
def test_bundle_is_not_changed_by_plan_guest(host: Planner, spec: dict[str, Any], role: str) -> None:
    write(host.bundle, spec)
    bundle = load_bundle(host.bundle)
    with Unchanged(bundle):
        try:
            plan_guest(bundle, container="c1", role=role, forwarded=("/srv/*",), files=HOST)
        except ConfigError:
            return


@settings(max_examples=100)
@given(spec=specifications())
def test_documents_are_not_changed_by_devices_and_the_container(host: Planner, spec: dict[str, Any]) -> None:
    """By select_devices and by container_plan: the bundle, the guest's plan, the specification with the devices."""
    write(host.bundle, spec)
    bundle, config = load_bundle(host.bundle), host.load(host.config(more=EMULATED))
    options = device_options(config, spec["annotations"])
    checks = DeviceChecks(options, read_table(config.emulated), (), fit=lambda _: None, ask=lambda: ask_qemu(config))
    with Unchanged(bundle):
        try:
            guest = plan_guest(bundle, container="c1", files=HOST)
            before = copy.deepcopy(guest)
            devices = select_devices(bundle, guest, checks, role=SINGLE)
        except HawseError:
            return
        assert guest == before
        request = ContainerRequest(
            guest=guest, devices=devices, options=options, role=SINGLE, hugepages=(), vm_hugepages=(), notes=()
        )
        kept, groups = copy.deepcopy(request), devices.request.groups
        plugs = plug_steps(groups, plan_ports([shape(group) for group in groups]).slots, owner="c1")
        container_plan(request, bundle, config, name="c1", plugs=plugs, cgroup=CgroupPlan(), notify="/run/notify")
        assert request == kept
