"""Groups of the host are attached to the running containers of a pod and detached, each from its own container."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.host import Lab
from tests.lab.steps import (
    EDU,
    LONE_NIC,
    NVME,
    PAIR,
    group_of,
    hawse,
    make_shell_bundle,
    prove_unchanged,
    read_json,
    snapshot,
)
from tests.support.runtime import Result
from tests.support.soak import rounds

pytestmark = pytest.mark.lab

ROUNDS = rounds(2, soak=200)
KIND, SANDBOX = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"


@pytest.fixture(scope="module")
def pod(lab: Lab, probe: str) -> Iterator[str]:
    """The name of a sandbox whose first container runs without a device. Afterwards the host must be unchanged."""
    before = snapshot(lab)
    bundle = make_shell_bundle(lab, "pod", probe=probe, annotations={KIND: "sandbox"})
    started = hawse(lab, "run", "--detach", "--bundle", bundle, "pod")
    assert started.code == 0, started
    yield "pod"
    assert hawse(lab, "delete", "--force", "pod").code == 0
    prove_unchanged(lab, before)


def join(lab: Lab, probe: str, name: str, *addresses: str, mode: str = "vfio") -> None:
    """Run a container of the pod with the groups of these functions, in the network of the pod, as engines do."""
    about = {KIND: "container", SANDBOX: "pod", "hawse.device-mode": mode}
    network = f"/proc/{state(lab, 'pod')['pid']}/ns/net"
    bundle = make_shell_bundle(lab, name, *addresses, probe=probe, annotations=about, network=network)
    started = hawse(lab, "run", "--detach", "--bundle", bundle, name)
    assert started.code == 0, started


def shell(lab: Lab, name: str, script: str) -> Result:
    return hawse(lab, "exec", name, "/bin/sh", "-c", script)


def state(lab: Lab, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(hawse(lab, "state", name).output)
    return answer


def opened(lab: Lab) -> list[str]:
    """The targets of QEMU's file descriptors."""
    result = lab.run(["sh", "-c", "find /proc/$(pgrep qemu-system)/fd -type l -printf '%l\\n'"])
    assert result.code == 0, result
    return sorted(result.output.split("\n"))


@pytest.mark.soak
@pytest.mark.usefixtures("pod")
def test_group_is_attached_and_detached_repeatedly(lab: Lab) -> None:
    node = f"/dev/vfio/{group_of(lab, EDU)}"
    after: list[list[str]] = []
    for number in range(ROUNDS):
        attached = hawse(lab, "attach", "pod", EDU)
        assert attached.code == 0, attached
        assert node in opened(lab), number
        if number in (0, ROUNDS - 1):
            probed = shell(lab, "pod", f"probe {node}")
            assert read_json(probed.output)["dma_matched"] is True, probed
        detached = hawse(lab, "detach", "pod", EDU)
        assert detached.code == 0, detached
        after.append(opened(lab))
        assert node not in after[-1], number
    assert after[-1] == after[0], "QEMU has no descriptor more than after the first round"


@pytest.mark.usefixtures("pod")
def test_each_container_has_only_its_own_groups(lab: Lab, probe: str) -> None:
    """The group of the second container has two functions, and is plugged behind a spare bridge of the pod's VM."""
    join(lab, probe, "one", EDU)
    join(lab, probe, "two", *PAIR)
    for name, functions in (("one", [EDU]), ("two", PAIR)):
        entries = state(lab, name)["vfio"]
        assert [entry["host"]["address"] for entry in entries] == functions
        for entry in entries:
            probed = shell(lab, name, f"probe {entry['nodes'][0]} {entry['guest']['address']}")
            assert read_json(probed.output)["passed"] is True, probed
        own = {node for entry in entries for node in entry["nodes"]}
        listed = shell(lab, name, "ls -d /dev/vfio/*").output.split()
        assert set(listed) == {"/dev/vfio/vfio", *own}
    assert state(lab, "pod")["vfio"] == []
    assert hawse(lab, "delete", "--force", "one").code == 0
    nodes = [node for node in opened(lab) if node.startswith("/dev/vfio/") and node != "/dev/vfio/vfio"]
    assert nodes == [f"/dev/vfio/{group_of(lab, PAIR[0])}"]
    assert hawse(lab, "delete", "--force", "two").code == 0


@pytest.mark.usefixtures("pod")
def test_devices_of_the_guest_kernel_are_an_interface_and_a_disk(lab: Lab, probe: str) -> None:
    join(lab, probe, "three", LONE_NIC, NVME, mode="guest-kernel")
    seen = state(lab, "three")
    nic = seen["vfio"][0]
    [interface] = nic["interfaces"]
    names = json.loads(seen["annotations"]["hawse.guest-devices"])
    assert names[LONE_NIC][0] == interface
    assert "nvme0n1" in names[NVME]
    script = (
        f"ls /sys/bus/pci/devices/{nic['guest']['address']}/net; ls /sys/class/net;"
        "dd if=/dev/nvme0n1 bs=4096 count=16 2>/dev/null | wc -c; ls -d /dev/vfio 2>/dev/null || echo none"
    )
    assert shell(lab, "three", script).output.split() == [interface, *sorted([interface, "lo"]), "65536", "none"]
    held = {f"/dev/vfio/{group_of(lab, address)}" for address in (LONE_NIC, NVME)}
    assert held <= set(opened(lab))
    assert hawse(lab, "delete", "--force", "three").code == 0
    assert held.isdisjoint(opened(lab))
