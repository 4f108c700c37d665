"""Packets per second of dpdk-testpmd in a container, over the same program in a bare guest with the same NICs."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.machinery
import importlib.util
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from types import ModuleType

from msgspec.structs import replace

from bench.common import Measured, Seconds, ratio, workbench
from demo.rootfs import make
from hawse.config import load_config
from hawse.monitor.machine.start_programs import launch
from hawse.planner.devices.plugs import plug_steps, shape
from hawse.planner.vm import plan_machine
from hawse.state.steps import Steps
from hawse.vfio.emulated import EmulatedGroup
from hawse.vm.ports import plan_ports
from hawse.vm.qmp import Qmp
from tests.support.caches import CACHE

ROUNDS = 5
#: Duration of each run in seconds. Readings come every 2 s; during the first ones QEMU still translates testpmd's code.
_SECONDS = 20
_TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_CONFIG = '[emulated]\n6 = ["e1000e", "e1000e"]\n'
_GROUP = EmulatedGroup(6, ("e1000e", "e1000e"))
_TESTPMD = "dpdk-testpmd -l 0,1 --iova-mode=va -- --forward-mode=io --tx-first --stats-period 2 --total-num-mbufs=16384"
#: A script for the bare guest that does the work of the agent and crun.
_SCRIPT = (
    "B=/usr/bin/busybox; $B mount -t proc p /proc; $B mount -t sysfs s /sys; $B mount -t devtmpfs d /dev; "
    "$B modprobe -a virtio_pci virtiofs vfio_pci vfio_iommu_type1; $B mkdir /r; $B mount -t virtiofs hawse /r; "
    "until [ -e {0}/{1} ]; do $B sleep 0.2; done; $B sleep 1; "
    "for d in {1} {2}; do echo vfio-pci >{0}/$d/driver_override; echo $d >/sys/bus/pci/drivers_probe; done; "
    "echo 128 >/proc/sys/vm/nr_hugepages; $B mkdir /dev/hugepages; $B mount -t devtmpfs d /r/dev; "
    "$B mount -t hugetlbfs h /r/dev/hugepages; $B mount -t proc p /r/proc; $B mount -t sysfs s /r/sys; "
    "$B mount -t tmpfs t /r/tmp; $B mkdir -p /r/var/run; $B mount -t tmpfs t /r/var/run; "
    "export PATH=/usr/bin; "
    "$B chroot /r timeout -s INT {3} {4}; echo it-has-ended; $B sleep 100"
)


def measure() -> Measured:
    """Run both alternately; each rate is the median of a run's readings after the first two."""
    demo = _load_demo()
    rootfs = f"{_TOP}/build/demo/rootfs"
    if not os.path.exists(f"{rootfs}/usr/bin/dpdk-testpmd"):
        os.makedirs(os.path.dirname(rootfs), exist_ok=True)
        make(rootfs, cache=CACHE)
    inside: Seconds = []
    bare: Seconds = []
    with workbench(_CONFIG) as (runtime, directory):
        bundle = f"{directory}/bundle"
        os.mkdir(bundle)
        spec = demo.specification(_SECONDS)
        spec["root"]["path"] = rootfs
        Path(f"{bundle}/config.json").write_text(json.dumps(spec))
        for number in range(ROUNDS):
            argv = runtime.argv("run", "--bundle", bundle, f"c{number}")
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            inside.append(_rate(done.stdout))
            bare.append(_rate(asyncio.run(_bare(rootfs, _SECONDS))))
    detail = {"container_packets_per_s": inside, "guest_packets_per_s": bare}
    return Measured({"testpmd_container_over_guest": ratio(inside, bare)}, detail)


def _rate(output: str) -> float:
    """The packets per second that one port received."""
    readings = [int(text) for text in re.findall(r"Rx-pps:\s+(\d+)", output)]
    settled = [reading for reading in readings if reading][2:]
    assert settled, output[-3000:]
    return statistics.median(settled)


async def _bare(rootfs: str, seconds: int) -> str:
    """Run testpmd in a guest with the same VM, without agent, crun and container; returns the console's output."""
    with tempfile.TemporaryDirectory(prefix="hawse-bench-") as directory:
        os.mkdir(f"{directory}/share")
        subprocess.run(["mount", "--bind", rootfs, f"{directory}/share"], check=True)
        try:
            return await _in_guest(directory, seconds)
        finally:
            subprocess.run(["umount", "--lazy", f"{directory}/share"], check=True)


async def _in_guest(directory: str, seconds: int) -> str:
    Path(f"{directory}/config.toml").write_text(_CONFIG)
    machine, _ = plan_machine(load_config(f"{directory}/config.toml"), [_GROUP])
    ports = plan_ports([shape(_GROUP)])
    plugs = plug_steps([_GROUP], ports.slots, owner="bench")
    addresses = sorted(plug.guest_address for plug in plugs)
    script = _SCRIPT.format("/sys/bus/pci/devices", *addresses, seconds, _TESTPMD)
    append = f'rdinit=/usr/bin/sh -- -c "{script}"'
    bare = replace(machine, shape=dataclasses.replace(machine.shape, kernel_append=append), template=None)
    launched = launch(bare, directory, Steps("/dev/null", []), share_plugged=True)
    with launched.undo:
        qmp = Qmp()
        await qmp.open(launched.qmp, seconds=60)
        output = b""
        plugged = False
        deadline = time.monotonic() + 120
        launched.console.settimeout(1)
        while b"it-has-ended" not in output and time.monotonic() < deadline:
            try:
                output += await asyncio.to_thread(launched.console.recv, 65536)
            except TimeoutError:
                pass
            # Plug the NICs as hawse does, once the firmware has run and the guest has booted.
            if not plugged and time.monotonic() > deadline - 110:
                plugged = True
                for plug in plugs:
                    for command, arguments in plug.commands:
                        await qmp.execute(command, arguments, timeout=30)
        await qmp.close()
        return output.decode(errors="replace")


def _load_demo() -> ModuleType:
    """Import demo/run, whose name has no suffix."""
    loader = importlib.machinery.SourceFileLoader("demo_run", f"{_TOP}/demo/run")
    spec = importlib.util.spec_from_loader("demo_run", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
