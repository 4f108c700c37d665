"""The functions of the host that devices.allow permits."""

from __future__ import annotations

from pathlib import Path

import pytest

from hawse.config import load_config
from hawse.errors import ConfigError, DeviceError
from hawse.vfio.allowed import check_allowed
from hawse.vfio.groups import Function, HostGroup


def function(address: str, *, device: int = 0x10D3, driver: str = "vfio-pci") -> Function:
    return Function(address=address, vendor=0x8086, device=device, class_code=0x020000, driver=driver, bars=())


NIC, GPU = function("0000:3b:00.0"), function("0000:81:00.0", device=0x56C0, driver="i915")

#: A function of another vendor, in a domain whose number equals Intel's vendor id: Hyper-V assigns any domain number.
STRANGER = Function(address="8086:10:00.0", vendor=0x10DE, device=0x2684, class_code=0x030000, driver="nvidia", bars=())


@pytest.mark.parametrize(
    ("patterns", "functions", "refused"),
    [
        (["*"], [NIC, GPU], ""),
        ([], [NIC], "0000:3b:00.0"),
        (["0000:3b:00.0"], [NIC], ""),
        (["0000:3B:00.0"], [NIC], ""),
        (["0000:3b:*"], [NIC], ""),
        (["0000:3b:*"], [GPU], "0000:81:00.0"),
        (["0000:3b:*"], [NIC, GPU], "0000:81:00.0"),
        (["8086:10d3"], [NIC], ""),
        (["8086:10D3"], [NIC], ""),
        (["8086:10d3"], [GPU], "0000:81:00.0"),
        (["8086:*"], [NIC, GPU], ""),
        (["10de:*"], [NIC], "0000:3b:00.0"),
        (["3b:00.0"], [NIC], ""),
        (["3b:00.*"], [NIC], ""),
        (["3b:*"], [GPU], "0000:81:00.0"),
        (["*:3b:00.0"], [NIC], ""),
        (["0000:[38][b1]:00.0"], [NIC, GPU], ""),
        (["8086:*"], [STRANGER], "8086:10:00.0"),
        (["8086:10:00.0"], [STRANGER], ""),
        (["driver:vfio-pci"], [NIC], ""),
        (["driver:vfio-*"], [GPU], "0000:81:00.0"),
        (["driver:vfio-pci", "0000:81:00.?"], [NIC, GPU], ""),
    ],
)
def test_every_function_of_a_group_must_match_a_pattern(
    patterns: list[str], functions: list[Function], refused: str
) -> None:
    groups = [HostGroup(7, tuple(functions))]
    if not refused:
        check_allowed(groups, patterns)
        return
    with pytest.raises(DeviceError) as caught:
        check_allowed(groups, patterns)
    assert caught.value.message.startswith(f"group 7 cannot be passed: {refused} (")
    assert "devices.allow" in caught.value.hint


@pytest.mark.parametrize(
    "pattern",
    [
        "", "eth0", "0000", "driver:", "0000:3b:00.0;", "/dev/vfio/5", "8086:10d3 ", "0000:3b", "0000:3b:00", "!:!",
        "[:0", "80861:10d3", "0000:3b:00.0.0", "3:0.0",
    ],
)  # fmt: skip
def test_invalid_pattern_in_the_configuration_is_refused(tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[devices]\nallow = ["*", "{pattern}"]\n')
    with pytest.raises(ConfigError, match=r"devices\.allow: .* is not a pattern"):
        load_config(str(path))


def test_unknown_annotation_in_the_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[devices]\nannotations = ["devices", "hawse.managed"]\n')
    with pytest.raises(ConfigError, match=r"devices\.annotations: 'hawse\.managed' is not one of device-mode, devices"):
        load_config(str(path))
