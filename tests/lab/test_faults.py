"""Each process of a sandbox is killed while it has groups of the host. Afterwards the groups are free, bound to their
earlier drivers, and work.

One group is always bound to VFIO. The other is bound to its host driver, and hawse binds it to VFIO for the container.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab.host import Lab
from tests.lab.steps import (
    EDU,
    LONE_NIC,
    RUNTIME,
    group_of,
    hawse,
    make_bundle,
    make_shell_bundle,
    prove_unchanged,
    read_json,
    rebind,
    snapshot,
)

pytestmark = pytest.mark.lab

#: The killed process, by words that only its command line contains. "the guest" crashes, together with its agent.
VICTIMS = {
    "QEMU": "[q]emu-system-x86",
    "monitor": "[h]awse.monitor.main",
    "the guest": "",
}
RUNS, ATTACHES = "it runs", "a group is being attached"
#: For other processes, the same two clean up: tests/vm/test_faults.py kills all.
CASES = [(RUNS, "QEMU"), (RUNS, "monitor"), (RUNS, "the guest"), (ATTACHES, "QEMU"), (ATTACHES, "monitor")]
#: Kills after QEMU has opened the group. The container then gets the device seconds later.
_KILL_WHILE_ATTACHING = """
runtime=$1 address=$2 device=$3 words=$4
$runtime attach victim $address </dev/null >/run/attached 2>&1 & attaching=$!
until grep -q "\\"$device\\"" /run/hawse/victim/qmp.log; do ! grep -q hawse: /run/attached || exit 8; sleep 0.05; done
pkill -KILL -f "$words" || exit 9
wait $attaching; code=$?
cat /run/attached >&2
exit $code
"""


@pytest.fixture(scope="module")
def bundles(lab: Lab, probe: str) -> Iterator[dict[str, str]]:
    """Bundles of a container with both groups, one that gets the second later, and one that drives the device and ends.

    The NIC is bound to its host driver, as after a boot.
    """
    managed = {"hawse.managed": "true"}
    paths = {
        RUNS: make_shell_bundle(lab, "both", EDU, probe=probe, annotations=managed | {"hawse.devices": LONE_NIC}),
        ATTACHES: make_shell_bundle(lab, "later", EDU, probe=probe, annotations=managed),
        "again": make_bundle(lab, "drives", EDU),
    }
    rebind(lab, LONE_NIC, "e1000e")
    lab.run(["sh", "-c", f"echo > /sys/bus/pci/devices/{LONE_NIC}/driver_override"])
    assert f"{LONE_NIC} e1000e (null)" in snapshot(lab)
    yield paths
    rebind(lab, LONE_NIC, "vfio-pci")


def kill(lab: Lab, moment: str, victim: str) -> None:
    """Kill the process, or crash the guest."""
    if moment == ATTACHES:
        words = [" ".join(RUNTIME), LONE_NIC, f"vfio-{group_of(lab, LONE_NIC)}-0", VICTIMS[victim]]
        ended = lab.run(["sh", "-c", _KILL_WHILE_ATTACHING, "sh", *words], timeout=600)
        assert ended.code == 1, ended
        assert ended.errors.startswith("hawse: "), ended
        assert "Traceback" not in ended.errors
    elif victim == "the guest":
        crash = "exec victim /bin/sh -c 'echo c >/proc/sysrq-trigger' </dev/null >/dev/null 2>&1"
        lab.run(["sh", "-c", f"{' '.join(RUNTIME)} {crash}"], timeout=300)
    else:
        assert lab.run(["pkill", "-KILL", "-f", VICTIMS[victim]]).code == 0


@pytest.mark.parametrize(("moment", "victim"), CASES)
def test_killed_process_leaves_the_groups_of_the_host_unchanged(
    lab: Lab, bundles: dict[str, str], fault_survived: Callable[[str], None], moment: str, victim: str
) -> None:
    before = snapshot(lab)
    started = hawse(lab, "run", "--detach", "--bundle", bundles[moment], "victim")
    assert started.code == 0, started
    assert (f"{LONE_NIC} vfio-pci vfio-pci" in snapshot(lab)) == (moment == RUNS), "bound for those who have it"
    kill(lab, moment, victim)
    deleted = hawse(lab, "delete", "--force", "victim")
    assert deleted.code == 0, deleted
    prove_unchanged(lab, before)
    assert hawse(lab, "list", "--quiet").output == ""
    assert lab.run(["ls", "/run/hawse.bindings"]).output == ""
    if (moment, victim) == CASES[-1]:
        again = hawse(lab, "run", "--bundle", bundles["again"], "again")
        assert again.code == 0, again
        assert read_json(again.output)["passed"] is True
    fault_survived(f"{victim} of the lab when {moment}")
