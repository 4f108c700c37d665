"""If VFIO passes devices without interrupt remapping, hawse refuses them unless the configuration accepts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hawse.errors import DeviceError
from hawse.planner.devices.device_options import DeviceOptions
from hawse.planner.devices.group_checks import check_host
from hawse.vfio import interrupts, inventory
from hawse.vfio.groups import read_group
from hawse.vfio.obstacles import Accepted
from tests.support.sysfs import FakeSysfs

A = "0000:3b:00.0"
#: Extended capability registers of an IOMMU that can remap interrupts, and of one that cannot.
CAN, CANNOT = "f00f5a", "f00f52"
TYPE1, IOMMUFD = interrupts.MODULES


def make(directory: Path, parameters: dict[str, str], chips: list[str], *capabilities: str) -> FakeSysfs:
    """A host with group 7 and these values of allow_unsafe_interrupts, interrupt controllers and IOMMUs."""
    host = FakeSysfs(str(directory))
    host.function(A, group=7)
    for module, value in parameters.items():
        host.write(f"sys/module/{module}/parameters/allow_unsafe_interrupts", f"{value}\n")
    for number, chip in enumerate(chips):
        host.write(f"sys/kernel/irq/{number}/chip_name", f"{chip}\n")
    for number, ecap in enumerate(capabilities):
        host.write(f"sys/class/iommu/dmar{number}/intel-iommu/ecap", f"{ecap}\n")
    return host


@pytest.mark.parametrize(
    ("chips", "capabilities", "expected"),
    [
        (["IR-IO-APIC", "DMAR-MSI"], [CAN], True),
        (["PCI-MSIX-0000:00:02.0", "IR-PCI-MSIX-0000:3b:00.0"], [], True),
        (["vIR-PCI-MSI-0000:3b:00.0"], [], True),
        (["IO-APIC", "PCI-MSI"], [CAN], False),
        (["PCI-MSI"], [CAN, CANNOT], False),
        (["PCI-MSI"], [CAN, CAN], None),
        ([], [], None),
        (["GICv3"], ["nonsense"], None),
    ],
)
def test_remapping_is_recognized_by_the_names_of_controllers(
    tmp_path: Path, chips: list[str], capabilities: list[str], expected: bool | None
) -> None:
    assert interrupts.remapped(root=make(tmp_path, {}, chips, *capabilities).root) is expected


@pytest.mark.parametrize(
    ("parameters", "chips", "refused"),
    [
        ({TYPE1: "N", IOMMUFD: "N"}, ["IO-APIC"], ""),  # VFIO refuses it itself
        ({}, [], ""),
        ({TYPE1: "Y"}, ["IR-IO-APIC"], ""),  # without effect
        ({TYPE1: "Y"}, ["IO-APIC"], "this host does not remap interrupts"),
        ({TYPE1: "N", IOMMUFD: "Y"}, ["IO-APIC"], "this host does not remap interrupts"),
        ({TYPE1: "Y"}, [], "sysfs does not show whether this host remaps interrupts"),
        ({IOMMUFD: "Y"}, ["GICv3"], "sysfs does not show whether this host remaps interrupts"),
    ],
)
def test_group_on_a_host_that_allows_unsafe_interrupts(
    tmp_path: Path, parameters: dict[str, str], chips: list[str], refused: str
) -> None:
    host = make(tmp_path, parameters, chips)
    group = read_group(7, root=host.root)
    interrupts.check(group.number, [A], accepted=True, root=host.root)
    if not refused:
        interrupts.check(group.number, [A], accepted=False, root=host.root)
        return
    with pytest.raises(DeviceError) as caught:
        interrupts.check(group.number, [A], accepted=False, root=host.root)
    module = next(name for name in interrupts.MODULES if parameters.get(name) == "Y")
    assert caught.value.message.startswith(
        f"group 7 ({A}) cannot be passed: {refused}, and allow_unsafe_interrupts of "
    )
    assert f"the module {module} " in caught.value.message
    assert "devices.unsafe_interrupts = true" in caught.value.hint


@pytest.mark.parametrize("managed", [False, True])
def test_create_and_devices_refuse_unsafe_interrupts_unless_accepted(tmp_path: Path, managed: bool) -> None:
    """The refusal comes before anything is bound."""
    host = make(tmp_path, {TYPE1: "Y"}, ["IO-APIC"])
    host.node(7, 511, 0)
    group = read_group(7, root=host.root)
    with pytest.raises(DeviceError, match="does not remap interrupts"):
        check_host([group], DeviceOptions(managed=managed), root=host.root)
    [listing] = inventory.read(root=host.root, holders=lambda _: [])
    assert "does not remap interrupts" in listing.refusal
    accepted = Accepted(unsafe_interrupts=True)
    check_host([group], DeviceOptions(managed=managed, accepted=accepted), root=host.root)
    [listing] = inventory.read(root=host.root, holders=lambda _: [], accepted=accepted)
    assert listing.refusal == ""
