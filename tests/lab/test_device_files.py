"""A host with VFIO's device files: /dev/iommu and /dev/vfio/devices/vfioN, under runc and under hawse.

The guests run the kernel of the lab, which supports device files, in a QEMU that supports iommufd.
"""

from __future__ import annotations

import json

import pytest

from tests.lab.host import Lab
from tests.lab.steps import (
    EDU,
    MACHINE,
    PAIR,
    SECONDS,
    configure,
    group_of,
    prove_unchanged,
    read_json,
    snapshot,
)
from tests.lab.steps import make_bundle as make_group_bundle
from tests.support.runtime import HAWSE
from tests.support.soak import rounds
from tests.support.suites import newer_qemu

pytestmark = pytest.mark.lab

ROUNDS = rounds(1, soak=200)
CONFIG = "/tmp/files.toml"
FILE, ALL = "/tmp/bundles/file", "/tmp/bundles/all"

_MAKE = """
import os, shutil, sys
from hawse.vfio import sysfs
from tests.support.bundles import UNLIMITED, add_devices, build_probe, make_bundle, make_probe_bundle, write
def device(path):
    status = os.stat(path)
    return path, os.major(status.st_rdev), os.minor(status.st_rdev)
lone, every = sys.argv[1:3]
files = [f"/dev/vfio/devices/vfio{sysfs.device_file(address)[0]}" for address in sys.argv[3:]]
make_probe_bundle(lone, group=device("/dev/vfio/vfio"), node=files[0], files=[device("/dev/iommu"), device(files[0])])
spec = make_bundle(every, ["/bin/sh", "-c", "while :; do sleep 3600; done"], rlimits=[UNLIMITED])
shutil.copy(build_probe("/tmp"), f"{every}/rootfs/bin/probe")
add_devices(spec, [device("/dev/iommu"), *map(device, files)])
write(every, spec)
print(*files)
"""
#: Prints the open nodes of VFIO of all processes, once for each descriptor.
_OPEN = """
from tests.support.processes import holders
open_nodes = holders(lambda target: target.startswith(("/dev/vfio", "/dev/iommu")))
print(*sorted(target for targets in open_nodes.values() for target in targets))
"""


@pytest.fixture(scope="module")
def files_lab(lab: Lab, same_kernel: str) -> Lab:
    """The lab with the configuration CONFIG, whose guest image and QEMU support device files."""
    config = f'[vm]\nqemu = "{newer_qemu()}"\n{MACHINE}{same_kernel}[template]\nenabled = false\n'
    lab.see_new_files()
    configure(lab, config, CONFIG)
    return lab


@pytest.fixture(scope="module")
def files(files_lab: Lab) -> list[str]:
    """The device files of the edu and of the pair. The bundles FILE and ALL name them."""
    result = files_lab.python(_MAKE, FILE, ALL, EDU, *PAIR)
    assert result.code == 0, result.errors
    return result.output.split()


def opened(lab: Lab) -> list[str]:
    """The nodes of VFIO that are open in the lab."""
    return lab.python(_OPEN).output.split()


def test_host_has_device_files_and_runc_passes_them(files_lab: Lab, files: list[str]) -> None:
    assert len(set(files)) == 3
    assert files_lab.run(["test", "-c", "/dev/iommu"]).code == 0
    by_file = files_lab.run(["runc", "run", "--bundle", FILE, "by-file"])
    assert by_file.code == 0, by_file
    assert read_json(by_file.output)["dma_matched"] is True
    by_group = files_lab.run(["runc", "run", "--bundle", make_group_bundle(files_lab, "group", EDU), "by-group"])
    assert by_group.code == 0, by_group


@pytest.mark.soak
def test_hawse_opens_device_files_and_container_has_those_of_the_guest(files_lab: Lab, files: list[str]) -> None:
    """With the edu, which does DMA, and with both functions of a group."""
    runtime = [HAWSE, "--config", CONFIG]
    expected = read_json(files_lab.run(["runc", "run", "--bundle", FILE, "expected"]).output)
    before = snapshot(files_lab)
    created = files_lab.run([*runtime, "create", "--bundle", ALL, "c1"], timeout=SECONDS)
    assert created.code == 0, created
    assert "device files" not in created.errors
    assert files_lab.run([*runtime, "start", "c1"]).code == 0
    assert opened(files_lab) == sorted(["/dev/iommu", "/dev/iommu", *files]), "one iommufd a group, no group's node"

    def probe(path: str) -> dict[str, object]:
        result = files_lab.run([*runtime, "exec", "c1", "/bin/probe", path], timeout=SECONDS)
        assert result.code == 0, result.output + result.errors
        return read_json(result.output)

    def nodes(address: str) -> list[str]:
        """The device files in the container. The path of the host is missing if the guest has another device there."""
        entries = json.loads(files_lab.run([*runtime, "state", "c1"]).output)["vfio"]
        [own] = [entry["nodes"] for entry in entries if entry["host"]["address"] == address]
        return [path for path in own if path.startswith("/dev/vfio/devices/")]

    seen = probe(nodes(EDU)[0])
    assert (seen["passed"], seen["dma_matched"], seen["interrupt_taken"]) == (True, True, True)
    assert {key for key in expected | seen if expected.get(key) != seen.get(key)} <= {"group", "node"}
    assert probe(f"/dev/vfio/{group_of(files_lab, EDU)}")["dma_matched"] is True
    assert {probe(path)["device"] for address in PAIR for path in nodes(address)} == {"10d3"}

    # In no round is the device lost, or a descriptor left in QEMU, which is confined and not root.
    assert int(files_lab.run(["sh", "-c", "stat -c %u /proc/$(pgrep qemu-system)"]).output) >= 2130706432
    for number in range(ROUNDS):
        result = files_lab.run([*runtime, "detach", "c1", EDU], timeout=SECONDS)
        assert result.code == 0, (number, result)
        assert opened(files_lab) == sorted(["/dev/iommu", *files[1:]]), number
        result = files_lab.run([*runtime, "attach", "c1", EDU], timeout=SECONDS)
        assert result.code == 0, (number, result)
        assert opened(files_lab) == sorted(["/dev/iommu", "/dev/iommu", *files]), number
    assert [probe(path)["dma_matched"] for path in nodes(EDU)] == [True] * len(nodes(EDU))

    refused = files_lab.run([*runtime, "create", "--bundle", FILE, "c2"], timeout=SECONDS)
    assert f"group {group_of(files_lab, EDU)} ({EDU}) is in use: " in refused.errors
    assert f"has /dev/vfio/{group_of(files_lab, EDU)}" in refused.errors
    assert files_lab.run([*runtime, "delete", "--force", "c1"], timeout=SECONDS).code == 0
    prove_unchanged(files_lab, before)
    assert opened(files_lab) == []


@pytest.mark.usefixtures("files")
def test_qemu_without_iommufd_is_refused_if_files_are_required(files_lab: Lab) -> None:
    text = '[devices]\nbackend = "iommufd"\n'
    files_lab.python("import sys; open('/tmp/old.toml', 'w').write(sys.argv[1])", text)
    result = files_lab.run([HAWSE, "--config", "/tmp/old.toml", "create", "--bundle", FILE, "c3"])
    assert result.code == 1
    assert f"group {group_of(files_lab, EDU)} cannot be passed by its device files: QEMU 7." in result.errors
