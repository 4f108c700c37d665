"""Device options from the configuration and from annotations."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from hawse.config import ANNOTATIONS, Config, Devices
from hawse.errors import ConfigError
from hawse.planner.devices.device_options import DeviceOptions, device_options
from hawse.vfio.obstacles import Accepted

TOKEN = "2ab74924-c335-45f4-9b16-8569e5b08258"


@pytest.mark.parametrize(
    ("config", "annotations", "expected"),
    [
        (Devices(), {}, DeviceOptions()),
        (Devices(keep_addresses=False, rom=True), {}, DeviceOptions(keep_addresses=False, rom=True)),
        (Devices(keep_addresses=False), {"hawse.keep-addresses": "true"}, DeviceOptions(addresses_asked=True)),
        (Devices(), {"hawse.vf-token": TOKEN.upper()}, DeviceOptions(vf_token=TOKEN)),
        (Devices(plug="cold"), {}, DeviceOptions(cold=True)),
        (Devices(managed=True), {"hawse.managed": "false"}, DeviceOptions()),
        (Devices(), {"hawse.managed": "true"}, DeviceOptions(managed=True)),
        (Devices(unsafe_interrupts=True), {}, DeviceOptions(accepted=Accepted(unsafe_interrupts=True))),
        (Devices(unresettable=True), {}, DeviceOptions(accepted=Accepted(unresettable=True))),
        (Devices(), {"hawse.devices": "12, 3b:00.0,"}, DeviceOptions(devices=("12", "3b:00.0"))),
        (Devices(), {"org.example.hawse.": "any", "hawse": "any"}, DeviceOptions()),
    ],
)
def test_annotations_override_the_configuration(
    config: Devices, annotations: dict[str, str], expected: DeviceOptions
) -> None:
    assert device_options(Config(devices=replace(config, annotations=ANNOTATIONS)), annotations) == expected


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotation_that_the_configuration_does_not_allow_is_refused(name: str) -> None:
    """Every user who may create a pod chooses its annotations."""
    others = tuple(other for other in ANNOTATIONS if other != name)
    config = Config(devices=Devices(annotations=others))
    with pytest.raises(ConfigError, match=f"^annotations: hawse.{name} is not allowed on this host$") as caught:
        device_options(config, {f"hawse.{name}": "x"})
    assert "devices.annotations" in caught.value.hint


def test_annotations_for_devices_are_refused_by_default() -> None:
    assert set(Devices().annotations) == {"hugepages", "keep-addresses"}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("hawse.vf-token", "no", "annotations: hawse.vf-token: 'no' is not a UUID"),
        ("hawse.keep-addresses", "yes", "hawse.keep-addresses: 'yes' is neither true nor false"),
        ("hawse.vf_token", TOKEN, "annotations: hawse.vf_token is unknown"),
    ],
)
def test_invalid_option_is_named(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        device_options(Config(devices=Devices(annotations=ANNOTATIONS)), {name: value})
