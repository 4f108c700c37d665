"""What configuration and annotations say of how devices are given."""

from __future__ import annotations

import pytest

from hawse.config import Config, Devices
from hawse.container.options import DeviceOptions, device_options
from hawse.errors import ConfigError

TOKEN = "2ab74924-c335-45f4-9b16-8569e5b08258"


@pytest.mark.parametrize(
    ("config", "annotations", "expected"),
    [
        (Devices(), {}, DeviceOptions()),
        (Devices(keep_addresses=False, rom=True), {}, DeviceOptions(keep_addresses=False, rom=True)),
        (Devices(keep_addresses=False), {"hawse.keep-addresses": "true"}, DeviceOptions()),
        (Devices(), {"hawse.vf-token": TOKEN.upper()}, DeviceOptions(vf_token=TOKEN)),
        (Devices(plug="cold"), {}, DeviceOptions(cold=True)),
        (Devices(managed=True), {"hawse.managed": "false"}, DeviceOptions()),
        (Devices(), {"hawse.managed": "true"}, DeviceOptions(managed=True)),
        (Devices(), {"hawse.devices": "12, 3b:00.0,"}, DeviceOptions(devices=("12", "3b:00.0"))),
        (Devices(), {"org.example.hawse.": "any", "hawse": "any"}, DeviceOptions()),
    ],
)
def test_annotations_go_before_the_configuration(
    config: Devices, annotations: dict[str, str], expected: DeviceOptions
) -> None:
    assert device_options(Config(devices=config), annotations) == expected


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("hawse.vf-token", "no", "annotations: hawse.vf-token: 'no' is no UUID"),
        ("hawse.keep-addresses", "yes", "hawse.keep-addresses: 'yes' is neither true nor false"),
        ("hawse.vf_token", TOKEN, "annotations: hawse.vf_token is unknown"),
    ],
)
def test_what_is_not_understood_is_named(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        device_options(Config(), {name: value})
