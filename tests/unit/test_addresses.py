"""PCIDEVICE_ variables: translated whole or left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.oci.addresses import translate

MAP = {"0000:3b:02.0": "0000:02:00.0", "0000:3b:02.1": "0000:03:00.0", "0001:01:00.0": "0000:04:00.0"}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("PCIDEVICE_X=0000:3b:02.0", "PCIDEVICE_X=0000:02:00.0"),
        ("PCIDEVICE_X=0000:3b:02.0,0000:3b:02.1", "PCIDEVICE_X=0000:02:00.0,0000:03:00.0"),
        ("PCIDEVICE_X=0000:3B:02.0", "PCIDEVICE_X=0000:02:00.0"),
        ("PCIDEVICE_X=0001:01:00.0", "PCIDEVICE_X=0000:04:00.0"),
        ("PCIDEVICE_X=0000:3b:02.0,0000:99:00.0", "PCIDEVICE_X=0000:3b:02.0,0000:99:00.0"),
        ("PCIDEVICE_X=12,13", "PCIDEVICE_X=12,13"),
        ("PCIDEVICE_X=", "PCIDEVICE_X="),
        ("PCIDEVICE_X", "PCIDEVICE_X"),
        ("OTHER=0000:3b:02.0", "OTHER=0000:3b:02.0"),
        ("PCIDEVICE_X_INFO=0000:3b:02.0", "PCIDEVICE_X_INFO=0000:3b:02.0"),
        ("PCIDEVICE_X_INFO={}", "PCIDEVICE_X_INFO={}"),
        ('PCIDEVICE_X_INFO={"0000:99:00.0":{}}', 'PCIDEVICE_X_INFO={"0000:99:00.0":{}}'),
    ],
)
def test_a_variable_is_translated_whole_or_left_alone(entry: str, expected: str) -> None:
    assert translate(["A=1", entry], MAP) == ["A=1", expected]


def test_info_is_edited_as_json() -> None:
    info = {
        "0000:3b:02.0": {"generic": {"deviceID": "0000:3b:02.0"}, "vfio": {"mount": "/dev/vfio/12"}},
        "0000:3b:02.1": {"generic": {"deviceID": "0000:3b:02.1"}, "text": "near 0000:3b:02.0"},
    }
    [entry] = translate([f"PCIDEVICE_X_INFO={json.dumps(info)}"], MAP)
    assert json.loads(entry.partition("=")[2]) == {
        "0000:02:00.0": {"generic": {"deviceID": "0000:02:00.0"}, "vfio": {"mount": "/dev/vfio/12"}},
        "0000:03:00.0": {"generic": {"deviceID": "0000:03:00.0"}, "text": "near 0000:3b:02.0"},
    }


values = st.recursive(
    st.none() | st.text(max_size=5) | st.sampled_from(sorted(MAP)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(values)
def test_info_without_strangers_has_no_host_address_left(info: Any) -> None:
    [entry] = translate([f"PCIDEVICE_X_INFO={json.dumps(info)}"], MAP)
    assert not any(host in entry for host in MAP)


@given(st.lists(st.text(max_size=30)))
def test_any_environment_keeps_its_length_and_names(environment: list[str]) -> None:
    result = translate(environment, MAP)
    assert [entry.partition("=")[0] for entry in result] == [entry.partition("=")[0] for entry in environment]
