"""The mode guest-kernel: a driver of the guest uses the device, and the container has no VFIO node of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import UNLIMITED, add_devices, make_bundle, write
from tests.support.netns import Namespace, cable
from tests.support.pod_bundles import FOREVER
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

GROUPS = '[emulated]\n5 = ["e1000e"]\n6 = ["nvme"]\n7 = ["edu"]\n'


def bundle(directory: Path, *groups: int, annotations: dict[str, str], uid: int = 0) -> str:
    path = str(directory / "bundle")
    spec = make_bundle(path, FOREVER, rlimits=[UNLIMITED])
    add_devices(spec, [("/dev/vfio/vfio", 10, 196), *((f"/dev/vfio/{group}", 511, group) for group in groups)])
    for device in spec["linux"]["devices"]:
        device |= {"fileMode": 0o666, "uid": uid, "gid": uid}
    spec["annotations"] = annotations
    write(path, spec)
    return path


@pytest.mark.parametrize("where", ["annotation", "configuration"])
def test_nic_is_an_interface_and_disk_is_a_block_device(runtime: Runtime, tmp_path: Path, where: str) -> None:
    by_annotation = where == "annotation"
    runtime.configure(GROUPS + ("" if by_annotation else '[devices]\nmode = "guest-kernel"\n'))
    annotations = {"hawse.device-mode": "guest-kernel"} if by_annotation else {}
    runtime.run_detached(bundle(tmp_path, 5, 6, annotations=annotations, uid=7), "c1")
    state = runtime.state("c1")
    nic, disk = state["vfio"]
    [interface] = nic["interfaces"]
    assert (nic["guest"]["driver"], disk["guest"]["driver"]) == ("e1000e", "nvme")
    assert "/dev/nvme0n1" in disk["nodes"]
    names = json.loads(state["annotations"]["hawse.guest-devices"])
    assert names[nic["guest"]["address"]][0] == interface
    assert "nvme0n1" in names[disk["guest"]["address"]]

    def shell(script: str) -> str:
        result = runtime("exec", "c1", "/bin/sh", "-c", script)
        assert result.code == 0, result
        return result.output

    address = nic["guest"]["address"]
    assert shell(f"ls /sys/bus/pci/devices/{address}/net").split() == [interface]
    assert nic["guest"]["driver"] in shell(f"busybox readlink /sys/class/net/{interface}/device/driver")
    assert shell("ls -ln /dev/nvme0n1").split()[:4:2] == ["brw-rw-rw-", "7"]
    assert shell("dd if=/dev/nvme0n1 bs=4096 count=16 2>/dev/null | wc -c").split() == ["65536"]
    assert shell("ls -d /dev/vfio 2>/dev/null || echo none").split() == ["none"]
    table: list[dict[str, Any]] = json.loads(shell("cat /dev/hawse/devices.json"))
    assert table == state["vfio"]
    for verb in ("attach", "detach"):
        refused = runtime(verb, "c1", "7" if verb == "attach" else "5")
        assert (refused.code, "none can be attached or detached while" in refused.errors) == (1, True), refused


def test_nic_gets_another_name_than_the_interface_of_the_engine(runtime: Runtime, tmp_path: Path) -> None:
    runtime.configure(GROUPS)
    path = bundle(tmp_path, 5, annotations={"hawse.device-mode": "guest-kernel"})
    with Namespace() as inside, Namespace() as outside:
        cable(inside, outside, "eth0", net=1)
        spec = json.loads(Path(f"{path}/config.json").read_text())
        for namespace in spec["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = inside.path
        write(path, spec)
        runtime.run_detached(path, "c1")
        [interface] = runtime.state("c1")["vfio"][0]["interfaces"]
        drivers = "for i in eth0 $(ls /sys/class/net); do busybox readlink /sys/class/net/$i/device/driver; done"
        shown = runtime("exec", "c1", "/bin/sh", "-c", f"ls /sys/class/net; {drivers}").output.split()
        assert runtime("delete", "--force", "c1").code == 0
    assert interface.startswith("enp")
    assert sorted(shown[:3]) == sorted(["eth0", interface, "lo"])
    assert [os.path.basename(driver) for driver in shown[3:]] == [
        "virtio_net", *(["e1000e", "virtio_net"] if interface < "eth0" else ["virtio_net", "e1000e"])
    ]  # fmt: skip


def test_device_without_a_driver_in_the_guest_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    runtime.configure(GROUPS)
    path = bundle(tmp_path, 7, annotations={"hawse.device-mode": "guest-kernel"})
    refused = runtime("create", "--bundle", path, "c1")
    assert refused.code == 1
    assert "no driver of the guest kernel binds to the device: no module matches it" in refused.errors


def test_unknown_mode_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    runtime.configure(GROUPS)
    refused = runtime("create", "--bundle", bundle(tmp_path, 7, annotations={"hawse.device-mode": "both"}), "c1")
    assert "annotations: hawse.device-mode: 'both' is unknown [known: vfio, guest-kernel]" in refused.errors
