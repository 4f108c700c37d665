"""The choice of the VFIO driver of a function."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.errors import DeviceError, HostError
from hawse.vfio.bind.variants import GENERIC, check_denylist, choose, installed, module_for, provide
from tests.support.sysfs import FakeSysfs

ADDRESS = "0000:3b:00.0"
MODALIAS = "pci:v000015B3d0000101Esv000015B3sd00000058bc02sc00i00"
EXACT = "alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci"
WIDE = "alias vfio_pci:v000015B3d*sv*sd*bc*sc*i* wide_vfio_pci"
ANY = "alias vfio_pci:v*d*sv*sd*bc*sc*i* any_vfio_pci"


@pytest.mark.parametrize(
    ("lines", "module"),
    [
        ([], GENERIC),
        ([EXACT], "mlx5_vfio_pci"),
        ([ANY, WIDE, EXACT], "mlx5_vfio_pci"),
        ([EXACT, WIDE, ANY], "mlx5_vfio_pci"),
        ([ANY], "any_vfio_pci"),
        ([WIDE.replace("15B3", "8086")], GENERIC),
        ([EXACT.replace("15B3", "15b3")], GENERIC),
        (["alias pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core"], GENERIC),
        (["alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*"], GENERIC),
        (["# a comment", "", "alias"], GENERIC),
    ],
    ids=["none", "one", "fewest last", "fewest first", "any", "another's", "case", "native", "short", "no alias"],
)
def test_line_with_the_fewest_wildcards_wins(lines: list[str], module: str) -> None:
    assert choose(MODALIAS, lines) == module


@given(st.lists(st.text().map(lambda text: f"alias vfio_pci:{text} m"), max_size=5))
def test_any_pattern_is_accepted(lines: list[str]) -> None:
    assert choose(MODALIAS, lines) in (GENERIC, "m")


@pytest.fixture
def host(tmp_path: Path) -> FakeSysfs:
    """A function without a driver."""
    fake = FakeSysfs(str(tmp_path))
    fake.function(ADDRESS, group=5, driver="")
    fake.write(f"sys/bus/pci/devices/{ADDRESS}/modalias", f"{MODALIAS}\n")
    return fake


def test_modules_alias_of_the_kernel_release_is_read(host: FakeSysfs) -> None:
    assert module_for(ADDRESS, root=host.root, release="6.1") == GENERIC
    native = "alias pci:v0000*d*sv*sd*bc*sc*i* native\n" * 10_000
    host.write("lib/modules/6.1/modules.alias", f"{native}{EXACT}\n{native}")
    assert module_for(ADDRESS, root=host.root, release="6.1") == "mlx5_vfio_pci"
    assert module_for(ADDRESS, root=host.root, release="6.2") == GENERIC


@pytest.mark.parametrize("length", [4096, 8192])
def test_overlong_line_is_skipped_completely(host: FakeSysfs, length: int) -> None:
    """No part of it is used, not even one that looks like an alias where reading stopped."""
    long = "alias vfio_pci:".ljust(length, "y") + EXACT
    host.write("lib/modules/6.1/modules.alias", f"{long}\n{WIDE}")
    assert module_for(ADDRESS, root=host.root, release="6.1") == "wide_vfio_pci"
    host.write("lib/modules/6.1/modules.alias", long)
    assert module_for(ADDRESS, root=host.root, release="6.1") == GENERIC


def test_unreadable_file_names_the_device(host: FakeSysfs) -> None:
    host.write("lib/modules/6.1/modules.alias/x", "")
    with pytest.raises(DeviceError, match=r"0000:3b:00\.0: its VFIO driver cannot be looked up .* Is a directory"):
        module_for(ADDRESS, root=host.root, release="6.1")


@pytest.mark.parametrize(
    ("name", "driver"),
    [("vfio-pci", "vfio-pci"), ("vfio_pci", "vfio-pci"), ("mlx5-vfio-pci", "mlx5_vfio_pci"), ("vfio", "")],
)
def test_driver_is_found_by_the_name_of_its_module(host: FakeSysfs, name: str, driver: str) -> None:
    for loaded in ("e1000e", "mlx5_vfio_pci", "vfio-pci"):
        host.driver(loaded)
    assert installed(name, root=host.root) == driver


def test_driver_is_loaded_only_if_needed(host: FakeSysfs) -> None:
    loaded: list[str] = []

    def load(name: str, _seconds: float) -> str:
        loaded.append(name)
        host.driver("vfio-pci")
        return ""

    for _ in range(2):
        assert provide("vfio_pci", ADDRESS, load=load, seconds=1, root=host.root) == "vfio-pci"
    assert loaded == ["vfio_pci"]


def test_modprobe_that_succeeds_without_a_driver_is_an_error(host: FakeSysfs) -> None:
    with pytest.raises(HostError, match=r"0000:3b:00\.0: the kernel has no PCI driver vfio-pci$") as caught:
        provide("vfio-pci", ADDRESS, load=lambda _name, _seconds: "", seconds=1, root=host.root)
    assert "modprobe vfio-pci" in caught.value.hint


@pytest.mark.parametrize(
    ("vendor", "device", "parameter", "refused"),
    [
        (0x8086, 0x37C8, None, True), (0x8086, 0x37C8, "N", True), (0x8086, 0x37C8, "Y", False),
        (0x8086, 0x0B25, None, True), (0x8086, 0x0CFE, None, True), (0x8086, 0x0443, None, True),
        (0x8086, 0x10D3, None, False), (0x1234, 0x37C8, None, False),
    ],
)  # fmt: skip
def test_denylist_of_the_kernel_applies(
    host: FakeSysfs, vendor: int, device: int, parameter: str | None, refused: bool
) -> None:
    host.write(f"sys/bus/pci/devices/{ADDRESS}/vendor", f"{vendor:#06x}\n")
    host.write(f"sys/bus/pci/devices/{ADDRESS}/device", f"{device:#06x}\n")
    if parameter:
        host.write("sys/module/vfio_pci/parameters/disable_denylist", f"{parameter}\n")
    if not refused:
        check_denylist(ADDRESS, root=host.root)
        return
    with pytest.raises(DeviceError, match=f"vfio-pci refuses a 8086:{device:04x}") as caught:
        check_denylist(ADDRESS, root=host.root)
    assert "disable_denylist=1" in caught.value.hint
