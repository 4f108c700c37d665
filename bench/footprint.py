"""The memory of one idle container: monitor and proxy on the host, the agent in the guest; and the pod overhead."""

from __future__ import annotations

import json
from pathlib import Path

from bench.common import Measured, workbench
from tests.support.bundles import make_bundle, write
from tests.support.runtime import Runtime


def measure() -> Measured:
    """Figures in MiB. PSS counts shared memory proportionally (proc(5), smaps_rollup)."""
    with workbench() as (runtime, directory):
        bundle = f"{directory}/bundle"
        spec = make_bundle(bundle, ["/bin/sleep", "1000"])
        # Without a PID namespace the container sees the guest's processes; the agent is the first.
        spec["linux"]["namespaces"] = [entry for entry in spec["linux"]["namespaces"] if entry["type"] != "pid"]
        write(bundle, spec)
        pid = runtime.run_detached(bundle, "c1")
        state = json.loads(Path(f"{runtime.root}/c1/state.json").read_text())
        host = {"proxy": _pss(pid), "monitor": _pss(state["monitorPid"])}
        status = runtime("exec", "c1", "cat", "/proc/1/status").output
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        agent = int(line.split()[1]) / 1024
        runtime("delete", "--force", "c1")
        _overhead(runtime, directory, "first")  # creates the template if it is missing
        warm = _overhead(runtime, directory, "warm")
        runtime.configure("[template]\nenabled = false\n")
        cold = _overhead(runtime, directory, "cold")
    figures = {
        "pss_mib_host_side": round(sum(host.values()), 1),
        "agent_rss_mib": round(agent, 1),
        "pod_overhead_mib": round(sum(warm.values()), 1),
        "pod_overhead_cold_mib": round(sum(cold.values()), 1),
    }
    return Measured(figures, {"pss_mib": host, "pod_pss_mib": {"warm": warm, "cold": cold}})


def _overhead(runtime: Runtime, directory: str, name: str) -> dict[str, float]:
    """The host memory of a pod's sandbox before its containers are created, which Kubernetes calls the pod overhead."""
    spec = make_bundle(f"{directory}/{name}", ["/bin/sleep", "1000"])
    spec["annotations"] = {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": name}
    write(f"{directory}/{name}", spec)
    pid = runtime.run_detached(f"{directory}/{name}", name)
    processes = pss_of(runtime, name, pid)
    runtime("delete", "--force", name)
    return processes


def pss_of(runtime: Runtime, sandbox: str, pid: int) -> dict[str, float]:
    """The PSS in MiB of each process of a sandbox, without proxies other than ``pid``, the first container's."""
    monitor = runtime.monitor(sandbox)
    processes = {"proxy": pid, "monitor": monitor}
    parents = [monitor]
    while parents:
        for child in Path(f"/proc/{parents[0]}/task/{parents.pop(0)}/children").read_text().split():
            processes[f"{Path(f'/proc/{child}/comm').read_text().strip()} {child}"] = int(child)
            parents.append(int(child))
    return {name: _pss(number) for name, number in processes.items()}


def _pss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"/proc/{pid}/smaps_rollup has no Pss")
