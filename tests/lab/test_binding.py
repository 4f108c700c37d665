"""Functions are bound to VFIO and restored by a real kernel: by the verbs, and for the lifetime of a container."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.host import Lab
from tests.lab.steps import LONE_NIC, PAIR, RUNTIME, SECONDS, configure, group_of, make_bundle
from tests.support.runtime import HAWSE, Result

pytestmark = pytest.mark.lab

_DRIVER = """
import json, os, sys
def driver(address):
    link = f"/sys/bus/pci/devices/{address}/driver"
    name = os.path.basename(os.readlink(link)) if os.path.islink(link) else ""
    return [name, open(f"/sys/bus/pci/devices/{address}/driver_override").read().strip()]
print(json.dumps([driver(address) for address in sys.argv[1:]]))
"""
NATIVE, GIVEN = ["e1000e", "(null)"], ["vfio-pci", "vfio-pci"]


def drivers(lab: Lab, *addresses: str) -> list[list[str]]:
    """The driver and the override of each function."""
    answer: list[list[str]] = json.loads(lab.python(_DRIVER, *addresses).output)
    return answer


def hawse(lab: Lab, *words: str, timeout: float = 120) -> Result:
    return lab.run([*RUNTIME, *words], timeout=timeout)


@pytest.fixture
def native(lab: Lab) -> Iterator[None]:
    """The NICs are bound to their host driver, as after boot. Afterwards they are bound to vfio-pci again."""
    configure(lab)
    clear = "".join(f"echo > /sys/bus/pci/devices/{address}/driver_override;" for address in (*PAIR, LONE_NIC))
    assert hawse(lab, "unbind", "--driver", "e1000e", *PAIR, LONE_NIC).code == 0
    lab.run(["sh", "-c", clear])
    assert drivers(lab, *PAIR, LONE_NIC) == [NATIVE] * 3
    yield
    result = hawse(lab, "bind", *PAIR, LONE_NIC)
    assert result.code == 0, result
    lab.run(["rm", "-r", "/run/hawse.bindings"])


@pytest.mark.usefixtures("native")
def test_bind_and_unbind_restore_the_function_exactly(lab: Lab) -> None:
    group = group_of(lab, LONE_NIC)
    result = hawse(lab, "bind", LONE_NIC.removeprefix("0000:"))
    assert (result.code, result.output) == (
        0, f"{LONE_NIC}: e1000e -> vfio-pci, group {group}: /dev/vfio/{group}\n",
    ), result  # fmt: skip
    assert drivers(lab, LONE_NIC) == [GIVEN]
    result = hawse(lab, "unbind", LONE_NIC)
    assert (result.code, result.output) == (0, f"{LONE_NIC}: vfio-pci -> e1000e, group {group}\n"), result
    assert drivers(lab, LONE_NIC) == [NATIVE]
    assert lab.run(["ls", "/run/hawse.bindings"]).output == ""


@pytest.mark.usefixtures("native")
def test_rest_of_a_group_is_named_and_bound_on_request(lab: Lab) -> None:
    result = hawse(lab, "bind", PAIR[0])
    assert result.code == 1
    assert f"{PAIR[0]} shares group {group_of(lab, PAIR[0])} with {PAIR[1]} (e1000e)" in result.errors
    assert drivers(lab, *PAIR) == [NATIVE] * 2
    assert hawse(lab, "bind", "--group", PAIR[0]).code == 0
    assert drivers(lab, *PAIR) == [GIVEN] * 2
    assert hawse(lab, "unbind", "--all").code == 0
    assert drivers(lab, *PAIR) == [NATIVE] * 2


@pytest.mark.usefixtures("native")
def test_function_that_the_host_uses_is_refused(lab: Lab) -> None:
    [name] = lab.run(["ls", f"/sys/bus/pci/devices/{LONE_NIC}/net"]).output.split()
    up = f"ip link set {name} up && ip address add 192.0.2.1/24 dev {name} && ip route add 198.51.100.0/24 dev {name}"
    assert lab.run(["sh", "-c", up]).code == 0
    result = hawse(lab, "bind", LONE_NIC)
    lab.run(["sh", "-c", f"ip address flush dev {name}; ip link set {name} down"])
    assert result.code == 1
    assert f"{LONE_NIC}" in result.errors and f"{name}" in result.errors and "route" in result.errors
    result = hawse(lab, "bind", "0000:04:00.0")
    assert result.code == 1
    assert "0000:04:00.0" in result.errors and "2" in result.errors, "it has virtual functions"
    assert drivers(lab, LONE_NIC, "0000:04:00.0") == [NATIVE, ["igb", "(null)"]]


@pytest.mark.usefixtures("native")
def test_managed_group_is_bound_and_restored_with_its_container(lab: Lab) -> None:
    """In the second round the monitor is killed, and `delete` restores the group."""
    assert hawse(lab, "bind", LONE_NIC).code == 0
    bundle = make_bundle(lab, "managed", LONE_NIC)
    assert hawse(lab, "unbind", LONE_NIC).code == 0
    refused = hawse(lab, "run", "--bundle", bundle, "unmanaged")
    assert refused.code == 1
    assert f"{LONE_NIC} is bound to e1000e; it must be bound to vfio-pci" in refused.errors
    annotate = """
import json, sys
with open(sys.argv[1]) as file:
    spec = json.load(file)
spec["annotations"] = {"hawse.managed": "true"}
spec["process"]["args"] = sys.argv[2:] or spec["process"]["args"]
with open(sys.argv[1], "w") as file:
    json.dump(spec, file)
"""
    lab.python(annotate, f"{bundle}/config.json")
    ran = hawse(lab, "run", "--bundle", bundle, "managed", timeout=SECONDS)
    assert ran.code == 0, ran
    assert json.loads(ran.output)["passed"] is True
    assert drivers(lab, LONE_NIC) == [NATIVE]
    created = hawse(lab, "create", "--bundle", bundle, "killed", timeout=SECONDS)
    assert created.code == 0, created
    assert drivers(lab, LONE_NIC) == [GIVEN]
    assert "is bound for the sandbox killed" in hawse(lab, "unbind", LONE_NIC).errors
    lab.run(["pkill", "-KILL", "-f", "hawse.monitor.main"])
    lab.run(["sh", "-c", "while pgrep qemu-system >/dev/null; do sleep 0.2; done"])
    assert drivers(lab, LONE_NIC) == [GIVEN]
    deleted = hawse(lab, "delete", "--force", "killed")
    assert deleted.code == 0, deleted
    assert drivers(lab, LONE_NIC) == [NATIVE]
    assert lab.run([HAWSE, "list", "--quiet"]).output == ""
