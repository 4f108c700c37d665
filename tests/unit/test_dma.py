"""The host's limit of DMA mappings, and the width of its IOMMUs."""

from __future__ import annotations

import fcntl
import os

import pytest

from hawse.linux import mounts
from hawse.vfio.host import dma_mappings, dma_width
from tests.support.shares import in_namespace
from tests.support.sysfs import FakeSysfs

DEFAULT = 65535
PATH = "sys/module/vfio_iommu_type1/parameters/dma_entry_limit"


@pytest.fixture
def host(tmp_path: os.PathLike[str]) -> FakeSysfs:
    return FakeSysfs(str(tmp_path))


@pytest.mark.parametrize(("memory_mib", "entries"), [(0, 65535), (1024, 393215), (65536, 21037055)])
def test_limit_is_enough_for_each_page_of_the_guest(memory_mib: int, entries: int) -> None:
    assert dma_mappings.entries(memory_mib) == entries
    assert entries >= memory_mib * 256 + DEFAULT


@pytest.mark.parametrize(("limit", "needed", "after"), [(DEFAULT, 100_000, 100_000), (200_000, 100_000, 200_000)])
def test_limit_is_raised_and_never_lowered(host: FakeSysfs, limit: int, needed: int, after: int) -> None:
    host.write(PATH, f"{limit}\n")
    os.makedirs(f"{host.root}/run")
    dma_mappings.try_to_raise([0, needed, 70_000], root=host.root)
    assert dma_mappings.limit(root=host.root) == after


def test_lock_on_the_parameter_by_a_user_does_not_block(host: FakeSysfs) -> None:
    """Every user can open the parameter for reading, and so lock it (flock(2))."""
    host.write(PATH, f"{DEFAULT}\n")
    os.makedirs(f"{host.root}/run")
    with open(f"{host.root}/{PATH}") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        dma_mappings.try_to_raise([100_000], root=host.root)
    assert dma_mappings.limit(root=host.root) == 100_000
    assert os.stat(f"{host.root}/run/hawse.dma").st_mode & 0o777 == 0o600


def test_devices_without_mappings_do_not_change_the_limit(host: FakeSysfs) -> None:
    host.write(PATH, f"{DEFAULT}\n")
    for numbers in ([], [0], [0, 0]):
        dma_mappings.try_to_raise(numbers, root=host.root)
    assert dma_mappings.limit(root=host.root) == DEFAULT


def test_host_without_the_module_has_no_limit(host: FakeSysfs) -> None:
    assert dma_mappings.limit(root=host.root) == -1
    assert dma_mappings.warning(10**9, root=host.root) == ""
    dma_mappings.try_to_raise([10**9], root=host.root)
    assert not os.path.exists(dma_mappings.parameter(root=host.root))


def test_limit_that_can_be_raised_or_is_high_enough_needs_no_warning(host: FakeSysfs) -> None:
    host.write(PATH, f"{DEFAULT}\n")
    assert dma_mappings.warning(10**9, root=host.root) == ""
    assert dma_mappings.warning(DEFAULT, root=host.root) == ""


def test_limit_that_cannot_be_raised_is_a_warning(host: FakeSysfs) -> None:
    """For example in a container with a read-only sysfs."""
    host.write(PATH, f"{DEFAULT}\n")

    def act() -> str:
        mounts.mount(host.root, host.root, "", mounts.BIND)
        mounts.mount("none", host.root, "", mounts.REMOUNT | mounts.BIND | mounts.RDONLY)
        return dma_mappings.warning(100_000, root=host.root)

    warning = in_namespace(act)
    assert "maps more than 65535 pages for its device will lose DMA" in warning
    assert f"`echo 100000 > {host.root}/{PATH}`" in warning


INTEL = "sys/class/iommu/dmar{}/intel-iommu/cap"
#: Capability registers of a server with four levels, a desktop with three, and QEMU with either.
FOUR, THREE, QEMU_48, QEMU_39 = "8d2078c106f0466", "1c0000c40660462", "d2008c222f0686", "d2008c22260286"


@pytest.mark.parametrize(
    ("units", "bits", "guest"),
    [
        ([], 48, 48),
        ([FOUR], 48, 48),
        ([QEMU_48], 48, 48),
        ([QEMU_39], 39, 39),
        ([THREE], 39, 39),
        ([FOUR, QEMU_39], 39, 39),
        (["nonsense"], 48, 48),
    ],
)
def test_viommu_is_as_wide_as_the_narrowest_iommu_of_the_host(
    host: FakeSysfs, units: list[str], bits: int, guest: int
) -> None:
    for number, register in enumerate(units):
        host.write(INTEL.format(number), f"{register}\n")
    host.write("sys/class/iommu/ivhd0/amd-iommu/features", "246577efa2254afa\n")
    assert dma_width.address_bits(root=host.root) == bits
    assert dma_width.guest_bits(root=host.root) == guest
    warning = dma_width.warning(root=host.root)
    assert bool(warning) == (bits < 48)
    if warning:
        assert warning.startswith(
            f"the host's IOMMU has {bits} address bits: mapping memory for DMA at an IOVA of 2^39"
        )
