"""VFIO groups in the container, with emulated devices: from the guest's PCI bus upward everything is real."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.bundles import Device, add_devices, make_bundle, make_probe_bundle, write
from tests.support.patience import patience
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

CONTAINER: Device = ("/dev/vfio/vfio", 10, 196)
EDU = '[emulated]\n5 = ["edu"]\n'


def test_probe_drives_a_device(runtime: Runtime, tmp_path: Path) -> None:
    runtime.configure(EDU)
    bundle = str(tmp_path / "bundle")
    make_probe_bundle(bundle, group=("/dev/vfio/5", 511, 5))
    result = runtime("run", "--bundle", bundle, "c1")
    assert result.code == 0, result
    seen = json.loads(result.output)
    assert (seen["vendor"], seen["device"]) == ("1234", "11e8")
    for step in ("viable", "bar0_mapped", "alive", "dma_matched", "unmapped_dma_blocked", "interrupt_taken", "passed"):
        assert seen[step] is True


def test_groups_keep_their_functions_paths_and_owners(runtime: Runtime, tmp_path: Path) -> None:
    runtime.configure('[emulated]\n5 = ["edu"]\n6 = ["e1000e", "e1000e"]\n')
    bundle = str(tmp_path / "bundle")
    script = (
        "cd /dev/vfio; stat -c '%n %u %g %a %t:%T' *;"
        "for g in *; do [ -d /sys/kernel/iommu_groups/$g ] && echo $g: $(ls /sys/kernel/iommu_groups/$g/devices); done;"
        "for d in 02:00.0 03:00.0 03:00.1; do ls -l /sys/bus/pci/devices/0000:$d/driver | grep -o '[^/]*$'; done"
    )
    spec = make_bundle(bundle, ["/bin/sh", "-c", script])
    add_devices(spec, [CONTAINER, ("/dev/vfio/5", 511, 5), ("/dev/vfio/6", 511, 6)])
    spec["linux"]["devices"][1] |= {"uid": 1000, "gid": 1001, "fileMode": 0o640}
    write(bundle, spec)
    result = runtime("run", "--bundle", bundle, "c1")
    assert result.code == 0, result
    lines = result.output.splitlines()
    nodes = {line.split()[0]: line.split()[1:] for line in lines if ":" in line.split()[-1] and len(line.split()) == 5}
    assert nodes["vfio"] == ["0", "0", "666", "a:c4"]
    edu = [name for name, fields in nodes.items() if fields[:3] == ["1000", "1001", "640"]]
    assert "5" in edu
    assert len({nodes[name][3] for name in edu}) == 1, "the requested node and that of the guest are one device"
    groups = [line.split()[1:] for line in lines if line.split()[0].endswith(":")]
    assert ["0000:02:00.0"] in groups
    assert ["0000:03:00.0", "0000:03:00.1"] in groups
    assert lines[-3:] == ["vfio-pci"] * 3


def test_device_cgroup_applies_the_rules_of_the_specification(runtime: Runtime, tmp_path: Path) -> None:
    runtime.configure(EDU)
    bundle = str(tmp_path / "bundle")
    spec = make_probe_bundle(bundle, group=("/dev/vfio/5", 511, 5))
    rules = spec["linux"]["resources"]["devices"]
    spec["linux"]["resources"]["devices"] = [rule for rule in rules if rule.get("major") != 511]
    write(bundle, spec)
    result = runtime("run", "--bundle", bundle, "c1")
    assert result.code == 1
    assert json.loads(result.output)["error"] == "open of the group's node: Operation not permitted"


def test_container_without_devices_has_no_vfio_nodes(runtime: Runtime, tmp_path: Path) -> None:
    runtime.configure(EDU)
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sh", "-c", "ls /dev/vfio; ls /sys/bus/pci/devices | grep 0000:02:"])
    result = runtime("run", "--bundle", bundle, "c1")
    assert result.output == ""
    assert "/dev/vfio: No such file or directory" in result.errors


@pytest.mark.parametrize("group", ["edu", "pair"])
def test_devices_can_be_cold_plugged(runtime: Runtime, tmp_path: Path, group: str) -> None:
    models = '["edu"]' if group == "edu" else '["e1000e", "nvme"]'
    runtime.configure(f'[devices]\nplug = "cold"\n[emulated]\n5 = {models}\n')
    bundle = str(tmp_path / "bundle")
    make_probe_bundle(bundle, group=("/dev/vfio/5", 511, 5))
    result = runtime("run", "--bundle", bundle, "c1")
    assert result.code == 0, result
    assert json.loads(result.output)["passed"] is True


def test_two_containers_have_two_vms(runtime: Runtime, tmp_path: Path) -> None:
    runtime.configure(EDU)
    bundles = [str(tmp_path / name) for name in ("b1", "b2")]
    for bundle in bundles:
        make_probe_bundle(bundle, group=("/dev/vfio/5", 511, 5))
    running = [
        runtime.start("run", "--bundle", bundle, f"c{n}", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        for n, bundle in enumerate(bundles)
    ]
    for process in running:
        output, _ = process.communicate(timeout=patience(30))
        assert json.loads(output)["passed"] is True
        assert process.returncode == 0
