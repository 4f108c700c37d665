"""The output of `hawse devices` and `hawse doctor` on a host with real groups."""

from __future__ import annotations

import json

import pytest

from tests.lab.host import Lab
from tests.lab.steps import (
    CONVENTIONAL,
    EDU,
    LARGE,
    LONE_NIC,
    PAIR,
    SETTINGS,
    VIRTUAL,
    configure,
    group_of,
    make_bundle,
    refused,
)
from tests.support.runtime import HAWSE

pytestmark = pytest.mark.lab

_ACCEPTING = "/tmp/accepting.toml"


def listed(lab: Lab, address: str, *options: str) -> tuple[bool, str]:
    """Whether the group of a function can be passed according to `hawse devices`, and the reason if not."""
    result = lab.run([HAWSE, *options, "devices", "--json"])
    assert result.code == 0, result
    number = group_of(lab, address)
    [group] = [group for group in json.loads(result.output) if group["group"] == number]
    return group["can_be_passed"], group["reason"]


def write(lab: Lab, path: str, text: str) -> None:
    """Write a line to a sysfs file of the lab."""
    result = lab.run(["sh", "-c", f"echo {text} > {path}"])
    assert result.code == 0, result


def test_every_group_is_listed_with_the_reason_of_a_refusal(lab: Lab) -> None:
    result = lab.run([HAWSE, "devices", "--json"])
    assert result.code == 0, result
    groups = {group["group"]: group for group in json.loads(result.output)}
    pair = groups[group_of(lab, PAIR[0])]
    assert [function["address"] for function in pair["functions"]] == PAIR
    behind_bridge = groups[group_of(lab, CONVENTIONAL[0])]
    assert [function["address"] for function in behind_bridge["functions"]] == CONVENTIONAL, "bridges are left out"
    for address in (EDU, LONE_NIC, *VIRTUAL, LARGE, CONVENTIONAL[0]):
        group = groups[group_of(lab, address)]
        assert (group["can_be_passed"], group["node"]) == (True, f"/dev/vfio/{group['group']}"), group
    physical = groups[group_of(lab, "0000:04:00.0")]
    assert (
        physical["reason"]
        == "0000:04:00.0 has 2 virtual functions: VFIO does not accept a function with SR-IOV enabled"
    )
    virtual = groups[group_of(lab, VIRTUAL[0])]["functions"][0]
    assert virtual["physical_function"] == "0000:04:00.0"
    [large] = groups[group_of(lab, LARGE)]["functions"]
    assert max(bar["size"] for bar in large["bars"]) == 8 << 30
    text = lab.run([HAWSE, "devices"]).output
    assert f"group {group_of(lab, EDU)}  /dev/vfio/{group_of(lab, EDU)}  can be passed\n  {EDU}  " in text


def test_doctor_reports_that_the_lab_is_ready(lab: Lab) -> None:
    result = lab.run([HAWSE, "doctor", "--json"])
    said = json.loads(result.output)
    assert (result.code, said["ready"]) == (0, True), said
    verdicts = {check["name"]: check["verdict"] for check in said["checks"]}
    assert verdicts["acceleration"] == "ok", "KVM"
    names = ("QEMU", "guest image", "IOMMU", "VFIO", "interrupt remapping", "groups")
    assert {verdicts[name] for name in names} == {"ok"}


def test_group_that_nothing_can_reset_is_refused(lab: Lab) -> None:
    """A function whose reset methods were disabled cannot be reset."""
    bundle = make_bundle(lab, "unresettable", EDU)
    configure(lab, f"{SETTINGS}unresettable = true\n", _ACCEPTING)
    methods = f"/sys/bus/pci/devices/{EDU}/reset_method"
    assert listed(lab, EDU) == (True, "")
    write(lab, methods, "")
    try:
        sentence = refused(lab, bundle)
        reason = f"group {group_of(lab, EDU)} cannot be passed: nothing can reset {EDU}: "
        assert sentence.startswith(f"hawse: {reason}")
        assert "devices.unresettable = true" in sentence
        passed, why = listed(lab, EDU)
        assert (passed, why.startswith(reason)) == (False, True), why
        assert listed(lab, EDU, "--config", _ACCEPTING) == (True, "")
    finally:
        write(lab, methods, "default")
    assert listed(lab, EDU) == (True, "")


def test_allowed_unsafe_interrupts_have_no_effect_with_interrupt_remapping(lab: Lab) -> None:
    """The lab remaps interrupts."""
    parameter = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    write(lab, parameter, "Y")
    try:
        assert listed(lab, EDU) == (True, "")
        checks = json.loads(lab.run([HAWSE, "doctor", "--json"]).output)["checks"]
        [check] = [check for check in checks if check["name"] == "interrupt remapping"]
        assert (check["verdict"], "vfio_iommu_type1 has no effect" in check["found"]) == ("ok", True)
    finally:
        write(lab, parameter, "N")
