"""The table of emulated groups in the configuration."""

from __future__ import annotations

import pytest

from hawse.errors import ConfigError
from hawse.vfio.emulated import EmulatedGroup, read_table


def test_group_has_one_to_eight_functions_of_known_models() -> None:
    table = {"5": ["edu"], "0": ["igb", "igb"], "123456789": ["nvme"] * 8}
    assert read_table(table) == {
        5: EmulatedGroup(5, ("edu",)),
        0: EmulatedGroup(0, ("igb", "igb")),
        123_456_789: EmulatedGroup(123_456_789, ("nvme",) * 8),
    }


@pytest.mark.parametrize(
    ("key", "models", "words"),
    [
        ("x", ["edu"], "emulated.x: the key is not a group number"),
        ("", ["edu"], "emulated.: the key is not a group number"),
        ("-1", ["edu"], "emulated.-1: the key is not a group number"),
        ("²", ["edu"], "emulated.²: the key is not a group number"),
        ("٣", ["edu"], "emulated.٣: the key is not a group number"),
        ("1234567890", ["edu"], "emulated.1234567890: the key is not a group number"),
        ("5", [], "emulated.5: 0 functions: a group has 1 to 8"),
        ("5", ["edu"] * 9, "emulated.5: 9 functions: a group has 1 to 8"),
        ("5", ["edu", "rtl8139"], "emulated.5: unknown model 'rtl8139'"),
    ],
)
def test_invalid_entry_is_named(key: str, models: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_table({"7": ["edu"], key: models})
    assert caught.value.message == f"configuration: {words}"
    assert caught.value.hint
