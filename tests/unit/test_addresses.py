"""PCI addresses in environment variables: a variable is translated completely or kept, and a warning names a kept
one."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.oci.guest.pci_environment import in_arguments, translate, warnings

MAP = {
    "0000:3b:02.0": "0000:02:00.0",
    "0000:3b:02.1": "0000:0a:00.0",
    "0001:01:00.0": "0000:04:00.0",
    "10000:e1:00.0": "0000:05:00.0",
}
#: Variables as plugins and images write them, and what they are in the guest.
TRANSLATED = [
    ("PCIDEVICE_X=0000:3b:02.0", "PCIDEVICE_X=0000:02:00.0"),
    ("PCIDEVICE_X=0000:3b:02.0,0000:3b:02.1", "PCIDEVICE_X=0000:02:00.0,0000:0a:00.0"),
    ("PCIDEVICE_X=0000:3b:02.0,", "PCIDEVICE_X=0000:02:00.0,"),
    ("PCIDEVICE_X=,0000:3b:02.0", "PCIDEVICE_X=,0000:02:00.0"),
    ("QAT0=0000:3b:02.0", "QAT0=0000:02:00.0"),
    ("PCI_RESOURCE_INTEL_COM_QAT=0000:3b:02.1", "PCI_RESOURCE_INTEL_COM_QAT=0000:0a:00.0"),
    ("A=0001:01:00.0", "A=0000:04:00.0"),
    ("A=10000:e1:00.0", "A=00000:05:00.0"),
    ("A=0000:3B:02.0", "A=0000:02:00.0"),
    ("A=0000:3B:02.1", "A=0000:0A:00.0"),
    ("A=00000000:3b:02.1", "A=00000000:0a:00.0"),
    ("A=3b:02.1", "A=0a:00.0"),
    ("A=3B:02.1", "A=0A:00.0"),
    ("A=3b:02.0 3b:02.1", "A=02:00.0 0a:00.0"),
    ("A=0000:3b:02.0;0000:3b:02.1", "A=0000:02:00.0;0000:0a:00.0"),
    ("A=0000:3b:02.0 0000:3b:02.1\n", "A=0000:02:00.0 0000:0a:00.0\n"),
    ("A= 0000:3b:02.0 , 0000:3b:02.1 ", "A= 0000:02:00.0 , 0000:0a:00.0 "),
    ('A="0000:3b:02.0"', 'A="0000:02:00.0"'),
    ('A=["0000:3b:02.0","0000:3b:02.1"]', 'A=["0000:02:00.0","0000:0a:00.0"]'),
    ("A=['3b:02.0']", "A=['02:00.0']"),
    ("A=eth=0000:3b:02.0", "A=eth=0000:02:00.0"),
    ("EAL=-a 0000:3b:02.0,queues=4 --proc-type=auto", "EAL=-a 0000:02:00.0,queues=4 --proc-type=auto"),
    ("EAL=-a0000:3b:02.0 -a0000:3b:02.1", "EAL=-a0000:02:00.0 -a0000:0a:00.0"),
    ("A=0000:3b:02.0:0000:3b:02.1", "A=0000:02:00.0:0000:0a:00.0"),
    ("A=dev-0000:3b:02.0", "A=dev-0000:02:00.0"),
    ("EAL=--allow=0000:3b:02.0", "EAL=--allow=0000:02:00.0"),
    ("SPDK=trtype:PCIe traddr:0000:3b:02.0", "SPDK=trtype:PCIe traddr:0000:02:00.0"),
    ("A=pci:0000:3b:02.0", "A=pci:0000:02:00.0"),
    ("A=pci/0000:3b:02.0", "A=pci/0000:02:00.0"),
    ("A=/sys/bus/pci/devices/0000:3b:02.0/resource0", "A=/sys/bus/pci/devices/0000:02:00.0/resource0"),
    ("A=pci-0000:3b:02.0-nvme-1", "A=pci-0000:02:00.0-nvme-1"),
    ("A=use 0000:3b:02.0.", "A=use 0000:02:00.0."),
    ("PCIDEVICE_X_INFO=0000:3b:02.0", "PCIDEVICE_X_INFO=0000:02:00.0"),
]
#: Values that are not addresses or name other devices: they are kept. And whether a warning names the variable.
LEFT = [
    ("PCIDEVICE_X=0000:3b:02.0,0000:99:00.0", True),
    ("QAT0=0000:99:00.0 0000:3b:02.0", True),
    ("A=0000:3b:02.0 and 99:00.0", True),
    ("A=3b:02.0,99:00.0", True),
    ("A=0000:3b:02.0,0000:3b:02.2", True),
    ("PCIDEVICE_X=0000:99:00.0", True),
    ("PCI_RESOURCE_X=0000:99:00.0", True),
    ('PCIDEVICE_X_INFO={"0000:99:00.0":{}}', True),
    ("OTHER=0000:99:00.0", False),
    ("PCIDEVICE_X=12,13", False),
    ("PCIDEVICE_X=", False),
    ("PCIDEVICE_X_INFO={}", False),
    ("PCIDEVICE_X", False),
    ("0000:3b:02.0", False),
    ("", False),
    ("=0000:99:00.0", False),
    ("MAC=00:00:3b:02:00:01", False),
    ("A=10000:3b:02.0", False),
    ("A=a0000:3b:02.0", False),
    ("A=00:0000:3b:02.0", False),
    ("A=fe80::3b:02.0", False),
    ("A=::ffff:0000:3b:02.0", False),
    ("A=0000:3b:02.05", False),
    ("A=0000:3b:02.0.1", False),
    ("A=0000:3b:02.8", False),
    ("A=0000:3b:22.0", False),
    ("A=0000:3b:02.0x", False),
    ("TIME=at 3b:02.0 o'clock", False),
    ("A=0000-3b-02.0", False),
]


@pytest.mark.parametrize(("entry", "expected"), TRANSLATED)
def test_variable_that_names_passed_devices_is_translated(entry: str, expected: str) -> None:
    assert translate(["A=1", entry], MAP) == ["A=1", expected]
    assert warnings("process.env", [entry], MAP) == []


@pytest.mark.parametrize(("entry", "warned"), LEFT)
def test_other_variables_are_not_changed(entry: str, warned: bool) -> None:
    assert translate(["A=1", entry], MAP) == ["A=1", entry]
    warning_texts = warnings("process.env", ["A=1", entry], MAP)
    assert len(warning_texts) == warned
    if warned:
        assert warning_texts[0].startswith(f"process.env: {entry.partition('=')[0]} keeps the host's addresses")
        assert warning_texts[0].endswith("]")


def test_warning_of_device_variables_in_a_container_without_devices() -> None:
    environment = ["PCIDEVICE_X=0000:3b:02.0", "PATH=/bin"]
    assert translate(environment, {}) == environment
    [warning] = warnings("process.env", environment, {})
    assert "PCIDEVICE_X" in warning
    assert "0000:3b:02.0" in warning


def test_information_of_a_plugin_stays_json() -> None:
    info = {
        "0000:3b:02.0": {"generic": {"deviceID": "0000:3b:02.0"}, "vfio": {"dev-mount": "/dev/vfio/12"}},
        "0000:3b:02.1": {"generic": {"deviceID": "0000:3b:02.1"}, "text": "beside 0000:3b:02.0"},
    }
    [entry] = translate([f"PCIDEVICE_X_INFO={json.dumps(info, indent=1)}"], MAP)
    assert json.loads(entry.partition("=")[2]) == {
        "0000:02:00.0": {"generic": {"deviceID": "0000:02:00.0"}, "vfio": {"dev-mount": "/dev/vfio/12"}},
        "0000:0a:00.0": {"generic": {"deviceID": "0000:0a:00.0"}, "text": "beside 0000:02:00.0"},
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["testpmd", "-a", "0000:3b:02.0"], ["process.args: 0000:3b:02.0 is 0000:02:00.0 in the guest"]),
        (["sh", "-c", "x 0000:3b:02.0; y 0000:3b:02.0"], ["process.args: 0000:3b:02.0 is"]),
        (["testpmd", "-a", "0000:99:00.0"], []),
        (["sh"], []),
    ],
)
def test_arguments_are_not_changed_and_a_warning_says_so(arguments: list[str], words: list[str]) -> None:
    warning_texts = in_arguments("process.args", arguments, MAP)
    assert [text[: len(word)] for text, word in zip(warning_texts, words, strict=True)] == words
    assert in_arguments("process.args", arguments, {address: address for address in MAP}) == []


values = st.recursive(
    st.none() | st.text(max_size=5) | st.sampled_from(sorted(MAP)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
pieces = st.sampled_from(["0000:3b:02.0", "3b:02.1", "0000:99:00.0", "00:11:22:33:44:55", "/", "=", "a", "\n", " "])
texts = st.lists(pieces | st.sampled_from(",; \t'\"[]") | st.text(max_size=8), max_size=8).map("".join)
_LOOSE = re.compile(r"[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]")


@given(values)
def test_information_of_passed_devices_contains_no_host_address(info: Any) -> None:
    [entry] = translate([f"PCIDEVICE_X_INFO={json.dumps(info)}"], MAP)
    # A hexadecimal digit or ":" before an address is part of a longer word: no boundary of an address.
    if not any(host in re.sub(r'"(?:[0-9a-f:.]+)"', "", json.dumps(info)) for host in MAP):
        assert not any(f'"{host}"' in entry for host in MAP)


@given(st.lists(st.text(max_size=30) | texts))
def test_any_environment_keeps_its_length_and_names(environment: list[str]) -> None:
    result = translate(environment, MAP)
    assert [entry.partition("=")[0] for entry in result] == [entry.partition("=")[0] for entry in environment]


@given(texts)
def test_only_addresses_of_passed_devices_change(value: str) -> None:
    """Text between them is kept, and so is a value without addresses."""
    [entry] = translate([f"A={value}"], MAP)
    result = entry.removeprefix("A=")
    assert _LOOSE.sub("", result) == _LOOSE.sub("", value)
    if not any(host.partition(":")[2] in value.lower() for host in MAP):
        assert result == value


@given(texts)
def test_variable_with_a_warning_is_unchanged(value: str) -> None:
    entry = f"PCIDEVICE_A={value}"
    if warnings("process.env", [entry], MAP):
        assert translate([entry], MAP) == [entry]
