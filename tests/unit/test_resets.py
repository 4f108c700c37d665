"""Groups that nothing can reset are refused. There is a warning for groups that only a bus reset can reset."""

from __future__ import annotations

from pathlib import Path

import pytest

from hawse.errors import DeviceError
from hawse.planner.devices.device_options import DeviceOptions
from hawse.planner.devices.group_checks import check_host
from hawse.vfio import inventory, obstacles, resets
from hawse.vfio.groups import read_group
from hawse.vfio.obstacles import Accepted
from tests.support.sysfs import FakeSysfs

A, B, OTHER = "0000:3b:00.0", "0000:3b:00.1", "0000:3b:01.0"
PORT = "0000:00:1c.0"


@pytest.fixture
def host(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(str(tmp_path))


def verdict(host: FakeSysfs) -> tuple[str, str]:
    """The functions for which group 7 is refused, and the beginning of the warning."""
    group = read_group(7, root=host.root)
    refused = ""
    try:
        resets.check(group, accepted=False, root=host.root)
    except DeviceError as error:
        refused = error.message.removeprefix("group 7 cannot be passed: nothing can reset ").partition(": ")[0]
    resets.check(group, accepted=True, root=host.root)
    return refused, resets.warning(group, root=host.root).removeprefix("group 7: ").rpartition(":")[0]


@pytest.mark.parametrize(
    ("methods", "behind", "refused", "warning"),
    [
        ("flr bus", PORT, "", ""),
        ("pm", "", "", ""),
        ("device_specific", "", "", ""),
        ("bus", PORT, "", f"only a reset of the whole bus resets {A}"),
        ("cxl_bus", PORT, "", f"only a reset of the whole bus resets {A}"),
        ("", PORT, A, f"nothing can reset {A}"),  # the administrator has disabled its methods
        ("none", PORT, A, f"nothing can reset {A}"),  # a flag in the kernel forbids a reset of its bus
        ("none", "", A, f"nothing can reset {A}"),
        (None, "", "", ""),  # Linux before 5.15 does not list the methods
    ],
)
def test_only_function_on_its_bus(
    host: FakeSysfs, methods: str | None, behind: str, refused: str, warning: str
) -> None:
    host.function(A, group=7, behind=behind, resets=methods)
    assert verdict(host) == (refused, warning)


@pytest.mark.parametrize(
    ("methods", "behind", "refused", "warning"),
    [
        (("flr", "pm"), PORT, "", ""),
        (("flr", "none"), PORT, "", f"only a reset of the whole bus resets {B}"),
        (("bus", "none"), PORT, "", f"only a reset of the whole bus resets {A}, {B}"),  # the "bus" of the first fails
        (("flr", "none"), "", B, f"nothing can reset {B}"),  # a root bus has no bridge to reset it
        (("bus", "none"), "", f"{A}, {B}", f"nothing can reset {A}, {B}"),
    ],
)
def test_bus_with_functions_of_one_group(
    host: FakeSysfs, methods: tuple[str, str], behind: str, refused: str, warning: str
) -> None:
    """VFIO resets a bus if all of its functions are bound to VFIO drivers."""
    for address, text in zip((A, B), methods, strict=True):
        host.function(address, group=7, behind=behind, resets=text)
    assert verdict(host) == (refused, warning)


@pytest.mark.parametrize(("methods", "refused"), [("flr", ""), ("bus", A), ("none", A)])
def test_bus_with_functions_of_other_groups_cannot_be_reset(host: FakeSysfs, methods: str, refused: str) -> None:
    """A reset of the bus would also reset devices of other users."""
    host.function(A, group=7, behind=PORT, resets=methods)
    host.function(OTHER, group=8, behind=PORT)
    assert verdict(host)[0] == refused


def test_bus_with_a_bridge_cannot_be_reset(host: FakeSysfs) -> None:
    host.function(A, group=7, behind=PORT, resets="none")
    host.function(B, group=7, behind=PORT, class_code=0x060400, driver="pcieport")
    assert verdict(host)[0] == A


@pytest.mark.parametrize("managed", [False, True])
def test_create_and_devices_refuse_an_unresettable_group_unless_accepted(host: FakeSysfs, managed: bool) -> None:
    """The refusal comes before anything is bound."""
    host.function(A, group=7, behind=PORT, resets="none", driver="igb" if managed else "vfio-pci")
    host.node(7, 511, 0)
    group, options = read_group(7, root=host.root), DeviceOptions(managed=managed)
    with pytest.raises(DeviceError, match=f"nothing can reset {A}") as caught:
        obstacles.check(group, root=host.root)
    assert "devices.unresettable = true" in caught.value.hint
    with pytest.raises(DeviceError, match=f"nothing can reset {A}"):
        check_host([group], options, root=host.root)
    [listing] = inventory.read(root=host.root, holders=lambda _: [])
    assert (listing.refusal, listing.remedy) == (caught.value.message, caught.value.hint)
    accepted = Accepted(unresettable=True)
    warnings = check_host([group], DeviceOptions(managed=managed, accepted=accepted), root=host.root)
    assert f"group 7: nothing can reset {A}" in warnings[0]
    [listing] = inventory.read(root=host.root, holders=lambda _: [], accepted=accepted)
    assert "nothing can reset" not in listing.refusal
