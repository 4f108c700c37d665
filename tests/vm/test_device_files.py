"""VFIO device files, /dev/iommu and /dev/vfio/devices/vfioN: the container has those of the guest, if it has any."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hawse.vm.image.build import build
from tests.support import device_kernel as kernel
from tests.support.bundles import (
    UNLIMITED,
    Device,
    add_devices,
    build_probe,
    make_bundle,
    make_probe_bundle,
    write,
)
from tests.support.caches import CACHE
from tests.support.patience import patience
from tests.support.pod_bundles import FOREVER
from tests.support.runtime import Result, Runtime

pytestmark = pytest.mark.vm

GROUPS = '[emulated]\n5 = ["edu"]\n8 = ["edu"]\n'
FILES: list[Device] = [("/dev/iommu", 10, 126), ("/dev/vfio/devices/vfio5", 510, 5)]
STEPS = ("attached", "bar0_mapped", "alive", "dma_matched", "unmapped_dma_blocked", "interrupt_taken", "passed")


@pytest.fixture(scope="module")
def image() -> str:
    """The configuration of a guest image whose kernel supports device files."""
    built = kernel.build()
    build(cache=CACHE, progress=print, kernel=built.image, modules=built.modules)
    return f'[image]\nkernel = "{built.image}"\nmodules = "{built.modules}"\n'


def probe(runtime: Runtime, tmp_path: Path, node: str, **changes: Any) -> Result:
    bundle = str(tmp_path / "bundle")
    make_probe_bundle(bundle, group=("/dev/vfio/5", 511, 5), node=node, files=FILES, **changes)
    return runtime("run", "--bundle", bundle, "c1")


def test_guest_without_device_files_has_nodes_of_groups(runtime: Runtime, tmp_path: Path) -> None:
    """Kernels of Debian have no device files."""
    runtime.configure(GROUPS)
    result = probe(runtime, tmp_path, "/dev/vfio/5")
    assert result.code == 0, result
    assert json.loads(result.output)["passed"] is True
    for path, instead in (("/dev/iommu", "/dev/vfio/vfio"), ("/dev/vfio/devices/vfio5", "/dev/vfio/")):
        assert f"warning: {path}: the guest's kernel has no VFIO device files: use {instead}" in result.errors


@pytest.mark.parametrize("plug", ["hot", "cold"])
def test_probe_drives_a_device_by_its_file(image: str, runtime: Runtime, tmp_path: Path, plug: str) -> None:
    runtime.configure(f'{image}[devices]\nplug = "{plug}"\n{GROUPS}')
    result = probe(runtime, tmp_path, "/dev/vfio/devices/vfio5")
    assert result.code == 0, result
    seen = json.loads(result.output)
    assert [step for step in STEPS if seen.get(step) is not True] == []
    assert "device files" not in result.errors


def test_probe_drives_the_same_device_by_its_group(image: str, runtime: Runtime, tmp_path: Path) -> None:
    """DPDK and SPDK support only groups, and an engine may support only files."""
    runtime.configure(image + GROUPS)
    result = probe(runtime, tmp_path, "/dev/vfio/5")
    assert result.code == 0, result
    assert json.loads(result.output)["passed"] is True


def test_device_rules_apply_to_device_files(image: str, runtime: Runtime, tmp_path: Path) -> None:
    runtime.configure(image + GROUPS)
    bundle = str(tmp_path / "bundle")
    spec = make_probe_bundle(bundle, group=("/dev/vfio/5", 511, 5), node=FILES[1][0], files=FILES)
    rules = spec["linux"]["resources"]["devices"]
    spec["linux"]["resources"]["devices"] = [rule for rule in rules if rule.get("major") != 510]
    write(bundle, spec)
    result = runtime("run", "--bundle", bundle, "c1")
    assert result.code == 1
    assert json.loads(result.output)["error"] == "open of the device's file: Operation not permitted"


def test_device_files_are_added_and_removed_with_groups(image: str, runtime: Runtime, tmp_path: Path) -> None:
    """For a container that has requested /dev/iommu. A device whose file is open, used or not, cannot be detached."""
    runtime.configure(image + GROUPS)
    bundle = str(tmp_path / "bundle")
    spec = make_bundle(bundle, FOREVER, rlimits=[UNLIMITED])
    shutil.copy(build_probe(str(tmp_path)), f"{bundle}/rootfs/bin/probe")
    add_devices(spec, [("/dev/iommu", 10, 126), ("/dev/vfio/devices/vfio8", 510, 8)])
    write(bundle, spec)
    runtime.run_detached(bundle, "c1")

    def shell(script: str) -> Result:
        return runtime("exec", "c1", "/bin/sh", "-c", script)

    assert shell("probe /dev/vfio/devices/vfio8").code == 0
    for _ in range(2):
        assert runtime("attach", "c1", "5").code == 0
        [entry] = [entry for entry in runtime.state("c1")["vfio"] if entry["host"]["group"] == 5]
        assert json.loads(shell("cat /dev/hawse/devices.json").output) == runtime.state("c1")["vfio"]
        files = [path for path in entry["nodes"] if path.startswith("/dev/vfio/devices/")]
        assert files[-1] == "/dev/vfio/devices/vfio5" and len(files) == 2
        assert all(json.loads(shell(f"probe {path}").output)["passed"] for path in files)
        script = "exec 3<>/dev/vfio/devices/vfio5; echo open; sleep 1000"
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        with runtime.start("exec", "c1", "/bin/sh", "-c", script, **pipes) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"open\n"
            refused = runtime("detach", "c1", "5")
            assert "of the guest is in use: 'sleep 1000' (process " in refused.errors
            assert runtime("detach", "--force", "c1", "5").code == 0
            assert holder.wait(timeout=patience(20)) == 137
        assert shell(f"ls -d {' '.join(entry['nodes'])} 2>/dev/null").output == ""
    assert json.loads(shell("probe /dev/vfio/devices/vfio8").output)["passed"] is True
