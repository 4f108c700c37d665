"""Device nodes that are not VFIO's: the access that rules allow, the decision for each kind, and guest numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.errors import DeviceError
from hawse.nodes.block import BlockDevice
from hawse.nodes.character import CharacterDevice
from hawse.nodes.decide import Decision, Host, Wish, decide, is_whole
from hawse.nodes.numbers import move, strangers, without_strangers
from hawse.oci.device_rules import allowed
from hawse.oci.guest.known_devices import KNOWN, is_known
from hawse.oci.types import Device, DeviceRule

NONE = DeviceRule(allow=False, access="rwm")
ALL = DeviceRule(allow=True, access="rwm")


def rule(kind: str, major: int | None, minor: int | None, access: str, *, allow: bool = True) -> DeviceRule:
    return DeviceRule(allow=allow, type=kind, major=major, minor=minor, access=access)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], "m"),
        ([NONE], "m"),
        ([ALL], "rwm"),
        ([ALL, NONE], "m"),
        ([NONE, rule("b", 8, 16, "r")], "rm"),
        ([NONE, rule("b", 8, 16, "mwr")], "rwm"),
        ([NONE, rule("b", 8, 17, "rwm")], "m"),
        ([NONE, rule("c", 8, 16, "rwm")], "m"),
        ([NONE, rule("b", 8, None, "rw")], "rwm"),
        ([NONE, rule("b", 8, -1, "rw")], "rwm"),
        ([NONE, rule("b", None, None, "m")], "m"),
        ([NONE, rule("b", None, 16, "w")], "wm"),
        ([NONE, rule("", 8, 16, "r")], "rwm"),
        ([ALL, rule("b", 8, 16, "w", allow=False)], "rm"),
        ([ALL, rule("b", 8, 16, "w", allow=False), rule("b", 8, None, "w")], "rm"),
        ([rule("b", 8, 16, "rw"), rule("b", 8, 16, "r", allow=False)], "wm"),
        ([rule("b", 8, 16, "qr")], "rm"),
    ],
)
def test_rules_allow_the_same_as_under_runc(rules: list[DeviceRule], expected: str) -> None:
    assert allowed(rules, "b", 8, 16) == expected


def test_pseudo_terminals_are_allowed_by_every_runtime() -> None:
    assert allowed([NONE], "c", 136, 5) == "rwm"
    assert allowed([NONE], "u", 188, 0) == "m"


def block(major: int, minor: int) -> BlockDevice:
    """8:16 and 8:17 are writable, 8:32 is read-only, and 8:48 cannot be passed."""
    if (major, minor) == (8, 48):
        raise DeviceError("sdd (8:48) is empty", hint="insert a medium")
    return BlockDevice(major, minor, f"disk{minor}", minor == 32, 512, 4096)


CHARACTERS = {
    (10, 126): CharacterDevice("userfaultfd", "misc", misc=True),
    (188, 0): CharacterDevice("ttyUSB0", "ftdi_sio"),
    (231, 192): CharacterDevice("uverbs0", "mlx5_core", "0000:3b:00.0"),
}
HOST = Host(block, lambda major, minor: CHARACTERS.get((major, minor), CharacterDevice(driver="unknown")))
#: Devices that a host has and a guest lacks, or for which it has another device: path, major, minor.
OTHERS = [
    ("/dev/infiniband/uverbs0", 231, 192),
    ("/dev/uio0", 242, 0),
    ("/dev/nvidia0", 195, 0),
    ("/dev/nvidiactl", 195, 255),
    ("/dev/kvm", 10, 232),
    ("/dev/dri/card0", 226, 0),
    ("/dev/dri/renderD128", 226, 128),
    ("/dev/ttyUSB0", 188, 0),
    ("/dev/ttyS0", 4, 64),
    ("/dev/tty1", 4, 1),
    ("/dev/mem", 1, 1),
    ("/dev/port", 1, 4),
    ("/dev/rtc0", 254, 0),
    ("/dev/watchdog", 10, 130),
    ("/dev/mei0", 247, 0),
    ("/dev/snd/pcmC0D0p", 116, 3),
    ("/dev/video0", 81, 0),
    ("/dev/input/event0", 13, 64),
    ("/dev/hidraw0", 245, 0),
    ("/dev/tpm0", 10, 224),
    ("/dev/sev", 10, 124),
    ("/dev/sgx_enclave", 10, 125),
    ("/dev/ipmi0", 238, 0),
    ("/dev/nvme0", 241, 0),
    ("/dev/sg0", 21, 0),
    ("/dev/nst0", 9, 128),
    ("/dev/ptp0", 250, 0),
    ("/dev/cpu/0/msr", 202, 0),
    ("/dev/vhost-vdpa-0", 511, 0),
    ("/dev/vduse/control", 510, 0),
    ("/dev/cpu_dma_latency", 10, 259),
    ("/dev/pts/3", 136, 3),
    ("/dev/usb/hiddev0", 180, 0),
    ("/dev/bus/usb/001/001", 189, 0),
    ("/dev/zero-numbers", 0, 0),
]


def wish(path: str, kind: str, major: int, minor: int, *, usable: bool = True) -> Wish:
    return Wish(f"linux.devices: {path}", path, kind, major, minor, usable)


@pytest.mark.parametrize(("path", "major", "minor"), OTHERS)
@pytest.mark.parametrize("kind", ["c", "u"])
def test_character_device_of_the_host_is_refused_by_name(path: str, major: int, minor: int, kind: str) -> None:
    rules = [NONE, rule("c", major, minor, "rwm")]
    with pytest.raises(DeviceError) as caught:
        decide([wish(path, kind, major, minor)], rules, HOST)
    assert caught.value.message.startswith(f"linux.devices: {path} ({major}:{minor}")
    assert caught.value.hint


@pytest.mark.parametrize(("path", "major", "minor"), OTHERS)
def test_character_device_is_omitted_if_all_devices_are_allowed(path: str, major: int, minor: int) -> None:
    decision = decide([wish(path, "c", major, minor)], [ALL], HOST)
    assert list(decision.left_out) == [path]


@pytest.mark.parametrize(("path", "major", "minor"), [other for other in OTHERS if other[1] != 136])
@pytest.mark.parametrize("rules", [[], [NONE], [NONE, rule("c", None, None, "m")]])
def test_node_that_nothing_may_open_is_kept(path: str, major: int, minor: int, rules: list[DeviceRule]) -> None:
    asked = wish(path, "c", major, minor)
    assert decide([asked], rules, HOST) == Decision(untouched=(asked,))
    bound = wish(path, "c", major, minor, usable=False)
    assert decide([bound], [ALL], HOST) == Decision(untouched=(bound,))


def test_refusal_names_the_driver_and_a_remedy() -> None:
    def refusal(path: str, major: int, minor: int) -> str:
        with pytest.raises(DeviceError) as caught:
            decide([wish(path, "c", major, minor)], [rule("c", major, minor, "rw")], HOST)
        return caught.value.sentence()

    assert refusal("/dev/ttyUSB0", 188, 0) == (
        "linux.devices: /dev/ttyUSB0 (188:0, ttyUSB0, driver ftdi_sio): character devices of the host cannot be passed "
        "to a VM, except VFIO's [remove it; to pass a PCI device, bind it to vfio-pci and name the node /dev/vfio/NN "
        "of its group]"
    )
    assert "[pass its PCI device instead: `hawse bind 0000:3b:00.0`" in refusal("/dev/infiniband/uverbs0", 231, 192)
    assert "[remove it: the guest has no hardware virtualization]" in refusal("/dev/kvm", 10, 232)


@pytest.mark.parametrize("numbers", sorted(KNOWN))
def test_device_that_every_kernel_has_is_the_guests(numbers: tuple[int, int]) -> None:
    for rules in ([], [ALL], [rule("c", *numbers, "rw")]):
        assert decide([wish("/dev/x", "c", *numbers)], rules, HOST, whole=True) == Decision()
    assert is_known(*numbers)
    assert is_known(numbers[0], None)


def test_misc_device_with_a_dynamic_number_is_found_by_its_name() -> None:
    decision = decide([wish("/dev/userfaultfd", "c", 10, 126)], [rule("c", 10, 126, "rw")], HOST)
    assert decision == Decision(named={(10, 126): "userfaultfd"})


def test_pipes_are_ignored() -> None:
    assert decide([wish("/dev/pipe", "p", 188, 0)], [ALL], HOST, whole=True) == Decision()


@pytest.mark.parametrize(
    ("minor", "access", "writable"), [(16, "r", False), (16, "w", True), (16, "rwm", True), (32, "rwm", False)]
)
def test_block_device_is_writable_if_rules_and_host_allow_it(minor: int, access: str, writable: bool) -> None:
    [disk] = decide([wish("/dev/xvda", "b", 8, minor)], [NONE, rule("b", 8, minor, access)], HOST).disks
    assert (disk.device.minor, disk.writable) == (minor, writable)


def test_block_device_with_two_nodes_is_passed_once() -> None:
    wishes = [wish(path, "b", 8, 16) for path in ("/dev/a", "/dev/b")]
    assert len(decide(wishes, [rule("b", 8, 16, "rw")], HOST).disks) == 1


def test_block_device_that_cannot_be_passed_is_named() -> None:
    for rules in ([ALL], [rule("b", 8, 48, "r")]):
        with pytest.raises(DeviceError, match=r"^linux\.devices: /dev/xvda: sdd \(8:48\) is empty$"):
            decide([wish("/dev/xvda", "b", 8, 48)], rules, HOST)


def test_container_with_the_hosts_whole_dev_gets_no_disks() -> None:
    decision = decide([wish("/dev/sdb", "b", 8, 16)], [ALL], HOST, whole=True)
    assert decision.disks == ()
    assert list(decision.left_out) == ["/dev/sdb"]
    assert len(decide([wish("/dev/sdb", "b", 8, 16)], [ALL], HOST).disks) == 1, "a requested disk is passed"


def test_whole_dev_is_recognized_by_the_default_nodes() -> None:
    default = [Device(path="/dev/x", type="c", major=major, minor=minor) for major, minor in KNOWN]
    disk = Device(path="/dev/sdb", type="b", major=8, minor=16)
    assert is_whole([*default, disk], [ALL])
    assert not is_whole([*default, disk], [NONE])
    assert not is_whole([disk], [ALL])
    assert not is_whole([disk, default[0]], [ALL])


def raw(kind: str, major: int | None, minor: int | None, access: str = "rw", *, allow: bool = True) -> dict[str, Any]:
    return {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}


NODES = [("b", 8, 16), ("b", 8, 17), ("c", 511, 5), ("c", 10, 126)]


@pytest.mark.parametrize(
    ("entry", "kept", "warned"),
    [
        ({"allow": False, "access": "rwm"}, True, False),
        (raw("a", -1, -1), True, False),
        (raw("c", None, None, "m"), True, False),
        (raw("b", None, None), True, False),
        (raw("c", 1, 3), True, False),
        (raw("c", 5, None), True, False),
        (raw("c", 136, -1), True, False),
        (raw("c", 10, -1), True, False),
        (raw("c", 10, 200), True, False),
        (raw("c", 511, 5), True, False),
        (raw("c", 511, -1), True, False),
        (raw("b", 8, 16), True, False),
        (raw("b", 8, -1), True, False),
        (raw("b", 8, 32), False, True),
        (raw("b", 8, 32, "m"), False, False),
        (raw("b", 8, 32, allow=False), False, False),
        (raw("c", 188, -1), False, True),
        (raw("c", 188, -1, allow=False), True, False),
        (raw("c", 226, 0), False, True),
        (raw("c", 10, 232), False, True),
        (raw("c", 8, 16), False, True),
    ],
)
def test_rule_for_a_host_number_without_a_node_is_removed(entry: dict[str, Any], kept: bool, warned: bool) -> None:
    rules = [{"allow": False, "access": "rwm"}, entry]
    assert without_strangers(rules, NODES)[1:] == [entry] * kept
    warnings = strangers(rules, NODES)
    assert len(warnings) == warned
    if warned:
        assert warnings[0].startswith("linux.resources.devices[1]: ")
        assert str(entry["major"]) in warnings[0]


def spec_with(devices: list[dict[str, Any]], rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"x": 1, "linux": {"y": 2, "devices": devices, "resources": {"z": 3, "devices": rules}}}


def test_nodes_and_rules_get_the_numbers_of_the_guest() -> None:
    moved = {("b", 8, 16): (254, 0), ("b", 8, 17): (254, 16), ("c", 10, 126): (10, 125)}
    sdb = {"path": "/dev/sdb", "type": "b", "major": 8, "minor": 16, "fileMode": 0o600, "uid": 5}
    null = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
    fault = {"path": "/dev/userfaultfd", "type": "u", "major": 10, "minor": 126}
    rules = [
        raw("a", -1, -1, allow=False),
        raw("b", 8, -1, "r"),
        raw("b", 8, 16, "w"),
        raw("c", 10, 126),
        raw("c", 10, -1),
    ]
    before = spec_with([sdb, null, fault], rules)
    spec = move(before, moved)
    assert spec == spec_with(
        [sdb | {"major": 254, "minor": 0}, null, fault | {"minor": 125}],
        [
            rules[0], raw("b", 254, 0, "r"), raw("b", 254, 16, "r"), raw("b", 254, 0, "w"), raw("c", 10, 125), rules[4],
            raw("c", 10, 125),
        ],
    )  # fmt: skip
    assert before == spec_with([sdb, null, fault], rules), "the plan is not changed"


def test_swapped_numbers_are_translated_only_once() -> None:
    moved = {("b", 254, 0): (254, 16), ("b", 254, 16): (254, 0)}
    nodes = [{"path": f"/dev/{minor}", "type": "b", "major": 254, "minor": minor} for minor in (0, 16)]
    spec = move(spec_with(nodes, [raw("b", 254, 0), raw("b", 254, 16, "r")]), moved)
    assert [node["minor"] for node in spec["linux"]["devices"]] == [16, 0]
    assert spec["linux"]["resources"]["devices"] == [raw("b", 254, 16), raw("b", 254, 0, "r")]


def test_node_that_nothing_may_open_never_becomes_another_disk() -> None:
    """In the guest, its host number is the number of a disk that is allowed."""
    nodes: list[dict[str, Any]] = [
        {"path": "/dev/sdb", "type": "b", "major": 8, "minor": 16},
        {"path": "/dev/vda", "type": "b", "major": 254, "minor": 0},
        {"path": "/dev/c", "type": "c", "major": 254, "minor": 0},
        {"path": "/dev/pipe", "type": "p"},
    ]
    spec = move(spec_with(nodes, []), {("b", 8, 16): (254, 0)})
    numbers = [(node.get("major"), node.get("minor")) for node in spec["linux"]["devices"]]
    assert numbers == [(254, 0), (0, 0), (254, 0), (None, None)]


@pytest.mark.parametrize("spec", [{}, {"linux": {}}, {"linux": {"resources": {}}}, {"linux": None}])
def test_specification_without_devices_is_unchanged(spec: dict[str, Any]) -> None:
    assert move(spec, {("b", 8, 16): (254, 0)}).get("linux") in (spec.get("linux"), {})


numbers = st.integers(-1, 3)


@given(
    st.lists(
        st.builds(rule, st.sampled_from(["a", "", "b", "c"]), numbers, numbers, st.sampled_from(["r", "w", "rwm"]))
    ),
    st.sampled_from(["b", "c"]),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_more_rules_that_allow_never_allow_less(rules: list[DeviceRule], kind: str, major: int, minor: int) -> None:
    for count in range(len(rules)):
        assert set(allowed(rules[:count], kind, major, minor)) <= set(allowed(rules[: count + 1], kind, major, minor))
