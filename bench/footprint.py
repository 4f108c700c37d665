"""What one idle container keeps in memory: monitor and proxy on the host, the agent in the guest."""

from __future__ import annotations

import json
from pathlib import Path

from bench.common import Measured, workbench
from tests.support.bundles import make_bundle, write


def measure() -> Measured:
    """In MiB; PSS is what a process would give back (proc(5), smaps_rollup)."""
    with workbench() as (runtime, directory):
        bundle = f"{directory}/bundle"
        spec = make_bundle(bundle, ["/bin/sleep", "1000"])
        # It sees the guest's processes, the agent first of them.
        spec["linux"]["namespaces"] = [entry for entry in spec["linux"]["namespaces"] if entry["type"] != "pid"]
        write(bundle, spec)
        pid = runtime.run_detached(bundle, "c1")
        state = json.loads(Path(f"{runtime.root}/c1/state.json").read_text())
        host = {"proxy": _pss(pid), "monitor": _pss(state["monitorPid"])}
        status = runtime("exec", "c1", "cat", "/proc/1/status").output
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        agent = int(line.split()[1]) / 1024
        runtime("delete", "--force", "c1")
    figures = {"pss_mib_host_side": round(sum(host.values()), 1), "agent_rss_mib": round(agent, 1)}
    return Measured(figures, {"pss_mib": host})


def _pss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no Pss of {pid}")
