"""No request is ignored silently: hawse names each request of a specification or an annotation that a VM cannot fulfil,
in an error or a warning.

The tables cover the kinds of device nodes, the fields of ``linux.devices`` and ``linux.resources``, and the
annotations. tests/unit/test_specification.py covers every field of the specification and every type of mount.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hawse.config import ANNOTATIONS
from hawse.errors import HawseError
from hawse.oci.fields import FIELDS, Fate
from hawse.plan.model import PlugStep
from hawse.planner.devices.device_options import PREFIX
from hawse.planner.devices.plugs import describe
from tests.support.ready import EMULATED, Change, Planner, annotated

NODES = [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/6", 0, 0)]
NONE = {"allow": False, "access": "rwm"}


def node(path: str, kind: str, major: int, minor: int) -> Change:
    """A device with a rule that allows it."""

    def change(spec: dict[str, Any]) -> None:
        numbers = {"type": kind, "major": major, "minor": minor}
        spec["linux"]["devices"] = [{"path": path, **numbers}]
        rule = numbers | {"allow": True, "type": "b" if kind == "b" else "c", "access": "rwm"}
        spec["linux"]["resources"]["devices"] = [NONE, rule]

    return change


def listed(**changes: Any) -> Change:
    """A device with an invalid value."""
    return lambda spec: spec["linux"].update({"devices": [{"path": "/dev/x", "type": "c"} | changes]})


def rule(**changes: Any) -> Change:
    """A rule with an invalid value, or for a device that does not exist."""
    return lambda spec: spec["linux"]["resources"].update({"devices": [{"allow": True, "access": "rw"} | changes]})


def resources(**limits: Any) -> Change:
    return lambda spec: spec["linux"]["resources"].update(limits)


def linux(**parts: Any) -> Change:
    return lambda spec: spec["linux"].update(parts)


def process(**parts: Any) -> Change:
    return lambda spec: spec["process"].update(parts)


def bind(source: str) -> Change:
    mount = {"destination": "/x", "type": "bind", "source": source, "options": ["bind"]}
    return lambda spec: spec["mounts"].append(mount)


def overlay(*options: str) -> Change:
    mount = {"destination": "/x", "type": "overlay", "source": "overlay", "options": list(options)}
    return lambda spec: spec["mounts"].append(mount)


def make_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)


#: Removed at the end of the process.
_FILES = tempfile.TemporaryDirectory()


def special(make: Callable[[str], None]) -> Change:
    """A bind of a file, which is created first."""

    def change(spec: dict[str, Any]) -> None:
        path = f"{tempfile.mkdtemp(dir=_FILES.name)}/it"
        make(path)
        bind(path)(spec)

    return change


#: Numbers that no driver of a host uses, for requests of a device that must not exist.
NOBODY = 4095
DISK = {"major": 8, "minor": 0}
RATE = [DISK | {"rate": 1}]
SPECIFICATION: list[tuple[str, Change, str]] = [
    ("a disk that does not exist", node("/dev/sdz", "b", NOBODY, 1), "linux.devices: /dev/sdz: the host has no block"),
    ("uverbs", node("/dev/infiniband/uverbs0", "c", 231, 192), "linux.devices: /dev/infiniband/uverbs0"),
    ("UIO", node("/dev/uio0", "c", NOBODY, 0), "linux.devices: /dev/uio0"),
    ("NVIDIA", node("/dev/nvidia0", "c", 195, 0), "linux.devices: /dev/nvidia0"),
    ("KVM", node("/dev/kvm", "c", 10, 232), "linux.devices: /dev/kvm"),
    ("graphics", node("/dev/dri/renderD128", "c", 226, 128), "linux.devices: /dev/dri/renderD128"),
    ("a serial port", node("/dev/ttyS0", "c", 4, 64), "linux.devices: /dev/ttyS0"),
    ("a serial adapter", node("/dev/ttyUSB0", "c", 188, 0), "linux.devices: /dev/ttyUSB0"),
    ("memory", node("/dev/mem", "c", 1, 1), "linux.devices: /dev/mem"),
    ("unbuffered", node("/dev/sg0", "u", 21, 0), "linux.devices: /dev/sg0"),
    ("a tape", node("/dev/nst0", "c", 9, 128), "linux.devices: /dev/nst0"),
    ("no group", node("/dev/vfio/999999", "c", NOBODY, 2), "linux.devices: /dev/vfio/999999: group 999999"),
    ("no device file", node("/dev/vfio/devices/vfio99", "c", NOBODY, 3), "linux.devices: /dev/vfio/devices/vfio99"),
    ("no IOMMU", node("/dev/vfio/noiommu-0", "c", NOBODY, 4), "linux.devices: /dev/vfio/noiommu-0"),
    ("devices.path", listed(path="x"), "linux.devices[0].path"),
    ("devices.type", listed(type="x"), "linux.devices[0].type"),
    ("devices.major", listed(major="1"), "linux.devices[0].major"),
    ("devices.minor", listed(minor=2**64), "linux.devices[0].minor"),
    ("devices.fileMode", listed(fileMode=-1), "linux.devices[0].fileMode"),
    ("devices.uid", listed(uid=2**32), "linux.devices[0].uid"),
    ("devices.gid", listed(gid=-1), "linux.devices[0].gid"),
    ("a rule's type", rule(type="p"), "linux.resources.devices[0].type"),
    ("a rule's access", rule(access=""), "linux.resources.devices[0].access"),
    ("a rule's major", rule(type="c", major="x"), "linux.resources.devices[0].major"),
    ("a rule of no node", rule(type="c", major=188), "linux.resources.devices[0]: c 188:* has no effect"),
    ("a rule of no disk", rule(type="b", major=8, minor=16), "linux.resources.devices[0]: b 8:16 has no effect"),
    ("a directory of devices", bind("/dev"), "mounts[7].source: /dev is the guest's: it"),
    ("a node of a group", bind("/dev/vfio/12"), "mounts[7].source: /dev/vfio/12"),
    ("an overlay's option", overlay("lowerdir+=/a"), "mounts[7].options: 'lowerdir+=/a'"),
    ("an overlay without layers", overlay(), "mounts[7].options: lowerdir"),
    ("an overlay of /sys", overlay("lowerdir=/sys:/a"), "mounts[7].options: lowerdir: /sys"),
    ("a FIFO", special(os.mkfifo), "/it is a FIFO of the host: it connects only containers of the same sandbox"),
    ("a socket", special(make_socket), "/it is a UNIX socket of the host: connections to it are refused"),
    ("blockIO.weight", resources(blockIO={"weight": 10}), "linux.resources.blockIO.weight"),
    ("blockIO.leafWeight", resources(blockIO={"leafWeight": 10}), "linux.resources.blockIO.leafWeight"),
    ("blockIO.weightDevice", resources(blockIO={"weightDevice": [DISK]}), "linux.resources.blockIO.weightDevice"),
    *(
        (name, resources(blockIO={name: RATE}), f"linux.resources.blockIO.{name}")
        for name in (
            "throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice",
        )
    ),
    ("network.classID", resources(network={"classID": 1}), "linux.resources.network.classID"),
    (
        "network.priorities",
        resources(network={"priorities": [{"name": "eth0", "priority": 1}]}),
        "linux.resources.network.priorities",
    ),
    ("rdma", resources(rdma={"mlx5_0": {"hcaHandles": 3}}), "linux.resources.rdma"),
    (
        "hugepageLimits",
        resources(hugepageLimits=[{"pageSize": "2X", "limit": 1}]),
        "linux.resources.hugepageLimits: pageSize '2X'",
    ),
    ("memory.kernel", resources(memory={"kernel": 1}), "linux.resources.memory.kernel"),
    ("memory.kernelTCP", resources(memory={"kernelTCP": 1}), "linux.resources.memory.kernelTCP"),
    ("memory.disableOOMKiller", resources(memory={"disableOOMKiller": True}), "linux.resources.memory.disableOOM"),
    ("memory.swappiness", resources(memory={"swappiness": 60}), "linux.resources.memory.swappiness has no effect"),
    ("cpu.realtimeRuntime", resources(cpu={"realtimeRuntime": 1}), "linux.resources.cpu.realtimeRuntime"),
    ("cpu.realtimePeriod", resources(cpu={"realtimePeriod": 1}), "linux.resources.cpu.realtimePeriod"),
    ("unified", resources(unified={"io.max": "8:0 rbps=1"}), "linux.resources.unified: 'io.max'"),
    ("unified rdma", resources(unified={"rdma.max": "mlx5_0 max"}), "linux.resources.unified: 'rdma.max'"),
    ("intelRdt", linux(intelRdt={"closID": "x"}), "linux.intelRdt"),
    ("memoryPolicy", linux(memoryPolicy={"mode": "MPOL_BIND", "nodes": "0"}), "linux.memoryPolicy"),
    ("netDevices", linux(netDevices={"eth0": {}}), "linux.netDevices"),
    ("a name in netDevices", linux(netDevices={"eth0": {"name": "x"}}), "linux.netDevices"),
    ("scheduler", process(scheduler={"policy": "SCHED_FIFO"}), "process.scheduler"),
    ("ioPriority", process(ioPriority={"class": "IOPRIO_CLASS_RT"}), "process.ioPriority"),
    ("execCPUAffinity", process(execCPUAffinity={"initial": "0"}), "process.execCPUAffinity"),
    ("apparmorProfile", process(apparmorProfile="docker-default"), "process.apparmorProfile"),
    ("a device's address", process(env=["PCIDEVICE_X=0000:99:00.0"]), "process.env: PCIDEVICE_X"),
    ("hypervisor", lambda spec: spec.update({"vm": {"hypervisor": {"path": "/q"}}}), "vm.hypervisor"),
]  # fmt: skip
OPTIONS: list[tuple[str, dict[str, str], str]] = [
    ("an unknown one", {"hawse.device": "x"}, "annotations: hawse.device is unknown"),
    ("device-mode", {"hawse.device-mode": "kernel"}, "annotations: hawse.device-mode: 'kernel'"),
    ("devices, no address", {"hawse.devices": "eth0"}, "'eth0' is neither"),
    ("devices, no group", {"hawse.devices": "999999"}, "999999"),
    ("devices, no function", {"hawse.devices": "ffff:ff:1f.7"}, "ffff:ff:1f.7 is not a PCI function of this host"),
    ("forward-sockets", {"hawse.forward-sockets": "true"}, "annotations: hawse.forward-sockets: 'true'"),
    ("hugepages", {"hawse.hugepages": "2MB"}, "annotations: hawse.hugepages: '2MB'"),
    ("keep-addresses", {"hawse.keep-addresses": "yes"}, "annotations: hawse.keep-addresses: 'yes'"),
    ("managed", {"hawse.managed": "1"}, "annotations: hawse.managed: '1'"),
    ("vf-token", {"hawse.vf-token": "x"}, "annotations: hawse.vf-token: 'x'"),
    (
        "a token that nothing takes",
        {"hawse.vf-token": "00112233-4455-6677-8899-aabbccddeeff"},
        "annotations: hawse.vf-token has no effect",
    ),
]


@pytest.fixture
def host(tmp_path: Path) -> Planner:
    return Planner(str(tmp_path))


def said_of(host: Planner, plan: Callable[[], object]) -> str:
    """The messages to the user: the error, or the warnings."""
    try:
        plan()
    except HawseError as error:
        assert error.hint, f"no remedy: {error.message}"
        return error.message
    return "\n".join(host.said.warnings)


@pytest.mark.parametrize(("change", "words"), [row[1:] for row in SPECIFICATION], ids=[row[0] for row in SPECIFICATION])
def test_unfulfilled_request_of_a_specification_is_named(host: Planner, change: Change, words: str) -> None:
    host.write(change)
    assert words in said_of(host, host.sandbox)


@pytest.mark.parametrize(("annotations", "words"), [row[1:] for row in OPTIONS], ids=[row[0] for row in OPTIONS])
def test_unfulfilled_request_of_an_annotation_is_named(host: Planner, annotations: dict[str, str], words: str) -> None:
    host.write(annotated(annotations, *NODES))
    assert words in said_of(host, lambda: host.sandbox(host.config(more=EMULATED)))


@pytest.mark.parametrize(
    ("note", "asked", "level"), [("why", True, "warning"), ("why", False, "debug"), ("", True, "debug")]
)
def test_address_that_an_annotation_requests_and_is_not_kept_is_named(note: str, asked: bool, level: str) -> None:
    step = PlugStep(
        group=5, label="0000:3b:02.0", host="0000:3b:02.0", note=note, commands=[], device="d", bus="port0",
        guest_address="0000:02:00.0",
    )  # fmt: skip
    messages = describe(step, asked=asked)
    assert messages[0] == level
    assert messages[1].startswith("annotations: hawse.keep-addresses: " if level == "warning" else "0000:3b:02.0 is")


def test_every_annotation_is_in_the_table() -> None:
    asked = {name for _, annotations, _ in OPTIONS for name in annotations}
    assert asked >= {PREFIX + name for name in ANNOTATIONS}


def test_every_refused_field_of_the_resources_is_in_the_table() -> None:
    words = "\n".join(row[2] for row in SPECIFICATION)
    for field in FIELDS:
        if field.fate is Fate.REFUSED and field.path.startswith("linux.resources."):
            assert field.path in words or field.path.startswith("linux.resources.memory.disableOOM"), field.path


@pytest.mark.parametrize("field", [field for field in FIELDS if field.fate is Fate.MOOT], ids=lambda field: field.path)
def test_silently_ignored_field_changes_nothing(field: Any) -> None:
    """Only annotations that cannot make a difference in a guest are ignored silently."""
    assert field.path in {
        "linux.mountLabel", "linux.resources.memory.useHierarchy", "linux.resources.memory.checkBeforeUpdate",
    }  # fmt: skip
