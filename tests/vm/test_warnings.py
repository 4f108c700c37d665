"""Fields without effect cause a warning that names them, and the container is created."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.bundles import make_bundle, write
from tests.support.pod_bundles import KIND, SANDBOX, role
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm


def warnings(runtime: Runtime) -> list[str]:
    """The warnings in the log so far."""
    with open(runtime.log) as file:
        return [json.loads(line)["msg"] for line in file]


def test_security_fields_of_the_host_and_mounts_of_its_kernel(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    words = ["/bin/sh", "-c", "cat /data/ostype; grep Seccomp: /proc/self/status; ls -d /dbg/x86"]
    spec = make_bundle(bundle, words, apparmorProfile="docker-default")
    bind = {"destination": "/data", "type": "bind", "source": "/proc/sys/kernel", "options": ["bind", "ro"]}
    spec["mounts"] += [bind, {"destination": "/dbg", "type": "debugfs", "source": "debugfs", "options": ["ro"]}]
    spec["linux"]["seccomp"] = {}
    spec["process"]["capabilities"]["bounding"].append("CAP_FLY")
    write(bundle, spec)
    result = runtime("run", "--bundle", bundle, "c1", log=True)
    assert (result.code, result.output.split()) == (0, ["Linux", "Seccomp:", "0", "/dbg/x86"]), result.errors
    filters, capability, profile, bound, debug = warnings(runtime)
    assert filters.startswith("linux.seccomp: the container has no filter: ")
    assert capability.startswith("process.capabilities.bounding: 'CAP_FLY' is unknown")
    assert profile.startswith("process.apparmorProfile: 'docker-default' has no effect: ")
    assert ".source: /proc/sys/kernel is the guest's, not the host's" in bound
    assert ".type: debugfs shows the guest kernel" in debug


def test_container_with_more_memory_than_the_vm_of_the_pod_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    pod, member = str(tmp_path / "pod"), str(tmp_path / "member")
    spec = make_bundle(pod, ["/bin/sleep", "1000"])
    spec["annotations"] = role("pod")
    write(pod, spec)
    runtime.run_detached(pod, "pod")
    shutil.copytree(pod, member, symlinks=True)
    spec["annotations"] = {KIND: "container", SANDBOX: "pod"}
    spec["process"]["args"] = ["/bin/echo", "made"]
    results = []
    for limit in (512, 832, 833):
        spec["linux"]["resources"]["memory"] = {"limit": limit << 20}
        write(member, spec)
        results.append(runtime("run", "--bundle", member, f"limit-{limit}", log=True))
    assert [(result.code, result.output) for result in results] == [(0, "made\n"), (0, "made\n"), (1, "")]
    words = "833 MiB are more than the virtual machine has for a container: 832 MiB of 1024 MiB [the size of a pod's"
    assert f"hawse: linux.resources.memory.limit: {words}" in results[-1].errors
    spec["linux"]["resources"]["memory"] = {}
    spec["mounts"].append({"destination": "/x", "type": "floppyfs", "source": "none"})
    write(member, spec)
    unknown = runtime("run", "--bundle", member, "floppy", log=True)
    assert unknown.code == 1
    assert "hawse: mounts: the guest kernel has no file system 'floppyfs', for /x [add the module" in unknown.errors
    refused = runtime("update", "--memory", "1g", "pod")
    assert (refused.code, runtime("update", "--memory", "800m", "pod").code) == (1, 0)
    assert "hawse: update: memory.limit: 1024 MiB are more than the virtual machine has" in refused.errors
