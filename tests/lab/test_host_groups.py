"""The host's real groups: the data that hawse reads about them, and every reason why a group cannot be passed.

The lab's devices are an edu (0000:01:00.0), two e1000e functions of one slot (0000:02:00.0 and .1), and one e1000e
(0000:03:00.0), all on vfio-pci.
"""

from __future__ import annotations

import json

import pytest

from tests.lab.host import Lab
from tests.lab.steps import EDU, LONE_NIC, PAIR, group_of, make_bundle, rebind, refused

pytestmark = pytest.mark.lab


def test_host_has_the_groups_of_the_lab(lab: Lab) -> None:
    text = """
import json
from hawse.vfio.groups import check_free, check_viable, read_group
from hawse.vfio import sysfs
groups = {sysfs.iommu_group(a) for a in ("0000:01:00.0", "0000:02:00.0", "0000:02:00.1", "0000:03:00.0")}
described = [read_group(number) for number in sorted(groups)]
for group in described:
    check_viable(group)
    check_free(group)
print(json.dumps([[f.address for f in group.functions] for group in described]))
print(json.dumps([bar.size for bar in described[0].functions[0].bars]))
"""
    result = lab.python(text)
    assert result.code == 0, result.errors
    groups, bars = (json.loads(line) for line in result.output.splitlines())
    assert groups == [[EDU], PAIR, [LONE_NIC]]
    assert bars == [1024 * 1024]


@pytest.mark.parametrize(
    ("driver", "words"), [("e1000e", f"{LONE_NIC} is bound to e1000e"), ("", f"{LONE_NIC} has no driver")]
)
def test_device_on_its_host_driver_is_refused_and_named(lab: Lab, driver: str, words: str) -> None:
    bundle = make_bundle(lab, f"lone-{driver}", LONE_NIC)
    rebind(lab, LONE_NIC, driver)
    said = refused(lab, bundle)
    rebind(lab, LONE_NIC, "vfio-pci")
    assert f"group {group_of(lab, LONE_NIC)} cannot be passed: {words}; it must be bound to vfio-pci" in said
    assert f"[`hawse bind {LONE_NIC}`" in said


def test_group_with_one_function_on_a_host_driver_is_refused_and_named(lab: Lab) -> None:
    """The node still exists, but the group is not viable."""
    bundle = make_bundle(lab, "pair", PAIR[0])
    rebind(lab, PAIR[1], "e1000e")
    said = refused(lab, bundle)
    rebind(lab, PAIR[1], "vfio-pci")
    number = group_of(lab, PAIR[0])
    assert f"group {number} is not viable: {PAIR[1]} is bound to e1000e; " in said
    assert "all of its 2 functions must be bound to vfio-pci" in said
    assert f"[`hawse bind {PAIR[1]}`, or set devices.managed" in said


def test_group_in_use_names_the_process(lab: Lab) -> None:
    bundle = make_bundle(lab, "held", LONE_NIC)
    number = group_of(lab, LONE_NIC)
    hold = f"""
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
fd = os.open("/dev/vfio/{number}", os.O_RDWR)
os.execv("/bin/sleep", ["the-holder", "600"])
"""
    # The descriptor must stay open across the exec.
    assert lab.python(hold.replace("os.execv", "os.set_inheritable(fd, True); os.execv")).code == 0
    lab.run(["sh", "-c", f"until ls -l /proc/*/fd 2>/dev/null | grep -q /dev/vfio/{number}; do sleep 0.1; done"])
    said = refused(lab, bundle)
    lab.run(["pkill", "-f", "the-holder"])
    assert f"group {number} ({LONE_NIC}) is in use: sleep (pid " in said
    assert "[end that process, or pass another group" in said
