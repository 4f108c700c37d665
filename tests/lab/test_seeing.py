"""What `hawse devices` and `hawse doctor` say of a host with real groups."""

from __future__ import annotations

import json

import pytest

from tests.lab.host import Lab
from tests.lab.steps import CONVENTIONAL, EDU, LARGE, LONE_NIC, PAIR, VIRTUAL, group_of
from tests.support.runtime import HAWSE

pytestmark = pytest.mark.lab


def test_every_group_is_listed_with_what_is_in_its_way(lab: Lab) -> None:
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
    assert physical["reason"] == "0000:04:00.0 has 2 virtual functions: pass those"
    virtual = groups[group_of(lab, VIRTUAL[0])]["functions"][0]
    assert virtual["physical_function"] == "0000:04:00.0"
    [large] = groups[group_of(lab, LARGE)]["functions"]
    assert max(bar["size"] for bar in large["bars"]) == 8 << 30
    text = lab.run([HAWSE, "devices"]).output
    assert f"group {group_of(lab, EDU)}  /dev/vfio/{group_of(lab, EDU)}  can be passed\n  {EDU}  " in text


def test_the_lab_is_ready(lab: Lab) -> None:
    result = lab.run([HAWSE, "doctor", "--json"])
    said = json.loads(result.output)
    assert (result.code, said["ready"]) == (0, True), said
    verdicts = {check["name"]: check["verdict"] for check in said["checks"]}
    assert verdicts["acceleration"] == "ok", "KVM"
    names = ("QEMU", "guest image", "IOMMU", "VFIO", "interrupt remapping", "groups")
    assert {verdicts[name] for name in names} == {"ok"}
