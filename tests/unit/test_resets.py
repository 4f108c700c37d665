"""Groups that nothing can reset are refused; those that only a reset of their bus resets are warned of."""

from __future__ import annotations

from pathlib import Path

import pytest

from hawse.container.devices import check_host
from hawse.container.options import DeviceOptions
from hawse.errors import DeviceError
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
    """The functions that have group 7 refused, and the warning without its end."""
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
        ("bus", PORT, "", f"a reset of the bus alone resets {A}"),
        ("cxl_bus", PORT, "", f"a reset of the bus alone resets {A}"),
        ("", PORT, A, f"nothing can reset {A}"),  # its methods were taken from it
        ("none", PORT, A, f"nothing can reset {A}"),  # a flag of the kernel's forbids a reset of its bus
        ("none", "", A, f"nothing can reset {A}"),
        (None, "", "", ""),  # before Linux 5.15, which does not list the methods
    ],
)
def test_a_function_alone_on_its_bus(
    host: FakeSysfs, methods: str | None, behind: str, refused: str, warning: str
) -> None:
    host.function(A, group=7, behind=behind, resets=methods)
    assert verdict(host) == (refused, warning)


@pytest.mark.parametrize(
    ("methods", "behind", "refused", "warning"),
    [
        (("flr", "pm"), PORT, "", ""),
        (("flr", "none"), PORT, "", f"a reset of the bus alone resets {B}"),
        (("bus", "none"), PORT, "", f"a reset of the bus alone resets {A}, {B}"),  # "bus" of the first is not to be had
        (("flr", "none"), "", B, f"nothing can reset {B}"),  # a root bus has no bridge that could reset it
        (("bus", "none"), "", f"{A}, {B}", f"nothing can reset {A}, {B}"),
    ],
)
def test_all_functions_of_a_bus_in_one_group(
    host: FakeSysfs, methods: tuple[str, str], behind: str, refused: str, warning: str
) -> None:
    """VFIO resets a bus whose functions are all its own."""
    for address, text in zip((A, B), methods, strict=True):
        host.function(address, group=7, behind=behind, resets=text)
    assert verdict(host) == (refused, warning)


@pytest.mark.parametrize(("methods", "refused"), [("flr", ""), ("bus", A), ("none", A)])
def test_a_bus_with_functions_of_other_groups(host: FakeSysfs, methods: str, refused: str) -> None:
    """A reset of the bus would reset others' devices."""
    host.function(A, group=7, behind=PORT, resets=methods)
    host.function(OTHER, group=8, behind=PORT)
    assert verdict(host)[0] == refused


def test_a_bridge_on_the_bus_keeps_it_from_being_reset(host: FakeSysfs) -> None:
    host.function(A, group=7, behind=PORT, resets="none")
    host.function(B, group=7, behind=PORT, class_code=0x060400, driver="pcieport")
    assert verdict(host)[0] == A


@pytest.mark.parametrize("managed", [False, True])
def test_create_and_the_list_of_devices_refuse_it_unless_it_is_accepted(host: FakeSysfs, managed: bool) -> None:
    """Before anything is bound."""
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
