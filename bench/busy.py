"""The overhead of a pod that has been busy for a long time: its host memory without that of its containers.

``HAWSE_BENCH_SECONDS`` is the pod's age, by default 600. As a kubelet does, the benchmark executes programs in it,
updates limits, reads statistics and processes, and creates a second container again and again.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from bench.common import Measured, workbench
from bench.footprint import pss_of
from tests.support.bundles import make_bundle, write
from tests.support.runtime import Runtime

SECONDS = float(os.environ.get("HAWSE_BENCH_SECONDS", "600"))
#: Seconds between two readings.
_STEP = 30.0
_KIND, _SANDBOX = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
_PROBE = "for i in 1 2 3; do ls -R /etc /bin >/dev/null; md5sum /bin/busybox >/dev/null; ps >/dev/null; done"
_MIB = 1024 * 1024


def measure() -> Measured:
    """The overhead in MiB of a pod restored from a template; the memory of its containers is subtracted."""
    with workbench() as (runtime, directory):
        _write(directory, "pod", "sandbox", "exec sleep 100000")
        runtime.run_detached(f"{directory}/pod", "warm-up")
        runtime("delete", "--force", "warm-up", seconds=120)
        pid = runtime.run_detached(f"{directory}/pod", "pod")
        for name in ("one", "two"):
            _write(directory, name, "container", "exec sleep 100000")
        runtime.run_detached(f"{directory}/one", "one")
        began = time.monotonic()
        readings, calls = [_read(runtime, pid, 0.0)], 0
        while (age := time.monotonic() - began) < SECONDS:
            calls += _round(runtime, directory, calls)
            if age - readings[-1]["age"] >= _STEP:
                readings.append(_read(runtime, pid, age))
        readings.append(_read(runtime, pid, age))
        runtime("delete", "--force", "one", seconds=120)
        runtime("delete", "--force", "pod", seconds=120)
    figures = {"pod_overhead_busy_mib": readings[-1]["overhead"]}
    notes = [
        f"A pod of {age:.0f} s, after {calls} calls:",
        "",
        "| s | overhead | QEMU's anonymous memory |",
        "|---|---|---|",
    ]
    notes += [f"| {one['age']:.0f} | {one['overhead']:.0f} | {one['anonymous']:.0f} |" for one in readings]
    return Measured(figures, {"readings": readings, "calls": calls}, notes)


def _write(directory: str, name: str, kind: str, script: str) -> None:
    spec = make_bundle(f"{directory}/{name}", ["/bin/sh", "-c", script])
    spec["annotations"] = {_KIND: kind, _SANDBOX: "pod"}
    spec["linux"]["resources"] |= {"memory": {"limit": 128 * _MIB}, "cpu": {"shares": 512}}
    write(f"{directory}/{name}", spec)


def _round(runtime: Runtime, directory: str, number: int) -> int:
    """The calls that a kubelet makes in about ten seconds; returns their number."""
    runtime.run_detached(f"{directory}/two", "two")
    calls = [
        ("exec", "one", "/bin/true"),
        ("exec", "one", "/bin/sh", "-c", _PROBE),
        ("update", "--cpu-share", str(512 + number % 7), "one"),
        ("events", "--stats", "one"),
        ("ps", "one"),
        ("exec", "two", "/bin/sh", "-c", _PROBE),
        ("delete", "--force", "two"),
    ]
    for call in calls:
        done = runtime(*call, seconds=120)
        assert done.code == 0, (call, done)
    return 2 + len(calls)


def _read(runtime: Runtime, pid: int, age: float) -> dict[str, float]:
    """The age in s; in MiB: the sandbox's host memory without the container's, QEMU's anonymous memory in it, and the
    container's memory."""
    processes = pss_of(runtime, "pod", pid)
    [qemu] = [int(name.split()[1]) for name in processes if name.startswith("qemu")]
    status = Path(f"/proc/{qemu}/status").read_text().splitlines()
    [anonymous] = [int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon:")]
    statistics = json.loads(runtime("events", "--stats", "one").output)
    used = statistics["data"]["memory"]["usage"]["usage"] / _MIB
    return {
        "age": round(age),
        "overhead": round(sum(processes.values()) - used, 1),
        "anonymous": round(anonymous, 1),
        "containers": round(used, 1),
    }
