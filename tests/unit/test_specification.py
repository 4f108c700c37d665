"""No field of the specification is ignored silently: each field, and each type of mount, with a value that hawse cannot
honour, causes an error or a warning that names it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hawse.agent.container.mount_errors import unknown_type
from hawse.errors import ConfigError
from hawse.oci.default_spec import example
from hawse.oci.fields import APPLIED, FIELDS, Fate
from hawse.oci.guest import mount_types
from hawse.oci.guest.bind_sources import DeviceNode
from hawse.oci.guest.mounts import HostFiles
from hawse.oci.guest.specification import plan_guest
from hawse.oci.load import load_bundle
from tests.conformance.cases import GROUPS
from tests.support import specification as known
from tests.support.specification import BOOL, LIST, MAP, NUMBER, NUMBERS, OBJECT, OBJECTS, TEXT, TEXTS, leaves, put

Change = Callable[[dict[str, Any]], object]
LEAVES = list(leaves())
FATES = {field.path: field for field in FIELDS}
#: For each kind, values of another type. Go's decoder refuses them as well.
WRONG: dict[str, list[Any]] = {
    TEXT: [5, ["x"], {}, True],
    TEXTS: ["x", [5], {}, [["x"]]],
    BOOL: ["yes", 1, []],
    NUMBER: ["1", True, [1], {}, 1.5],
    NUMBERS: [1, ["1"], {}, [[1]]],
    MAP: [[], "x", {"a": 5}, {"a": {}}],
    OBJECTS: [[], "x", 5, {"a": 5}, {"a": "x"}, {"a": []}],
    OBJECT: ["x", 5, True, ["x"]],
    LIST: ["x", 5, {}, ["x"], [5], [[]]],
}
#: For each kind, a value that is a request.
ASKS: dict[str, Any] = {
    TEXT: "x", TEXTS: ["x"], BOOL: True, NUMBER: 7, NUMBERS: [7], MAP: {"a": "b"}, OBJECTS: {"eth1": {}},
    OBJECT: {}, LIST: [{}],
}  # fmt: skip


class Host:
    """Bundles in a directory. A call loads one and plans its guest; it returns the messages to the user."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "rootfs").mkdir()

    def __call__(self, spec: dict[str, Any]) -> str:
        (self._directory / "config.json").write_text(json.dumps(spec))
        try:
            plan = plan_guest(load_bundle(str(self._directory)), container="c1")
        except ConfigError as error:
            assert error.hint, f"no remedy: {error.message}"
            return error.message
        return "\n".join(text for level, text in plan.notes if level == "warning")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("bundle"))


def fate_of(path: str) -> Any:
    """The row of docs/conformance.md that a field belongs to."""
    parts = path.split(".")
    names = [".".join(parts[:count]).removesuffix("[]") for count in range(len(parts), 0, -1)]
    return next((FATES[name] for name in names if name in FATES), None)


def test_example_causes_no_message(said: Host) -> None:
    assert said(example()) == ""


@pytest.mark.parametrize(("path", "kind"), LEAVES, ids=[path for path, _ in LEAVES])
def test_field_of_another_type_is_refused_by_its_name(said: Host, path: str, kind: str) -> None:
    for value in WRONG[kind]:
        if kind == OBJECTS and value == {"a": []} and path.endswith(("Offsets", "netDevices", "rdma")):
            continue
        spec = example()
        where = put(spec, path, value)
        message = said(spec)
        row = fate_of(path)
        # For fields that are refused completely, only the type of the object itself is checked.
        names = [where, row.path if row is not None and row.fate is Fate.REFUSED else where]
        assert any(name in message for name in names), (value, message)


@pytest.mark.parametrize(
    ("path", "kind"),
    [leaf for leaf in LEAVES if (row := fate_of(leaf[0])) is not None and row.fate is Fate.REFUSED],
)
def test_field_that_is_refused_is_named(said: Host, path: str, kind: str) -> None:
    spec = example()
    put(spec, path, ASKS[kind])
    row = fate_of(path)
    assert f"{row.path}: {row.why}" in said(spec)


#: Lists in which null is the empty text, or zero, and accepted as that is: runc (1.1) accepts it, too, except in
#: process.env and in the names of system calls.
_NULL_IS_ACCEPTED = re.compile(
    r"mounts\[\]\.options|process\.(args|env|user\.additionalGids)|hooks\.\w+\[\]\.(args|env)|"
    r"linux\.(maskedPaths|readonlyPaths|seccomp\.syscalls\[\]\.names)"
)


@pytest.mark.parametrize(
    ("path", "kind"), [leaf for leaf in LEAVES if leaf[1] in (LIST, TEXTS, NUMBERS)], ids=lambda part: part
)
def test_null_in_a_list_is_the_zero_value_of_its_type(said: Host, path: str, kind: str) -> None:
    """As in Go's decoder. A required value that is then missing is refused with its name and index."""
    if path == "process.args":
        spec = example()
        spec["process"]["args"].append(None)
        assert said(spec) == ""
        return
    spec, spelled = example(), example()
    where = put(spec, path, [None])
    put(spelled, path, [{TEXTS: "", NUMBERS: 0, LIST: {}}[kind]])
    message = said(spec)
    assert message == said(spelled)
    if _NULL_IS_ACCEPTED.fullmatch(path):
        assert message == ""
        return
    row = fate_of(path)
    refused = row is not None and row.fate is Fate.REFUSED and f"{row.path}: {row.why}"
    capability = path.startswith("process.capabilities.") and f"{where}: '' is unknown"
    assert f"{where}[0]" in message or (refused and refused in message) or (capability and capability in message)


def field(path: str, value: Any) -> Change:
    return lambda spec: put(spec, path, value)


def without_uts(**names: str) -> Change:
    def change(spec: dict[str, Any]) -> None:
        spec["linux"]["namespaces"] = [kind for kind in spec["linux"]["namespaces"] if kind["type"] != "uts"]
        spec["hostname"] = ""
        spec.update(names)

    return change


def mount(**parts: Any) -> Change:
    return lambda spec: spec["mounts"].append({"destination": "/x", "type": "tmpfs", "source": "tmpfs"} | parts)


def namespace(kind: str, path: str) -> Change:
    def change(spec: dict[str, Any]) -> None:
        entries = [entry for entry in spec["linux"]["namespaces"] if entry["type"] != kind]
        spec["linux"]["namespaces"] = [*entries, {"type": kind, "path": path}]

    return change


#: For the applied fields: a value of the right type that cannot be applied, and the message.
VALUES: list[tuple[str, Change, str]] = [
    ("ociVersion", field("ociVersion", "2.0.0"), "ociVersion: unknown version"),
    ("root.path", field("root.path", "/no/such"), "root.path: /no/such is not a directory"),
    ("mounts[].destination", mount(destination="x"), "mounts[7].destination: 'x' is not absolute"),
    ("mounts[].type", mount(type="virtiofs"), "mounts[7].type: virtiofs"),
    ("mounts[].source", mount(type="bind", source=""), "mounts[7].source: missing"),
    ("mounts[].options", mount(options=["shared"]), "mounts[7].options: shared"),
    (
        "mounts[].uidMappings",
        mount(uidMappings=[{"containerID": 0, "hostID": 1, "size": 1}]),
        "mounts[7].uidMappings",
    ),
    (
        "mounts[].gidMappings",
        mount(gidMappings=[{"containerID": 0, "hostID": 1, "size": 1}]),
        "mounts[7].",
    ),
    ("process.cwd", field("process.cwd", "tmp"), "process.cwd: 'tmp' is not absolute"),
    ("process.args", field("process.args", []), "process.args: empty"),
    ("process.rlimits[].type", field("process.rlimits[].type", "RLIMIT_X"), "process.rlimits[1].type"),
    ("process.rlimits[].soft", field("process.rlimits[].soft", 2), "process.rlimits[1]"),
    ("process.rlimits[].hard", field("process.rlimits[].hard", 0), "process.rlimits[1]"),
    *(
        (f"process.capabilities.{kind}", field(f"process.capabilities.{kind}", ["CAP_X"]), f"capabilities.{kind}: ")
        for kind in ("effective", "bounding", "inheritable", "permitted", "ambient")
    ),
    ("process.oomScoreAdj", field("process.oomScoreAdj", 2000), "process.oomScoreAdj"),
    ("process.user.uid", field("process.user.uid", -1), "process.user.uid"),
    ("process.user.gid", field("process.user.gid", 2**32), "process.user.gid"),
    ("process.user.umask", field("process.user.umask", -1), "process.user.umask"),
    ("process.user.additionalGids", field("process.user.additionalGids", [-1]), "process.user.additionalGids[0]"),
    ("process.consoleSize.height", field("process.consoleSize.height", 2**16), "process.consoleSize.height"),
    ("process.consoleSize.width", field("process.consoleSize.width", -1), "process.consoleSize.width"),
    ("hostname", without_uts(hostname="x"), "hostname: the container has no uts namespace"),
    ("domainname", without_uts(domainname="x"), "domainname: the container has no uts namespace"),
    *(
        (f"hooks.{kind}[].path", field(f"hooks.{kind}[].path", "x"), f"hooks.{kind}[0].path")
        for kind in known.FIELDS["hooks"]
    ),
    *(
        (f"hooks.{kind}[].timeout", field(f"hooks.{kind}[].timeout", 0), f"hooks.{kind}[0].timeout")
        for kind in known.FIELDS["hooks"]
    ),
    ("linux.namespaces[].type", field("linux.namespaces[].type", "galaxy"), "linux.namespaces[6].type"),
    ("linux.namespaces[].path", namespace("pid", "/proc/1/ns/pid"), "linux.namespaces[5]"),
    ("linux.uidMappings", field("linux.uidMappings", [known.REQUIRED["linux.uidMappings"]]), "linux.uidMappings"),
    ("linux.gidMappings", field("linux.gidMappings", [known.REQUIRED["linux.gidMappings"]]), "linux.gidMappings"),
    *(
        (f"{kind}[].{part}", field(f"{kind}[].{part}", -1), f"{kind.replace('[]', '[7]')}[0].{part}")
        for kind in ("linux.uidMappings", "linux.gidMappings", "mounts[].uidMappings", "mounts[].gidMappings")
        for part in ("containerID", "hostID", "size")
    ),
    ("linux.devices[].path", field("linux.devices[].path", ""), "linux.devices[0].path"),
    ("linux.devices[].type", field("linux.devices[].type", "q"), "linux.devices[0].type"),
    ("linux.devices[].major", field("linux.devices[].major", 2**64), "linux.devices[0].major"),
    ("linux.devices[].minor", field("linux.devices[].minor", 2**64), "linux.devices[0].minor"),
    ("linux.devices[].fileMode", field("linux.devices[].fileMode", -1), "linux.devices[0].fileMode"),
    ("linux.devices[].uid", field("linux.devices[].uid", -1), "linux.devices[0].uid"),
    ("linux.devices[].gid", field("linux.devices[].gid", -1), "linux.devices[0].gid"),
    ("linux.resources.devices[].type", field("linux.resources.devices[].type", "p"), "linux.resources.devices[1].type"),
    ("linux.resources.devices[].major", field("linux.resources.devices[].major", -2), "resources.devices[1].major"),
    ("linux.resources.devices[].minor", field("linux.resources.devices[].minor", -2), "resources.devices[1].minor"),
    ("linux.resources.devices[].access", field("linux.resources.devices[].access", ""), "resources.devices[1].access"),
    *(
        (f"linux.resources.memory.{name}", field(f"linux.resources.memory.{name}", -5), f"resources.memory.{name}")
        for name in ("limit", "reservation", "swap")
    ),
    *(
        (f"linux.resources.cpu.{name}", field(f"linux.resources.cpu.{name}", -1), f"resources.cpu.{name}")
        for name in ("shares", "burst", "period", "idle")
    ),
    ("linux.resources.cpu.quota", field("linux.resources.cpu.quota", 2**63), "resources.cpu.quota"),
    ("linux.resources.pids.limit", field("linux.resources.pids.limit", 2**63), "resources.pids.limit"),
    (
        "linux.resources.hugepageLimits[].pageSize",
        lambda spec: spec["linux"]["resources"].update({"hugepageLimits": [{"pageSize": "2X", "limit": 1}]}),
        "linux.resources.hugepageLimits: pageSize '2X'",
    ),
    (
        "linux.resources.hugepageLimits[].limit",
        field("linux.resources.hugepageLimits[].limit", -1),
        "linux.resources.hugepageLimits[0].limit",
    ),
    ("linux.resources.unified", field("linux.resources.unified", {"io.max": "x"}), "linux.resources.unified: 'io.max'"),
    ("linux.seccomp", field("linux.seccomp", {}), "linux.seccomp: the container has no filter"),
    ("linux.seccomp.defaultAction", field("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY"), "seccomp.defaultAction"),
    ("linux.seccomp.defaultErrnoRet", field("linux.seccomp.defaultErrnoRet", -1), "linux.seccomp.defaultErrnoRet"),
    ("linux.seccomp.architectures", field("linux.seccomp.architectures", ["VAX"]), "linux.seccomp.architectures[0]"),
    ("linux.seccomp.flags", field("linux.seccomp.flags", ["X"]), "linux.seccomp.flags[0]"),
    ("linux.seccomp.syscalls[].action", field("linux.seccomp.syscalls[].action", ""), "seccomp.syscalls[0].action"),
    (
        "linux.seccomp.syscalls[].errnoRet",
        field("linux.seccomp.syscalls[].errnoRet", -1),
        "linux.seccomp.syscalls[0].errnoRet",
    ),
    *(
        (
            f"linux.seccomp.syscalls[].args[].{name}",
            field(f"linux.seccomp.syscalls[].args[].{name}", value),
            f"linux.seccomp.syscalls[0].args[0].{name}",
        )
        for name, value in (("index", 6), ("value", -1), ("valueTwo", -1), ("op", "SCMP_CMP_X"))
    ),
    ("linux.rootfsPropagation", field("linux.rootfsPropagation", "viral"), "linux.rootfsPropagation"),
    ("linux.personality", field("linux.personality", {}), "linux.personality.domain: '' is unknown"),
    ("linux.personality.domain", field("linux.personality.domain", "BSD"), "linux.personality.domain: 'BSD'"),
    ("process.apparmorProfile", field("process.apparmorProfile", "x"), "process.apparmorProfile: 'x' has no effect"),
    ("process.commandLine", field("process.commandLine", "x"), "process.commandLine: 'x' has no effect"),
    ("process.user.username", field("process.user.username", "x"), "process.user.username: 'x' has no effect"),
    ("linux.resources.memory.swappiness", field("linux.resources.memory.swappiness", 5), "swappiness has no effect"),
]  # fmt: skip
#: Applied fields without a value that cannot be applied, or that other tests check.
ELSEWHERE: dict[str, str] = {
    "root.readonly": "both values are applied", "process.terminal": "both values are applied",
    "process.noNewPrivileges": "both values are applied", "linux.resources.devices[].allow": "both are applied",
    "process.env": "tests/unit/test_nothing_silent.py", "process.selinuxLabel": "tests/unit/test_selinux.py",
    "annotations": "tests/unit/test_nothing_silent.py", "linux.cgroupsPath": "tests/unit/test_cgroups.py",
    "linux.resources.cpu.cpus": "tests/unit/test_cpusets.py", "linux.resources.cpu.mems": "tests/unit/test_cpusets.py",
    "linux.sysctl": "case:sysctl-of-the-kernel",
    "linux.maskedPaths": "a path that does not exist needs no mask",
    "linux.readonlyPaths": "a path that does not exist is not made",
    "linux.seccomp.syscalls[].names": "the kernel of the container may not have a call that another has",
    "linux.mountLabel": "docs/conformance.md", "linux.resources.memory.useHierarchy": "docs/conformance.md",
    "linux.resources.memory.checkBeforeUpdate": "docs/conformance.md",
    **{f"hooks.{kind}[].{part}": "a program takes any" for kind in known.FIELDS["hooks"] for part in ("args", "env")},
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), [row[1:] for row in VALUES], ids=[row[0] for row in VALUES])
def test_value_that_cannot_be_honoured_is_named(said: Host, change: Change, words: str) -> None:
    spec = example()
    change(spec)
    assert words in said(spec)


def test_every_field_of_the_specification_is_walked() -> None:
    """Each leaf is refused completely, or in a table of values, or checked elsewhere; objects and lists consist of
    leaves."""
    walked = {row[0] for row in VALUES} | ELSEWHERE.keys()
    missing = [
        path
        for path, kind in LEAVES
        if kind not in (OBJECT, LIST) and not ((row := fate_of(path)) is not None and row.fate is Fate.REFUSED)
        and path not in walked
    ]  # fmt: skip
    assert missing == []
    assert {path.removesuffix("[]") for path in walked} <= {path for path, _ in LEAVES}
    root = Path(__file__).parents[2]
    for where in ELSEWHERE.values():
        assert not where.endswith((".py", ".md")) or (root / where).is_file(), where
    cases = {case.id for group in GROUPS for case in group.cases}
    assert {where.removeprefix("case:") for where in ELSEWHERE.values() if where.startswith("case:")} <= cases


def test_every_row_of_the_page_is_a_field_of_the_specification() -> None:
    paths = {path for path, _ in LEAVES}
    assert {row.path for row in FIELDS} <= paths
    without_a_row = [path for path, kind in LEAVES if kind not in (OBJECT, LIST) and fate_of(path) is None]
    assert without_a_row == []
    assert {row.fate for row in FIELDS} == {*APPLIED, Fate.MOOT, Fate.WARNED, Fate.REFUSED}


@pytest.mark.parametrize(
    "change",
    [
        field("linux.timeOffsets", {"monotonic": {"secs": -5}}), field("linux.timeOffsets", {"monotonic": {}}),
        field("linux.timeOffsets", {"boottime": {"secs": 0, "nanosecs": 0}}), field("linux.netDevices", {"eth1": {}}),
        field("linux.netDevices", {"eth1": None}), field("linux.resources.rdma", {"mlx5_0": {}}),
        field("linux.intelRdt", {}), field("linux.memoryPolicy", {}), field("process.scheduler", {"policy": ""}),
        field("process.ioPriority", {"priority": 0}), field("process.execCPUAffinity", {"initial": ""}),
        field("vm", {"kernel": {"path": ""}}), field("vm", {"hypervisor": {}}), field("windows", {"layerFolders": []}),
        field("linux.resources.cpu.realtimeRuntime", -1), field("linux.resources.memory.kernel", -2),
        field("linux.personality", {"domain": ""}), field("linux.resources.blockIO.weightDevice", [{}]),
        field("linux.resources.network.priorities", [{"name": "", "priority": 0}]),
    ],
)  # fmt: skip
def test_form_that_looks_empty_is_named(said: Host, change: Change) -> None:
    before, spec = example(), example()
    change(spec)
    assert said(spec) != ""
    assert said(before) == ""


@pytest.mark.parametrize("path", [path for path, kind in LEAVES if "[]" not in path])
def test_null_equals_an_omitted_field(said: Host, path: str) -> None:
    spec: dict[str, Any] = example()
    put(spec, path, None)
    left_out = copy.deepcopy(spec)
    part: Any = left_out
    *parents, last = path.split(".")
    for name in parents:
        part = part[name]
    del part[last]
    assert said(spec) == said(left_out)


GUESTS = "nodev\ttmpfs\nnodev\tproc\nnodev\tsysfs\n\text4\nnodev\tfuse\n"


@pytest.mark.parametrize("kind", [*known.MOUNT_TYPES, "none", "", "floppyfs", "fuse.sshfs"])
def test_mount_of_each_type_is_created_refused_or_a_warning(said: Host, kind: str, tmp_path: Path) -> None:
    """A type that the host does not know is left to the guest kernel, and its error names the type."""
    spec = example()
    mount(type=kind, source="none")(spec)
    message = said(spec)
    if kind in (*mount_types.HYPERVISOR, *mount_types.DISKS, *mount_types.KERNEL):
        assert f"mounts[7].type: {kind}" in message
        return
    if kind in ("", "overlay"):  # every mount has a type; the host mounts the other one, whose options are missing
        assert ("mounts[7].options: lowerdir: missing" if kind else "mounts[7].type: missing") in message
        return
    assert message == ""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/filesystems").write_text(GUESTS)
    listed = [{"destination": "/proc", "type": "proc"}, {"destination": "/b", "type": "none", "options": ["rbind"]}]
    messages = unknown_type(
        "crun create in the guest: mount `none` to `x`: No such device",
        {"mounts": [*listed, {"destination": "/x", "type": kind}]},
        root=str(tmp_path),
    )
    if kind in ("tmpfs", "proc", "sysfs", "fuse", "fuse.sshfs"):
        assert messages == ""
    else:
        assert messages == f"mounts: the guest kernel has no file system {kind!r}, for /x"


@pytest.mark.parametrize(
    "message",
    ["crun create in the guest: mount `none` to `x`: Permission denied", "crun create in the guest: No such device"],
)
def test_other_errors_of_a_mount_are_unchanged(message: str) -> None:
    assert unknown_type(message, {"mounts": [{"destination": "/x", "type": "floppyfs"}]}) == ""


@pytest.mark.parametrize("options", [["trans=tcp"], ["ro,trans=fd,rfdno=5"]])
def test_9p_of_a_server_is_left_to_the_guests_kernel(said: Host, options: list[str]) -> None:
    spec = example()
    mount(type="9p", source="192.0.2.1", options=options)(spec)
    assert said(spec) == ""


def test_disk_of_the_host_is_refused_whatever_the_type(tmp_path: Path) -> None:
    spec = example()
    mount(type="unheardfs", source="/dev/sdz")(spec)
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(spec))
    disk = DeviceNode("b", 8, 0, 0o600, 0, 0)
    with pytest.raises(
        ConfigError, match=r"mounts\[7\]\.type: unheardfs: the disk '/dev/sdz' of the host does not exist in the guest"
    ):
        files = HostFiles(node=lambda path: disk if "sdz" in path else None)
        plan_guest(load_bundle(str(tmp_path)), container="c1", files=files)
