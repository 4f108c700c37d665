"""Engines on a host with real VFIO groups: the same arguments as with runc, and DPDK on the device."""

from __future__ import annotations

import json
import re

import pytest

from tests.lab.host import Lab
from tests.lab.steps import EDU, LONE_NIC, SECONDS, group_of
from tests.support.caches import dpdk_rootfs

pytestmark = [pytest.mark.lab, pytest.mark.engine]

#: Sends generated packets. The NIC reads them from the memory of the container, whose pages are mapped one by one
#: through both IOMMUs, since none is huge. The program is stopped after it has sent, not after a time: a first process
#: ignores signals for which it has no handler yet (pid_namespaces(7)), and in the lab the handler comes late.
_SENDS = """
{testpmd} --lcores 0@0,1@0 --no-huge -m 32 --iova-mode=va {more} -- --forward-mode=txonly --stats-period 1 \\
    --total-num-mbufs=2048 >/tmp/said 2>&1 </dev/null &
ticks=0
until busybox grep -q -e 'TX-packets: [1-9]' -e 'exiting with code' /tmp/said || [ $((ticks += 1)) -gt 600 ]; do
    busybox sleep 1
done
kill -TERM $!; wait $!; code=$?
busybox cat /tmp/said
exit $code
"""
#: With kept addresses the VM could not use a template.
_PODMAN = """
import sys
from tests.support.podman import Podman
from tests.lab.steps import SETTINGS
from tests.support.runtime import Runtime
runtime = Runtime("/run")
runtime.configure(SETTINGS)
with Podman("/run/podman", runtime) as podman:
    done = podman(*sys.argv[1:])
sys.stdout.write(done.output)
sys.stderr.write(done.errors)
sys.exit(done.code)
"""


def test_dpdk_sends_from_a_container_of_podman(lab: Lab) -> None:
    rootfs = dpdk_rootfs()
    done = lab.python(
        _PODMAN, "run", "--rm", "--network", "none", "--tmpfs", "/tmp", "--tmpfs", "/var/run",
        "--device", "/dev/vfio/vfio", "--device", f"/dev/vfio/{group_of(lab, LONE_NIC)}", "--ulimit", "memlock=-1:-1",
        "--rootfs", f"{rootfs}:O", "/bin/sh", "-c", _SENDS.format(testpmd="dpdk-testpmd", more=""), timeout=2 * SECONDS,
    )  # fmt: skip
    assert done.code == 0, done.output + done.errors
    sent = [int(count) for count in re.findall(r"TX-packets: (\d+) ", done.output)]
    assert sent, done
    assert sent[-1] > 0
    assert lab.run(["pgrep", "-c", "qemu-system"]).output == "0\n"


#: The programs and libraries of DPDK are mounted from the host; the image contains only busybox.
_DPDK = "/dpdk/usr/lib/x86_64-linux-gnu"
_SENDS_FROM_HOST = "mkdir -p /tmp /var/run" + _SENDS.format(
    testpmd=f"{_DPDK}/ld-linux-x86-64.so.2 --library-path {_DPDK} /dpdk/usr/bin/dpdk-testpmd",
    more=f"-d {_DPDK}/dpdk/pmds-23.0",
)
_CRI = """
import os, sys
from tests.support.kubelet_pod import Pod
from tests.lab.steps import SETTINGS
from tests.support.containerd import Containerd
from tests.support.cri import Cri
from tests.support.images import write_busybox, write_pause
from tests.support.patience import wait_until
os.makedirs("/run/c")
engine = Containerd("/run/c", hawse=SETTINGS)
try:
    for archive in (write_pause("/run/c/pause.tar"), write_busybox("/run/c/busybox.tar")):
        engine.load(archive, namespace="k8s.io")
    with Cri(engine.address) as cri:
        wait_until(lambda: len(cri("ListImages")["images"]) == 2)
        pod = Pod(engine, cri, "/run/c/pod")
        node = f"/dev/vfio/{sys.argv[1]}"
        pod.run(
            "testpmd", sys.argv[3],
            devices=[
                {"container_path": path, "host_path": path, "permissions": "rw"} for path in ("/dev/vfio/vfio", node)
            ],
            mounts=[{"container_path": "/dpdk", "host_path": sys.argv[2], "readonly": True}],
            security={"capabilities": {"add_capabilities": ["IPC_LOCK"]}},
        )
        try:
            pod.await_exit("testpmd")
        finally:
            print(pod.log("testpmd"))
        pod.run(
            "hog", "exec busybox dd if=/dev/zero of=/dev/null bs=209715200",
            resources={"memory_limit_in_bytes": 48 << 20},
        )
        print(pod.await_exit("hog")["reason"])
        pod.remove()
finally:
    engine.stop()
"""


def test_dpdk_sends_and_an_oom_kill_is_reported_in_a_pod_over_cri(lab: Lab) -> None:
    """The lab has cgroups of version 2."""
    done = lab.python(_CRI, str(group_of(lab, LONE_NIC)), dpdk_rootfs(), _SENDS_FROM_HOST, timeout=2 * SECONDS)
    assert done.code == 0, done.output + done.errors
    sent = [int(count) for count in re.findall(r"TX-packets: (\d+) ", done.output)]
    assert sent, done
    assert sent[-1] > 0
    assert done.output.splitlines()[-1] == "OOMKilled", done


_DOCKER = """
import sys
from tests.support.docker import IMAGE, Docker
from tests.lab.steps import SETTINGS
from tests.support.runtime import Runtime
probe, group = sys.argv[1:]
runtime = Runtime("/run")
runtime.configure(SETTINGS)
words = ["--rm", "--network", "none", "--ulimit", "memlock=-1:-1", "--volume", f"{probe}:/probe:ro"]
devices = ["--device", "/dev/vfio/vfio", "--device", group]
# Without a firewall, whose kernel modules the lab lacks; the container has no network.
with Docker("/run/docker-test", runtime, iptables=False, bridge="none") as docker:
    done = docker("run", *words, *devices, IMAGE, "/probe", group)
sys.stdout.write(done.output)
sys.stderr.write(done.errors)
sys.exit(done.code)
"""


def test_container_of_docker_drives_a_device(lab: Lab, probe: str) -> None:
    done = lab.python(_DOCKER, probe, f"/dev/vfio/{group_of(lab, EDU)}", timeout=2 * SECONDS)
    assert done.code == 0, done.output + done.errors
    assert json.loads(done.output)["passed"]
