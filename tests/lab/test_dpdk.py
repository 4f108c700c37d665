"""dpdk-testpmd, unmodified, on two SR-IOV virtual functions that it finds only by PCIDEVICE_ variables.

The tests require no packets: when DPDK resets a virtual function, it waits one millisecond for the driver of the
physical function (drivers/net/e1000/base/e1000_vf.c, e1000_reset_hw_vf()). In the lab the answer takes longer, also
under runc.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import re
from typing import Any

import pytest

from tests.lab.host import Lab
from tests.lab.steps import MACHINE, PAIR, RUNTIME, SECONDS, VIRTUAL, configure, group_of, hawse
from tests.support.bundles import UNLIMITED
from tests.support.caches import dpdk_rootfs

pytestmark = pytest.mark.lab

_TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_NAME = "PCIDEVICE_EXAMPLE_COM_NICS"
#: A time limit for failures.
_SECONDS = 480
_SCRIPT = f"""
echo "{_NAME}=${_NAME}"; echo "{_NAME}_INFO=${_NAME}_INFO"
first=${{{_NAME}%,*}} second=${{{_NAME}#*,}}
echo quit | timeout {_SECONDS} dpdk-testpmd --lcores 0@0,1@0 --iova-mode=va -a $first -a $second -- --interactive \
    --total-num-mbufs=2048
"""
#: Memory with more pages than the default limit of mappings in the host kernel, at virtual addresses as IOVAs.
_MANY_PAGES = """
(sleep 5; echo) | dpdk-testpmd --no-huge -m 512 --iova-mode=va --lcores 0@0,1@0 -a {first} -a {second} -- \
    --tx-first --total-num-mbufs=2048
"""
_NUMBERS = """
import json, sys
from hawse.vfio import sysfs
print(json.dumps([sysfs.group_numbers(int(group)) for group in sys.argv[1:]]))
"""


def specification(lab: Lab, rootfs: str, addresses: list[str] = VIRTUAL) -> dict[str, Any]:
    """The specification of the demo, with these functions."""
    loader = importlib.machinery.SourceFileLoader("demo_run", f"{_TOP}/demo/run")
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("demo_run", loader) or pytest.fail())
    loader.exec_module(module)
    spec: dict[str, Any] = module.specification()
    spec["root"] = {"path": rootfs, "readonly": True}
    # The VM clears each page before it is used, and testpmd uses few.
    spec["linux"]["resources"]["hugepageLimits"] = [{"pageSize": "2MB", "limit": 64 << 20}]
    groups = list(dict.fromkeys(group_of(lab, address) for address in addresses))
    numbers = json.loads(lab.python(_NUMBERS, *map(str, groups)).output)
    spec["linux"]["devices"] = [
        {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o660, "uid": 1000, "gid": 1000}
        for path, (major, minor) in [
            ("/dev/vfio/vfio", (10, 196)),
            *((f"/dev/vfio/{group}", pair) for group, pair in zip(groups, numbers, strict=True)),
        ]
    ]
    spec["linux"]["resources"]["devices"] = [{"allow": False, "access": "rwm"}] + [
        {"allow": True, "type": "c", "major": device["major"], "minor": device["minor"], "access": "rw"}
        for device in spec["linux"]["devices"]
    ]
    info = {address: {"vfio": {"dev-mount": "/dev/vfio/1", "mount": "/dev/vfio/vfio"}} for address in addresses}
    spec["process"]["env"] += [f"{_NAME}={','.join(addresses)}", f"{_NAME}_INFO={json.dumps(info)}"]
    spec["process"]["args"] = ["/bin/sh", "-c", f"({_SCRIPT}); sleep 100000"]
    return spec


def probed(output: str) -> list[str]:
    """The addresses of the functions that DPDK's driver has probed."""
    return re.findall(r"Probe PCI driver: net_e1000_igb_vf \(8086:10ca\) device: (\S+) ", output)


def test_testpmd_finds_its_virtual_functions_in_the_first_process_and_in_an_exec(lab: Lab) -> None:
    rootfs = dpdk_rootfs()
    configure(lab)
    spec = specification(lab, rootfs)
    write = "import os, sys; os.makedirs('/run/dpdk'); open('/run/dpdk/config.json', 'w').write(sys.argv[1])"
    assert lab.python(write, json.dumps(spec)).code == 0
    run = " ".join([*RUNTIME, "run --detach --bundle /run/dpdk dpdk >/run/dpdk/out 2>&1"])
    started = lab.run(["sh", "-c", run], timeout=SECONDS)
    assert started.code == 0, lab.run(["cat", "/run/dpdk/out"])
    try:
        waited = lab.run(["sh", "-c", "until grep -q Bye /run/dpdk/out; do sleep 1; done"], timeout=SECONDS)
        first = lab.run(["cat", "/run/dpdk/out"]).output
        assert waited.code == 0, first
        state = json.loads(lab.run([*RUNTIME, "state", "dpdk"]).output)
        guest = {entry["host"]["address"]: entry["guest"]["address"] for entry in state["vfio"]}
        in_exec = lab.run([*RUNTIME, "exec", "dpdk", "/bin/sh", "-c", _SCRIPT], timeout=SECONDS)
        for said in (first, in_exec.output + in_exec.errors):
            assert f"{_NAME}={','.join(guest[address] for address in VIRTUAL)}\n" in said
            [info] = re.findall(f"{_NAME}_INFO=(.*)\n", said)
            assert list(json.loads(info)) == [guest[address] for address in VIRTUAL]
            assert probed(said) == [guest[address] for address in VIRTUAL], said
            assert "Port 1 is closed" in said, said[-3000:]
    finally:
        lab.run([*RUNTIME, "delete", "--force", "dpdk"], timeout=300)


@pytest.mark.soak
def test_testpmd_forwards_packets_in_memory_of_many_pages(lab: Lab) -> None:
    """Without huge pages, 512 MiB need 131072 mappings on the host."""
    spec = specification(lab, dpdk_rootfs(), PAIR)
    spec["linux"]["resources"]["hugepageLimits"] = []
    spec["process"] |= {"rlimits": [UNLIMITED], "args": ["/bin/sh", "-c", "sleep 100000"]}
    configure(lab, f"[vm]\n{MACHINE}memory_mib = 1536\n")
    write = "import os, sys; os.makedirs('/run/pages'); open('/run/pages/config.json', 'w').write(sys.argv[1])"
    assert lab.python(write, json.dumps(spec)).code == 0
    started = hawse(lab, "run", "--detach", "--bundle", "/run/pages", "pages")
    assert started.code == 0, started
    try:
        state = json.loads(hawse(lab, "state", "pages").output)
        first, second = sorted(entry["guest"]["address"] for entry in state["vfio"])
        program = _MANY_PAGES.format(first=first, second=second)
        ran = hawse(lab, "exec", "pages", "/bin/sh", "-c", program, timeout=600)
        received = [int(number) for number in re.findall(r"RX-packets: (\d+)", ran.output)]
        assert len(received) == 3, ran.output + ran.errors
        assert min(received) > 0, "by each port, and in all"
    finally:
        hawse(lab, "delete", "--force", "pages", timeout=300)
