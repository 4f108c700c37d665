"""Block devices of the host in containers, with loop devices, compared with runc."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles import drop_cgroups, make_bundle, write
from tests.support.loops import PARTITION, Loop, add_disk, allow_disk, loop_devices
from tests.support.pod_bundles import FOREVER, role
from tests.support.runtime import Runtime
from tests.support.subprocesses import run

pytestmark = pytest.mark.vm

SHOW = """
for path in /dev/xvda /dev/part /srv/below /dev/bound /dev/denied /dev/closed; do
    echo $path $(stat -c '%F %a %u %g' $path)
done
for path in /dev/xvda /dev/part /srv/below /dev/bound; do
    echo $path $(blockdev --getsize64 $path) $(blockdev --getss $path) $(head -c 11 $path)
done
echo synced | dd of=/dev/xvda bs=4096 seek=1 conv=fsync 2>&1 | grep -c out
echo cached > /dev/part
echo bound 1<> /dev/bound
dd if=/dev/zero of=/srv/below bs=512 count=1
dd if=/dev/denied of=/dev/null bs=512 count=1
dd if=/dev/closed of=/dev/null bs=512 count=1
true
"""


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[list[Loop]]:
    """Six loop devices: one with sectors of 4096 bytes, one with a partition, one read-only."""
    with loop_devices(str(tmp_path), ["--sector-size=4096"], ["--partscan"], [], [], [], ["--read-only"]) as devices:
        yield devices


def test_program_sees_the_same_disks_as_with_runc(runtime: Runtime, tmp_path: Path, loops: list[Loop]) -> None:
    """Device rules decide whether a disk can be written, read or not opened. Written data is on the host."""
    large, divided, readable, bound, denied, closed = loops
    bundle = str(tmp_path / "bundle")
    spec = make_bundle(bundle, ["/bin/sh", "-c", SHOW])
    add_disk(spec, "/dev/xvda", large, "rwm", fileMode=0o640)
    add_disk(spec, "/dev/part", divided.partition(1), "rw", uid=5, gid=6, fileMode=0o666)
    add_disk(spec, "/srv/below", readable, "r")
    add_disk(spec, "/dev/denied", denied, "m")
    add_disk(spec, "/dev/closed", closed, "r")
    allow_disk(spec, closed, "r")
    allow_disk(spec, bound, "rw")
    # The rules for a bound node are those for a node.
    source = {"destination": "/dev/bound", "type": "bind", "source": f"/dev/{bound.name}", "options": ["rbind"]}
    drop_cgroups(spec, namespace=True)
    spec["mounts"].append(source)
    write(bundle, spec)
    for loop, offset in ((large, 0), (divided, PARTITION), (readable, 0), (bound, 0)):
        loop.fill(offset, b"of the host")
    result = runtime("run", "--bundle", bundle, "c1")
    assert (result.code, [loop.holders() for loop in loops]) == (0, [set()] * len(loops)), result
    assert large.read(4096, 7) == b"synced\n"
    assert divided.read(PARTITION, 7) == b"cached\n", "with the container's end all is on the device"
    assert bound.read(0, 6) == b"bound\n"
    shutil.rmtree(f"{bundle}/rootfs/srv")  # a mount point, but a node with runc
    for loop, offset in ((divided, PARTITION), (bound, 0)):
        loop.fill(offset, b"of the host")
    runc = run(["runc", "--root", f"{tmp_path}/runc", "run", "--bundle", bundle, f"c{os.getpid()}"], seconds=30)
    assert (result.output, result.errors) == (runc.output, runc.errors)
    assert "/dev/xvda block special file 640 0 0" in result.output
    assert result.errors.count("Operation not permitted") == 2


def bundle_of(directory: Path, name: str, script: str, *disks: tuple[Loop, str]) -> str:
    """A bundle of a container of the pod, with disks at /dev/disk0 and so on."""
    path = str(directory / name)
    spec = make_bundle(path, ["/bin/sh", "-c", script])
    for number, (loop, access) in enumerate(disks):
        add_disk(spec, f"/dev/disk{number}", loop, access)
    spec["annotations"] = role(name)
    write(path, spec)
    return path


def test_containers_of_a_pod_share_disks_and_release_them(runtime: Runtime, tmp_path: Path, loops: list[Loop]) -> None:
    """Data that one container writes is read by the other at once. A disk is unplugged with its last container."""
    disk, other = loops[2], loops[3]
    runtime.run_detached(bundle_of(tmp_path, "pod", FOREVER[-1]), "pod")
    runtime.run_detached(bundle_of(tmp_path, "one", FOREVER[-1], (disk, "rw"), (other, "r")), "one")
    runtime.run_detached(bundle_of(tmp_path, "two", FOREVER[-1], (disk, "r")), "two")
    assert runtime("exec", "one", "/bin/sh", "-c", "echo shared 1<> /dev/disk0").code == 0
    assert runtime("exec", "two", "head", "-c", "7", "/dev/disk0").output == "shared\n"
    refused = runtime("exec", "two", "/bin/sh", "-c", "echo x 1<> /dev/disk0")
    assert "Operation not permitted" in refused.errors
    # A node with the number of the other container's disk: each container has its own rules.
    major, minor = runtime("exec", "one", "stat", "-c", "%t %T", "/dev/disk1").output.split()
    script = f"mknod /dev/x b {int(major, 16)} {int(minor, 16)}; head -c 1 /dev/x"
    assert "not permitted" in runtime("exec", "--cap", "CAP_MKNOD", "two", "/bin/sh", "-c", script).errors
    assert disk.holders() == other.holders() == {"qemu-system-x86"}
    assert runtime("delete", "--force", "one").code == 0
    assert (disk.holders(), other.holders()) == ({"qemu-system-x86"}, set())
    assert runtime("delete", "--force", "two").code == 0
    assert disk.holders() == set()
    missing = bundle_of(tmp_path, "three", FOREVER[-1], (disk, "rw"), (loops[4], "r"))
    os.truncate(loops[4].file, 0)
    run(["losetup", "--set-capacity", f"/dev/{loops[4].name}"], seconds=10)
    failed = runtime("create", "--bundle", missing, "three")
    assert f"linux.devices: /dev/disk1: {loops[4].name}" in failed.errors
    assert "is empty: its size is 0" in failed.errors
    assert disk.holders() == set()
    assert runtime("delete", "--force", "pod").code == 0


def test_privileged_container_does_not_get_the_devices_of_the_host(
    runtime: Runtime, tmp_path: Path, loops: list[Loop]
) -> None:
    """Its device list is the whole /dev of the host, as engines write it. One warning names the omitted devices."""
    bundle = str(tmp_path / "bundle")
    spec = make_bundle(bundle, ["/bin/sh", "-c", "ls /dev; head -c 2 /dev/zero | od -An -tx1"])
    nodes = [("/dev/null", "c", 1, 3), ("/dev/zero", "c", 1, 5), ("/dev/full", "c", 1, 7), ("/dev/tty", "c", 5, 0)]
    nodes += [("/dev/fuse", "c", 10, 229), ("/dev/kvm", "c", 10, 232), ("/dev/mem", "c", 1, 1)]
    nodes += [(f"/dev/tty{n}", "c", 4, n) for n in range(8)]
    nodes += [("/dev/sdx", "b", *loops[2].numbers), ("/dev/ttyS0", "c", 4, 64)]
    spec["linux"]["devices"] = [
        {"path": path, "type": kind, "major": major, "minor": minor} for path, kind, major, minor in nodes
    ]
    spec["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    write(bundle, spec)
    result = runtime("run", "--bundle", bundle, "c1", log=True)
    assert result.code == 0, result
    assert " 00 00" in result.output
    assert "fuse" in result.output.split()
    assert not {"kvm", "mem", "sdx", "tty1", "ttyS0"} & set(result.output.split())
    with open(runtime.log) as file:
        [warning] = [line["msg"] for line in map(json.loads, file) if "linux.devices" in line["msg"]]
    for path in ("/dev/kvm", "/dev/mem", "/dev/ttyN (8 nodes)", "/dev/ttyS0", "/dev/sdx"):
        assert path in warning
    assert loops[2].holders() == set()
