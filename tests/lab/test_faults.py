"""Each of a sandbox's processes killed while it has a group of the host: the group is free, and works on."""

from __future__ import annotations

import json

import pytest

from tests.lab.host import Lab
from tests.lab.steps import EDU, RUNTIME, make_bundle, read_json
from tests.lab.test_host_groups import LEFT

pytestmark = pytest.mark.lab

#: What is killed, by words of its command line; "the guest" is made to crash, and its agent with it.
VICTIMS = {
    "QEMU": "qemu-system-x86",
    "virtiofsd": "virtiofsd",
    "monitor": "hawse.sandbox.monitor",
    "proxy": r"^hawse\[victim\]",
    "the guest": "",
}
_STAYS = "/run/stays"
_STAY = """
import sys
from hawse.vfio import sysfs
from tests.support.bundles import UNLIMITED, add_devices, make_bundle, write
directory, address = sys.argv[1:]
group = sysfs.iommu_group(address)
spec = make_bundle(directory, ["/bin/sleep", "100000"], rlimits=[UNLIMITED])
add_devices(spec, [("/dev/vfio/vfio", 10, 196), (f"/dev/vfio/{group}", *sysfs.group_numbers(group))])
spec["linux"]["readonlyPaths"] = []  # /proc/sysrq-trigger among them
spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"]
write(directory, spec)
"""


@pytest.fixture(scope="module")
def bundles(lab: Lab) -> tuple[str, str]:
    """A container that stays, and one that drives the device and ends; both have the host's group."""
    made = lab.python(_STAY, _STAYS, EDU)
    assert made.code == 0, made.errors
    return _STAYS, make_bundle(lab, "drives", EDU)


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_death_leaves_the_hosts_group_free(lab: Lab, bundles: tuple[str, str], victim: str) -> None:
    before = json.loads(lab.python(LEFT).output)
    run = " ".join([*RUNTIME, "run --detach --bundle", bundles[0], "victim </dev/null >/run/said 2>&1"])
    started = lab.run(["sh", "-c", run], timeout=3000)
    assert started.code == 0, lab.run(["cat", "/run/said"])
    if victim == "the guest":
        crash = "exec victim /bin/sh -c 'echo c >/proc/sysrq-trigger' </dev/null >/dev/null 2>&1"
        lab.run(["sh", "-c", f"{' '.join(RUNTIME)} {crash}"], timeout=300)
    else:
        assert lab.run(["pkill", "-KILL", "-f", VICTIMS[victim]]).code == 0
    if victim == "proxy":  # whoever kills it means the container's process
        stopped = f"until {' '.join(RUNTIME)} state victim | grep -q stopped; do sleep 0.2; done"
        assert lab.run(["sh", "-c", stopped], timeout=120).code == 0
    deleted = lab.run([*RUNTIME, "delete", "--force", "victim"], timeout=300)
    assert deleted.code == 0, deleted
    for _ in range(60):  # orphans are collected by the lab's PID 1 in its own time
        after = json.loads(lab.python(LEFT).output)
        if after == before:
            break
    assert after == before
    assert lab.run([*RUNTIME, "list", "--quiet"]).output == ""
    if victim == list(VICTIMS)[-1]:
        again = lab.run([*RUNTIME, "run", "--bundle", bundles[1], "again"], timeout=3000)
        assert again.code == 0, again
        assert read_json(again.output)["passed"] is True
