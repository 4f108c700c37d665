"""An engine on a host with real VFIO groups: the same arguments as with runc, and DPDK on the device."""

from __future__ import annotations

import re

import pytest

from tests.lab.host import Lab
from tests.lab.steps import LONE_NIC, group_of
from tests.support.caches import dpdk_rootfs

pytestmark = [pytest.mark.lab, pytest.mark.engine]

#: Sends what it makes up itself: the card reads it from the container's memory, of which each page is mapped by itself
#: through both IOMMUs, since none is huge.
_TESTPMD = (
    "timeout -s INT 60 dpdk-testpmd -l 0,1 --no-huge -m 32 --iova-mode=va -- --forward-mode=txonly --stats-period 10 "
    "--total-num-mbufs=2048"
)
#: Keeping addresses would need a machine without a template.
_PODMAN = """
import sys
from tests.support.podman import Podman
from tests.lab.steps import SETTINGS
from tests.support.runtime import Runtime
runtime = Runtime("/run")
runtime.configure(SETTINGS)
with Podman("/run/podman", runtime) as podman:
    done = podman(*sys.argv[1:], timeout=2400)
sys.stdout.write(done.output)
sys.stderr.write(done.errors)
sys.exit(done.code)
"""


def test_dpdk_sends_from_a_container_of_podmans(lab: Lab) -> None:
    rootfs = dpdk_rootfs()
    done = lab.python(
        _PODMAN, "run", "--rm", "--network", "none", "--tmpfs", "/tmp", "--tmpfs", "/var/run",
        "--device", "/dev/vfio/vfio", "--device", f"/dev/vfio/{group_of(lab, LONE_NIC)}", "--ulimit", "memlock=-1:-1",
        "--rootfs", f"{rootfs}:O", "/bin/sh", "-c", _TESTPMD, timeout=3000,
    )  # fmt: skip
    assert done.code == 0, done.output + done.errors
    sent = [int(count) for count in re.findall(r"TX-packets: (\d+) ", done.output)]
    assert sent, done
    assert sent[-1] > 0
    assert lab.run(["pgrep", "-c", "qemu-system"]).output == "0\n"
