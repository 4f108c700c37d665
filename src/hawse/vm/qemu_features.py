"""Capabilities of a QEMU binary, queried over QMP and cached: the version is not enough, since builds omit devices."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from hawse.cache import results
from hawse.errors import HostError, VmError
from hawse.json_text import Document

_SECONDS = 30
#: The lists in the cached answer, after the version, in the order of :class:`Capabilities`.
_LISTS = ("devices", "machine_properties", "objects", "vfio_properties", "options")
_QUERIES: tuple[tuple[str, dict[str, str]], ...] = (
    ("qmp_capabilities", {}),
    ("query-version", {}),
    ("qom-list-types", {"implements": "device"}),
    ("qom-list-properties", {"typename": "generic-pc-machine"}),
    ("qom-list-types", {"implements": "user-creatable"}),
    ("device-list-properties", {"typename": "vfio-pci"}),
    ("query-command-line-options", {"option": "sandbox"}),
    ("quit", {}),
)


@dataclass(frozen=True)
class Capabilities:
    """QEMU's version as text, its device models, the properties of the q35 machine, the types that -object creates, the
    properties of the device model vfio-pci, and which of the optional command-line options this build has."""

    version: str
    devices: frozenset[str]
    machine_properties: frozenset[str]
    objects: frozenset[str] = frozenset()
    vfio_properties: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()

    def require(self, device: str) -> None:
        """Raise :class:`HostError` if this QEMU does not have the device model."""
        if device not in self.devices:
            raise HostError(f"QEMU {self.version} has no device {device}", hint="use a QEMU built with it")

    def at_least(self, *version: int) -> bool:
        """Whether QEMU has this version, of two or three numbers, or a later one."""
        return [int(number) for number in self.version.split(".")[: len(version)]] >= list(version)

    @property
    def makes_special_files(self) -> bool:
        """Whether a guest can make FIFOs and sockets in a directory that is shared by 9p (hw/9pfs/9p-local.c)."""
        return self.at_least(9, 2, 1)


def ask(qemu: str, *, directory: str) -> Capabilities:
    """The capabilities of the program ``qemu``, from the cache in ``directory`` where they were queried before.

    Raises :class:`HostError` where the program is missing and :class:`VmError`, with its stderr, where it dies.
    """
    try:
        # The key contains the queries: an earlier version of hawse may not have made all of them.
        key = [*results.file_key(qemu), *_QUERIES]
    except OSError as error:
        raise _missing(qemu, error) from None
    path = f"{directory}/qemu.json"
    values = results.read(path, key)
    if values is None:
        values = _ask(qemu)
        results.write(path, key, values)
    return Capabilities(values["version"], *(frozenset(values[key]) for key in _LISTS))


def _ask(qemu: str) -> Document:
    queries = "".join(json.dumps({"execute": name, "arguments": args}) + "\n" for name, args in _QUERIES)
    argv = [qemu, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"]
    try:
        answer = subprocess.run(argv, input=queries, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except OSError as error:
        raise _missing(qemu, error) from None
    except subprocess.TimeoutExpired:
        raise VmError(f"{qemu} did not answer QMP within {_SECONDS} s") from None
    try:
        messages = [json.loads(line) for line in answer.stdout.splitlines()]
        replies = [message for message in messages if "return" in message or "error" in message]
        # A QEMU without the q35 machine or without vfio-pci answers those queries with an error.
        _, version, devices, properties, objects, vfio, options = (reply.get("return") for reply in replies[:7])
        return {
            "version": "{major}.{minor}.{micro}".format(**version["qemu"]),
            "devices": sorted(device["name"] for device in devices),
            "machine_properties": sorted(entry["name"] for entry in properties or ()),
            "objects": sorted(entry["name"] for entry in objects),
            "vfio_properties": sorted(entry["name"] for entry in vfio or ()),
            "options": sorted(entry["option"] for entry in options or ()),
        }
    except (ValueError, KeyError, TypeError):
        raise VmError(f"{qemu} exits at startup", hint="see its stderr", evidence=answer.stderr[-4096:]) from None


def _missing(qemu: str, error: OSError) -> HostError:
    return HostError(
        f"QEMU cannot be run: {qemu}: {error.strerror}",
        hint="install the package qemu-system-x86, or set vm.qemu in the configuration",
    )
