"""Functions that drivers of the guest kernel use: they are bound, awaited, and described from sysfs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.agent.devices import hardware
from hawse.agent.devices.guest_drivers import bind_native, matching, nodes
from hawse.errors import DeviceError
from hawse.monitor.agent.calls import BindNative, read_answer
from tests.support.guest_kernel import FakeKernel, FakeUevents

ADDRESS = "0000:03:00.0"
PATH = f"sys/bus/pci/devices/{ADDRESS}"
STORAGE, DISPLAY, NETWORK = 0x010802, 0x030000, 0x020000
ALIASES = """# Aliases extracted from modules themselves.
alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e
alias pci:v00008086d000010D4sv*sd*bc*sc*i* other
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias pci:v*d*sv*sd*bc02sc*i* e1000e
alias pci:v*d*sv*sd*bc02sc*i* nonsense with words
alias pci:v*d*sv*sd*bc02sc*i* generic
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    kernel = FakeKernel(str(tmp_path / "root"))
    yield kernel
    kernel.close()


@pytest.fixture
def drivers(tmp_path: Path) -> str:
    """A directory of modules, all of which are built into the kernel."""
    (tmp_path / "drivers").mkdir()
    (tmp_path / "drivers/modules.dep").write_text("")
    (tmp_path / "drivers/modules.alias").write_text(ALIASES)
    return str(tmp_path / "drivers")


def bind(kernel: FakeKernel, drivers: str, *steps: Callable[[], None]) -> tuple[dict[str, Any], int]:
    """The answer, and the number of steps that were not reached."""
    uevents = FakeUevents(*steps)
    answer = bind_native(uevents, ADDRESS, drivers=drivers, seconds=20, root=kernel.root)
    read_answer(BindNative(address=ADDRESS, container="c1", seconds=20), answer)
    return answer, len(uevents.steps)


def add_node(kernel: FakeKernel, path: str, subsystem: str, name: str, numbers: str) -> None:
    """Give the function a device with a node."""
    major, _, minor = numbers.partition(":")
    text = f"MAJOR={major}\nMINOR={minor}\nDEVNAME={name}\n"
    kernel.write(f"{PATH}/{path}/dev", f"{numbers}\n")
    kernel.write(f"{PATH}/{path}/uevent", text)
    kernel.link(f"{PATH}/{path}/subsystem", f"{kernel.root}/sys/class/{subsystem}")


def test_function_that_appears_is_bound(kernel: FakeKernel, drivers: str) -> None:
    def appear() -> None:
        kernel.function(ADDRESS, group=3, driver="", class_code=DISPLAY)

    answer, left = bind(kernel, drivers, appear, lambda: kernel.bind(ADDRESS, "i915"), lambda: None)
    assert answer == {"driver": "i915", "interfaces": [], "nodes": []}
    assert kernel.probed() == [ADDRESS]
    assert left == 1, "a driver of another class is ready once it is bound"


def test_function_with_a_driver_is_not_probed(kernel: FakeKernel, drivers: str) -> None:
    kernel.function(ADDRESS, group=3, driver="i915", class_code=DISPLAY)
    answer, _ = bind(kernel, drivers)
    assert answer["driver"] == "i915"
    assert kernel.probed() == []


@pytest.mark.parametrize(
    ("code", "words"),
    [(DISPLAY, "no module matches it"), (NETWORK, "e1000e, generic did not bind to it")],
)
def test_function_without_a_matching_driver_is_an_error(
    kernel: FakeKernel, drivers: str, code: int, words: str
) -> None:
    device_id = 0x10D3 if code == NETWORK else 0x7777
    kernel.function(ADDRESS, group=3, driver="", class_code=code, device_id=device_id)
    kernel.attribute(ADDRESS, "modalias", f"pci:v00008086d{device_id:08X}sv00sd00bc{code >> 16:02X}sc00i00\n")
    with pytest.raises(DeviceError) as caught:
        bind(kernel, drivers)
    assert caught.value.message == f"{ADDRESS}: no driver of the guest kernel binds to the device: {words}"


def test_devices_that_a_probe_creates_are_awaited(
    kernel: FakeKernel, drivers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link to the driver exists from the beginning of a probe."""
    kernel.function(ADDRESS, group=3, driver="i915", class_code=DISPLAY)

    def finish(device: str) -> None:
        assert device == f"{kernel.root}/{PATH}"
        add_node(kernel, "drm/card0", "drm", "dri/card0", "226:0")

    monkeypatch.setattr(hardware, "await_probe", finish)
    assert bind(kernel, drivers)[0]["nodes"] == [node("dri/card0", "c", 226, 0)]


def test_disk_is_awaited(kernel: FakeKernel, drivers: str) -> None:
    """The character device of an NVMe controller appears first, its namespaces and their partitions later."""
    kernel.function(ADDRESS, group=3, driver="nvme", class_code=STORAGE)

    def scan() -> None:
        add_node(kernel, "nvme/nvme0/nvme0n1", "block", "nvme0n1", "259:0")
        add_node(kernel, "nvme/nvme0/nvme0n1/nvme0n1p1", "block", "nvme0n1p1", "259:1")

    answer, left = bind(
        kernel, drivers, lambda: add_node(kernel, "nvme/nvme0", "nvme", "nvme0", "241:0"), scan, lambda: None
    )
    assert answer["nodes"] == [node("nvme0", "c", 241, 0), node("nvme0n1", "b", 259, 0), node("nvme0n1p1", "b", 259, 1)]
    assert left == 1


def node(name: str, kind: str, major: int, minor: int) -> dict[str, Any]:
    return {"name": name, "kind": kind, "major": major, "minor": minor}


def test_disk_that_never_appears_is_not_an_error(kernel: FakeKernel, drivers: str) -> None:
    kernel.function(ADDRESS, group=3, driver="nvme", class_code=STORAGE)
    assert bind(kernel, drivers)[0] == {"driver": "nvme", "interfaces": [], "nodes": []}


def test_devices_without_a_node_are_reported_without_one(kernel: FakeKernel) -> None:
    kernel.function(ADDRESS, group=3, class_code=DISPLAY)
    kernel.write(f"{PATH}/uevent", "DRIVER=i915\n")
    kernel.write(f"{PATH}/i2c/dev", "89:0\n")
    kernel.write(f"{PATH}/hwmon/dev", "nonsense")
    kernel.write(f"{PATH}/hwmon/uevent", "DEVNAME=hwmon\nMAJOR=none\nMINOR=0\n")
    kernel.write(f"{PATH}/unnamed/dev", "1:2\n")
    kernel.write(f"{PATH}/unnamed/uevent", "MAJOR=1\nMINOR=2\n")
    add_node(kernel, "drm/card0", "drm", "dri/card0", "226:0")
    assert nodes(f"{kernel.root}/{PATH}") == [node("dri/card0", "c", 226, 0)]


def test_modules_with_matching_patterns_are_found_once(drivers: str) -> None:
    alias = "pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00"
    assert matching(alias, f"{drivers}/modules.alias") == ["e1000e", "generic"]
    assert matching(alias, f"{drivers}/none") == []
