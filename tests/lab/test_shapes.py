"""Groups of every kind in one sandbox: single functions, a pair, two behind a conventional bridge, virtual functions,
NVMe, and a BAR of 8 GiB; 16 groups."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lab.host import DEVICES, Lab
from tests.lab.steps import (
    CONVENTIONAL,
    DIFFERENT,
    DIFFERENT_BEHIND_A_BRIDGE,
    LARGE,
    LONE_NIC,
    MACHINE,
    NVME,
    PAIR,
    SECONDS,
    VIRTUAL,
    configure,
    prove_unchanged,
    snapshot,
)
from tests.support.runtime import HAWSE

pytestmark = pytest.mark.lab

EDUS = [f"0000:{bus:02x}:00.0" for bus, functions in enumerate(DEVICES, 1) if functions[0]["driver"] == "edu"]
_CONFIG = "/tmp/sixteen.toml"
#: All functions of the sixteen groups.
FUNCTIONS = [*PAIR, LONE_NIC, *VIRTUAL, NVME, LARGE, *EDUS[:9], *CONVENTIONAL]

#: Find each device as libraries do: by its address and, through sysfs, by its group, whose number differs in the guest.
#: Open each device and list the endpoints of its group. The table that maps the devices is a feature of hawse.
_SCRIPT = """
IFS=,
for address in $PCIDEVICE_TEST; do
    group=$(busybox readlink /sys/bus/pci/devices/$address/iommu_group)
    probe /dev/vfio/${group##*/} $address || exit 1
    members=
    for member in /sys/kernel/iommu_groups/${group##*/}/devices/*; do
        case $(cat $member/class) in 0x06*) ;; *) members="$members,\\"${member##*/}\\"" ;; esac
    done
    echo "[${members#,}]"
done
cat /dev/hawse/devices.json 2>/dev/null || echo []
"""
_BUNDLE = """
import shutil, sys
from hawse.vfio import sysfs
from tests.support.bundles import UNLIMITED, add_devices, make_bundle, write
directory, probe, script, *addresses = sys.argv[1:]
groups = dict.fromkeys(sysfs.iommu_group(address) for address in addresses)
nodes = [(f"/dev/vfio/{group}", *sysfs.group_numbers(group)) for group in groups]
environment = ["PATH=/bin", f"PCIDEVICE_TEST={','.join(addresses)}"]
spec = make_bundle(directory, ["/bin/sh", "-c", script], rlimits=[UNLIMITED], env=environment)
shutil.copy(probe, f"{directory}/rootfs/bin/probe")
add_devices(spec, [("/dev/vfio/vfio", 10, 196), *nodes])
spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"]
write(directory, spec)
print(len(groups))
"""


def documents(text: str) -> list[Any]:
    """JSON values, one after the other."""
    decoder, values = json.JSONDecoder(), []
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:]
    return values


def check_behind_a_bridge(host: dict[str, Any], guest: dict[str, Any]) -> None:
    """Only the items in DIFFERENT_BEHIND_A_BRIDGE differ: the PCI Express capability, region 7 and interrupt 3."""
    assert guest["capabilities"] == [number for number in host["capabilities"] if number != 16]
    for kind, number in (("regions", 7), ("interrupts", 3)):
        seen, expected = ([entry for entry in each[kind] if entry["index"] != number] for each in (guest, host))
        assert seen == expected


def test_sixteen_groups_of_every_kind_match_runc(lab: Lab, same_kernel: str, probe: str) -> None:
    configure(lab, f"[vm]\n{MACHINE}{same_kernel}", _CONFIG)
    created = lab.python(_BUNDLE, "/run/sixteen", probe, _SCRIPT, *FUNCTIONS)
    assert (created.code, created.output) == (0, "16\n"), created.errors
    under_runc = lab.run(["runc", "run", "--bundle", "/run/sixteen", "sixteen-runc"], timeout=300)
    assert under_runc.code == 0, under_runc
    before = snapshot(lab)
    runtime = [HAWSE, "--config", _CONFIG]
    under_hawse = lab.run([*runtime, "run", "--bundle", "/run/sixteen", "sixteen-hawse"], timeout=SECONDS)
    assert under_hawse.code == 0, under_hawse
    prove_unchanged(lab, before)
    *expected, _ = documents(under_runc.output)
    *seen, table = documents(under_hawse.output)
    assert len(seen) == len(expected) == 2 * len(FUNCTIONS)
    for address, host, guest in zip(FUNCTIONS, expected[::2], seen[::2], strict=True):
        assert host["address"] == address
        assert host.keys() == guest.keys()
        assert guest["passed"] is True
        # The guest numbers the group itself, so the name of its node differs.
        different = {key for key in host if host[key] != guest.get(key)} - {"node"}
        if address in PAIR:
            assert different == DIFFERENT_BEHIND_A_BRIDGE
            check_behind_a_bridge(host, guest)
        elif address in (*VIRTUAL, *CONVENTIONAL):
            assert different <= DIFFERENT | {"address"}
        else:
            assert different <= DIFFERENT, "the address is the host's own"
    [large] = [guest for address, guest in zip(FUNCTIONS, seen[::2], strict=True) if address == LARGE]
    assert max(region.get("size", 0) for region in large["regions"]) == 8 << 30
    assert len({guest["group"] for guest in seen[::2]}) == 16
    guests = {entry["host"]["address"]: entry["guest"]["address"] for entry in table}
    assert list(guests) == FUNCTIONS
    assert [sorted(guests[address] for address in members) for members in expected[1::2]] == seen[1::2]
    notes = {entry["host"]["address"]: entry.get("note", "") for entry in table}
    assert {address for address, note in notes.items() if note} == {
        address for address, guest in guests.items() if guest != address
    }
    assert {*PAIR, *VIRTUAL} <= {address for address, note in notes.items() if note}
    assert notes[VIRTUAL[0]] == "it is 10.0 on its bus, and a port of the guest has only 00.0"
