"""An attach locks no memory: the guest's IOMMU domains are translated, so only mapped memory is pinned."""

from __future__ import annotations

import os

import pytest

from tests.lab.host import Lab
from tests.lab.steps import EDU, RUNTIME, SECONDS, configure, group_of
from tests.support.programs import compiled_file

pytestmark = pytest.mark.lab

MIB = 16
_BUNDLE = """
import shutil, sys
from hawse.vfio import sysfs
from tests.support.bundles import UNLIMITED, add_devices, make_bundle, write
directory, address, program = sys.argv[1:]
group = sysfs.iommu_group(address)
spec = make_bundle(directory, ["/bin/sleep", "100000"], rlimits=[UNLIMITED])
shutil.copy(program, f"{directory}/rootfs/bin/map")
add_devices(spec, [("/dev/vfio/vfio", 10, 196), (f"/dev/vfio/{group}", *sysfs.group_numbers(group))])
write(directory, spec)
"""
_LOCKED = """
from tests.support.processes import all_pids, status_of
for status in map(status_of, all_pids()):
    if status.get("Name", "").startswith("qemu-system"):
        print(status["VmLck"].split()[0])
"""


def locked_kib(lab: Lab) -> int:
    result = lab.python(_LOCKED)
    assert result.code == 0, result
    return int(result.output)


def test_attach_locks_no_memory_and_a_mapping_locks_its_size(lab: Lab) -> None:
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "probe", "map.c")
    program = compiled_file(source)
    bundle = "/run/locked"
    created = lab.python(_BUNDLE, bundle, EDU, program)
    configure(lab)
    assert created.code == 0, created.errors
    started = lab.run([*RUNTIME, "run", "--detach", "--bundle", bundle, "locked"], timeout=SECONDS)
    assert started.code == 0, started
    try:
        assert locked_kib(lab) <= 1024, "of a guest of a gibibyte"
        functions = "/sys/kernel/iommu_groups/*/devices/*"
        script = (
            f"for f in {functions}; do [ $(cat $f/vendor) = 0x1234 ] && address=${{f##*/}}; done;"
            f"(sleep 100000 | map /dev/vfio/{group_of(lab, EDU)} {MIB} $address >/tmp/said) &"
            "until grep -q mapped /tmp/said; do sleep 1; done"
        )
        mapped = lab.run([*RUNTIME, "exec", "locked", "/bin/sh", "-c", script], timeout=SECONDS)
        assert mapped.code == 0, mapped
        assert locked_kib(lab) >= MIB * 1024
    finally:
        lab.run([*RUNTIME, "delete", "--force", "locked"], timeout=300)
