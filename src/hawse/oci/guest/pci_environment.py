"""PCI addresses in a process's environment, moved from the host's to the guest's. Pure.

Device plugins and images give a container the addresses of its devices in variables of any name and form: the SR-IOV
network device plugin ``PCIDEVICE_<RESOURCE>=address,address`` and ``PCIDEVICE_<RESOURCE>_INFO={"address": {...}}``
(k8snetworkplumbingwg/sriov-network-device-plugin, pkg/resources), KubeVirt ``PCI_RESOURCE_<NAME>``, Intel's QAT plugin
``QAT0=address`` (intel/intel-device-plugins-for-kubernetes, cmd/qat_plugin). So the value decides, not the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_ADDRESS = re.compile(
    r"(?!(?<=-)[a-f][0-9a-fA-F]{4}:)"  # an option's letter before four digits
    r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])(?!\.?[0-9A-Za-z])"
)
#: What stands right before an address that is one: no letter and no digit, and no colon of a number (a MAC or IPv6
#: address), but that of a word, as in "traddr:0000:3b:00.0", or the colon or the letter after another address or an
#: option's dash, as in "0000:3b:00.0:0000:3b:00.1" and "-a0000:3b:00.0".
_BEFORE = re.compile(
    r"(?:^|[^0-9A-Za-z:]|(?:^|[^0-9A-Za-z])[0-9A-Za-z]*[g-zG-Z][0-9A-Za-z]*:"
    r"|[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]:|(?:^|\s)-[A-Za-z])\Z"
)
#: What does not stand between the addresses of a list.
_BETWEEN = re.compile(r"""[^\s,;"'\[\]]""")
#: Variables that name nothing but PCI devices.
_DEVICES = ("PCIDEVICE_", "PCI_RESOURCE_")


def translate(environment: Sequence[str], addresses: Mapping[str, str]) -> list[str]:
    """The environment with every variable all of whose addresses are known in the guest's terms.

    ``addresses`` maps the host's to the guest's, both with domain and in lower case. A variable with an address that
    is not among them stays as it is: half of it translated would name two machines. Everything between the addresses
    stays, and so does their form: with a domain or without one, with leading zeros, in upper case.
    """
    return [_translated(entry, addresses) for entry in environment]


def warnings(field: str, environment: Sequence[str], addresses: Mapping[str, str]) -> list[str]:
    """What to warn of: variables that name a device of the host and cannot be translated. ``field`` is theirs."""
    found = []
    for entry in environment:
        name, _, value = entry.partition("=")
        words = [_normal(match) for match in _addresses(value)]
        strangers = sorted({word for word in words if word not in addresses})
        if not strangers or not (any(word in addresses for word in words) or name.startswith(_DEVICES)):
            continue
        found.append(
            f"{field}: {name[:80]} keeps the host's addresses: not among the container's devices: "
            f"{', '.join(strangers[:8])} [pass the VFIO group of each device that the variable names]"
        )
    return found


def in_arguments(field: str, arguments: Iterable[str], addresses: Mapping[str, str]) -> list[str]:
    """What to warn of where arguments name devices that have another address in the guest: they are not changed."""
    words = {_normal(match) for argument in arguments for match in _addresses(argument)}
    found = sorted(word for word in words if addresses.get(word, word) != word)
    return [
        f"{field}: {word} is {addresses[word]} in the guest, and arguments are not changed [pass it in a variable]"
        for word in found
    ]


def _translated(entry: str, addresses: Mapping[str, str]) -> str:
    name, equals, value = entry.partition("=")
    found = list(_addresses(value))
    if not equals or not found or not all(_normal(match) in addresses for match in found):
        return entry
    result, end = "", 0
    for match in found:
        result += value[end : match.start()] + _in_form_of(match, addresses[_normal(match)])
        end = match.end()
    return f"{name}={result}{value[end:]}"


def _addresses(value: str) -> list[re.Match[str]]:
    """The addresses in a value. Without a domain they may be times, unless one with a domain is beside them or there
    is nothing else."""
    found = [match for match in _ADDRESS.finditer(value) if _BEFORE.search(value[: match.start()][-80:])]
    if any(match[1] for match in found) or not _BETWEEN.search(_ADDRESS.sub("", value)):
        return found
    return []


def _normal(match: re.Match[str]) -> str:
    """As sysfs has it."""
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
