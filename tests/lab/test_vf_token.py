"""A virtual function whose physical function is bound to vfio-pci too is opened only with its token.

This is the last module of the lab: the virtual functions of the NIC are created again before and after it. Its VM boots
with the devices, since no template was built with the QEMU that supports tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.host import Lab
from tests.lab.steps import (
    EDU,
    MACHINE,
    PHYSICAL,
    SECONDS,
    VIRTUAL,
    configure,
    group_of,
    make_shell_bundle,
    prove_unchanged,
    read_json,
    rebind,
    refused,
    snapshot,
)
from tests.support.runtime import HAWSE, Result
from tests.support.suites import newer_qemu

pytestmark = pytest.mark.lab

TOKEN = "14d63f20-8445-11ea-8900-1f9ce7d5650d"
CONFIG = "/tmp/token.toml"
_SRIOV = "/sys/module/vfio_pci/parameters/enable_sriov"
#: A program that opens a physical function and sets the token for its virtual functions (include/uapi/linux/vfio.h).
_OWNER = """
import fcntl, os, struct, sys, time, uuid
group, address, token = sys.argv[1:]
SET_IOMMU, GROUP_SET_CONTAINER, GROUP_GET_DEVICE_FD, DEVICE_FEATURE = (0x3B64 + number for number in (2, 4, 6, 17))
TYPE1, FEATURE_SET, FEATURE_PCI_VF_TOKEN = 1, 1 << 17, 0
container, group = (os.open(f"/dev/vfio/{name}", os.O_RDWR) for name in ("vfio", group))
fcntl.ioctl(group, GROUP_SET_CONTAINER, struct.pack("i", container))
fcntl.ioctl(container, SET_IOMMU, TYPE1)
device = fcntl.ioctl(group, GROUP_GET_DEVICE_FD, bytearray(address.encode() + bytes(1)))
request = struct.pack("II", 8 + 16, FEATURE_SET | FEATURE_PCI_VF_TOKEN) + uuid.UUID(token).bytes
fcntl.ioctl(device, DEVICE_FEATURE, request)
if pid := os.fork():
    print(pid)
    sys.exit()
os.setsid()
time.sleep(100000)
"""


def write(lab: Lab, path: str, text: str) -> None:
    """Write an attribute in sysfs of the lab."""
    result = lab.run(["sh", "-c", 'echo "$1" > "$2"', "sh", text, path])
    assert result.code == 0, result


@pytest.fixture
def owner(lab: Lab) -> Iterator[None]:
    """A program has opened the physical function by VFIO and set TOKEN. Afterwards everything is restored."""
    before, functions = snapshot(lab), f"/sys/bus/pci/devices/{PHYSICAL}/sriov_numvfs"
    was = lab.run(["cat", _SRIOV]).output.strip()
    write(lab, functions, "0")
    rebind(lab, PHYSICAL, "vfio-pci")
    started = lab.python(_OWNER, str(group_of(lab, PHYSICAL)), PHYSICAL, TOKEN)
    assert started.code == 0, started
    pid = int(started.output)
    write(lab, _SRIOV, "1")
    write(lab, functions, str(len(VIRTUAL)))
    yield
    write(lab, functions, "0")
    write(lab, _SRIOV, was)
    lab.run(["sh", "-c", f"kill {pid}; while kill -0 {pid}; do sleep 0.2; done"])
    rebind(lab, PHYSICAL, "igb")
    write(lab, f"/sys/bus/pci/devices/{PHYSICAL}/driver_override", "")
    created = lab.python("from tests.lab.inside import make_virtual_functions; make_virtual_functions()")
    assert created.code == 0, created
    for address in VIRTUAL:
        rebind(lab, address, "vfio-pci")
    prove_unchanged(lab, before)


@pytest.mark.usefixtures("owner")
def test_virtual_function_is_opened_only_with_the_token(lab: Lab, probe: str) -> None:
    """The VM boots with one virtual function and an edu; the other function is attached later."""
    configure(
        lab,
        f'[vm]\nqemu = "{newer_qemu()}"\n{MACHINE}[template]\nenabled = false\n'
        '[devices]\nplug = "cold"\nkeep_addresses = false\n',
        CONFIG,
    )

    def run(*words: str) -> Result:
        return lab.run([HAWSE, "--config", CONFIG, *words], timeout=SECONDS)

    def probed(address: str) -> dict[str, Any]:
        entries = json.loads(run("state", "token").output)["vfio"]
        [nodes] = [entry["nodes"] for entry in entries if entry["host"]["address"] == address]
        result = run("exec", "token", "/bin/probe", nodes[0])
        assert result.code == 0, result
        return read_json(result.output)

    groups = [group_of(lab, address) for address in VIRTUAL]
    said = refused(lab, make_shell_bundle(lab, "no-token", EDU, VIRTUAL[0], probe=probe, annotations={}))
    assert f"{VIRTUAL[0]} of group {groups[0]} is a virtual function of {PHYSICAL}, which is bound to vfio-pci" in said
    assert "[set the annotation hawse.vf-token to the UUID that the PF's program has set; devices." in said
    bundle = make_shell_bundle(lab, "token", EDU, VIRTUAL[0], probe=probe, annotations={"hawse.vf-token": TOKEN})
    started = run("run", "--detach", "--bundle", bundle, "token")
    try:
        assert started.code == 0, started
        assert probed(EDU)["dma_matched"] is True
        assert probed(VIRTUAL[0])["device"] == "10ca"
        attached = run("attach", "token", VIRTUAL[1])
        assert attached.code == 0, attached
        assert probed(VIRTUAL[1])["device"] == "10ca"
    finally:
        run("delete", "--force", "token")
