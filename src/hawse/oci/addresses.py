"""PCI addresses in a process's environment, moved from the host's to the guest's. Pure.

The SR-IOV network device plugin tells a container its devices by ``PCIDEVICE_<RESOURCE>=address,address`` and
``PCIDEVICE_<RESOURCE>_INFO={"address": {...}}`` (k8snetworkplumbingwg/sriov-network-device-plugin, pkg/resources).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_PREFIX, _INFO = "PCIDEVICE_", "_INFO"
_ADDRESS = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]")


def translate(environment: Sequence[str], addresses: Mapping[str, str]) -> list[str]:
    """The environment with every ``PCIDEVICE_`` variable all of whose addresses are known in the guest's terms.

    ``addresses`` maps the host's to the guest's, both with domain and in lower case. A variable with an address that
    is not among them stays as it is: half of it translated would name two machines. So do values that are none.
    """
    return [_translated(entry, addresses) for entry in environment]


def _translated(entry: str, addresses: Mapping[str, str]) -> str:
    name, equals, value = entry.partition("=")
    if not name.startswith(_PREFIX) or not equals:
        return entry
    if name.endswith(_INFO):
        try:
            parsed = json.loads(value)
        except ValueError:
            return entry
        found = _collect(parsed)
        if not found or not found <= addresses.keys():
            return entry
        return f"{name}={json.dumps(_replaced(parsed, addresses), separators=(',', ':'))}"
    words = value.split(",")
    if not all(_is_known(word, addresses) for word in words):
        return entry
    return f"{name}={','.join(addresses[word.strip().lower()] for word in words)}"


def _is_known(word: str, addresses: Mapping[str, str]) -> bool:
    return word.strip().lower() in addresses


def _collect(value: Any) -> set[str]:
    """Every address in a JSON value, keys included."""
    if isinstance(value, str):
        return {value.lower()} if _ADDRESS.fullmatch(value) else set()
    if isinstance(value, list):
        return set().union(*map(_collect, value))
    if isinstance(value, dict):
        return set().union(*map(_collect, value), *map(_collect, value.values()))
    return set()


def _replaced(value: Any, addresses: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return addresses[value.lower()] if _ADDRESS.fullmatch(value) else value
    if isinstance(value, list):
        return [_replaced(item, addresses) for item in value]
    if isinstance(value, dict):
        return {_replaced(key, addresses): _replaced(item, addresses) for key, item in value.items()}
    return value
