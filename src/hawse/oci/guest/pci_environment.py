"""Translate PCI addresses in a process's environment from the host's to the guest's. Pure.

Device plugins and images pass the addresses of devices in variables of various names and formats. The SR-IOV network
device plugin sets ``PCIDEVICE_<RESOURCE>=address,address`` and ``PCIDEVICE_<RESOURCE>_INFO={"address": {...}}``
(k8snetworkplumbingwg/sriov-network-device-plugin, pkg/resources), KubeVirt ``PCI_RESOURCE_<NAME>``, Intel's QAT plugin
``QAT0=address`` (intel/intel-device-plugins-for-kubernetes, cmd/qat_plugin). So hawse looks at the values, not at the
names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_ADDRESS = re.compile(
    r"(?!(?<=-)[a-f][0-9a-fA-F]{4}:)"  # an option's letter before four digits
    r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])(?!\.?[0-9A-Za-z])"
)
#: The text that may precede an address: not a letter, a digit, or a number's colon (as in a MAC or IPv6 address). Valid
#: are the colon of a word ("traddr:0000:3b:00.0"), the colon after another address ("0000:3b:00.0:0000:3b:00.1"), and
#: the letter of an option ("-a0000:3b:00.0").
_BEFORE = re.compile(
    r"(?:^|[^0-9A-Za-z:]|(?:^|[^0-9A-Za-z])[0-9A-Za-z]*[g-zG-Z][0-9A-Za-z]*:"
    r"|[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]:|(?:^|\s)-[A-Za-z])\Z"
)
#: Characters that cannot occur between the addresses of a list.
_BETWEEN = re.compile(r"""[^\s,;"'\[\]]""")
#: Prefixes of variables that contain only PCI devices.
_DEVICES = ("PCIDEVICE_", "PCI_RESOURCE_")


def translate(environment: Sequence[str], addresses: Mapping[str, str]) -> list[str]:
    """Translate the addresses in variables that contain only known addresses.

    ``addresses`` maps the host's addresses to the guest's, both with domain and in lower case. A variable with an
    unknown address is not changed: after a partial translation it would mix addresses of the host and of the guest. The
    text between the addresses is kept, and so is their format: with or without domain, leading zeros, upper case.
    """
    return [_translated(entry, addresses) for entry in environment]


def warnings(field: str, environment: Sequence[str], addresses: Mapping[str, str]) -> list[str]:
    """Warnings about variables of ``field`` that contain a device of the host and cannot be translated."""
    texts = []
    for entry in environment:
        name, _, value = entry.partition("=")
        words = [_normal(match) for match in _addresses(value)]
        strangers = sorted({word for word in words if word not in addresses})
        if not strangers or not (any(word in addresses for word in words) or name.startswith(_DEVICES)):
            continue
        texts.append(
            f"{field}: {name[:80]} keeps the host's addresses, since these are not devices of the container: "
            f"{', '.join(strangers[:8])} [pass the VFIO group of each device in the variable]"
        )
    return texts


def in_arguments(field: str, arguments: Iterable[str], addresses: Mapping[str, str]) -> list[str]:
    """Warnings about arguments that contain devices with another address in the guest: arguments are not translated."""
    words = {_normal(match) for argument in arguments for match in _addresses(argument)}
    moved = sorted(word for word in words if addresses.get(word, word) != word)
    return [
        f"{field}: {word} is {addresses[word]} in the guest, and arguments are not translated [pass it in a variable]"
        for word in moved
    ]


def _translated(entry: str, addresses: Mapping[str, str]) -> str:
    name, equals, value = entry.partition("=")
    matches = list(_addresses(value))
    if not equals or not matches or not all(_normal(match) in addresses for match in matches):
        return entry
    result, end = "", 0
    for match in matches:
        result += value[end : match.start()] + _in_form_of(match, addresses[_normal(match)])
        end = match.end()
    return f"{name}={result}{value[end:]}"


def _addresses(value: str) -> list[re.Match[str]]:
    """The addresses in a value. Text that looks like an address without a domain may be a time: it counts only if the
    value also contains an address with a domain, or consists only of addresses."""
    matches = [match for match in _ADDRESS.finditer(value) if _BEFORE.search(value[: match.start()][-80:])]
    if any(match[1] for match in matches) or not _BETWEEN.search(_ADDRESS.sub("", value)):
        return matches
    return []


def _normal(match: re.Match[str]) -> str:
    """The address in the format of sysfs."""
    domain, bus, slot, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{slot}.{function}".lower()


def _in_form_of(match: re.Match[str], address: str) -> str:
    domain, _, rest = address.partition(":")
    if match[1]:
        rest = f"{domain.zfill(len(match[1]))}:{rest}"
    elif int(domain, 16):
        rest = address
    letters = [letter for letter in match[0] if letter.isalpha()]
    return rest.upper() if letters and all(letter.isupper() for letter in letters) else rest
