"""What a QEMU can do, asked of it and kept: versions are not proof, builds leave devices out."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from hawse.errors import HostError, VmError
from hawse.vm import cache

_SECONDS = 30
#: What is kept of the answers beside the version, in the order of :class:`Capabilities`.
_LISTS = ("devices", "machine_properties", "objects", "vfio_properties", "options")
_QUESTIONS: tuple[tuple[str, dict[str, str]], ...] = (
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
    """The version as text, the device models, the properties of the q35 machine, the objects that -object makes, the
    properties of the device model vfio-pci, and of the options that not every build has those that are there."""

    version: str
    devices: frozenset[str]
    machine_properties: frozenset[str]
    objects: frozenset[str] = frozenset()
    vfio_properties: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()

    def require(self, device: str) -> None:
        """Raise :class:`HostError` when this QEMU has no such device model."""
        if device not in self.devices:
            raise HostError(f"QEMU {self.version} has no device {device}", hint="use a QEMU built with it")

    def at_least(self, major: int, minor: int) -> bool:
        """Whether it is that version or a later one."""
        numbers = [int(number) for number in self.version.split(".")[:2]]
        return numbers >= [major, minor]


def ask(qemu: str, *, directory: str) -> Capabilities:
    """The capabilities of the program ``qemu``, from ``directory``'s cache where it was asked before.

    Raises :class:`HostError` when there is none and :class:`VmError`, with its stderr, when it dies.
    """
    try:
        # With the questions: what an earlier hawse has asked may not be all.
        key = [*cache.file_key(qemu), *_QUESTIONS]
    except OSError as error:
        raise _missing(qemu, error) from None
    path = f"{directory}/qemu.json"
    known = cache.read(path, key)
    if known is None:
        known = _ask(qemu)
        cache.write(path, key, known)
    return Capabilities(known["version"], *(frozenset(known[key]) for key in _LISTS))


def _ask(qemu: str) -> dict[str, Any]:
    questions = "".join(json.dumps({"execute": name, "arguments": args}) + "\n" for name, args in _QUESTIONS)
    argv = [qemu, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"]
    try:
        answer = subprocess.run(argv, input=questions, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except OSError as error:
        raise _missing(qemu, error) from None
    except subprocess.TimeoutExpired:
        raise VmError(f"{qemu} did not answer QMP within {_SECONDS} s") from None
    try:
        messages = [json.loads(line) for line in answer.stdout.splitlines()]
        replies = [message for message in messages if "return" in message or "error" in message]
        # One that has no q35 machine or no vfio-pci says an error there.
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
        raise VmError(f"{qemu} dies at its start", hint="see what it says", evidence=answer.stderr[-4096:]) from None


def _missing(qemu: str, error: OSError) -> HostError:
    return HostError(
        f"QEMU cannot be run: {qemu}: {error.strerror}",
        hint="install the package qemu-system-x86, or set vm.qemu in the configuration",
    )
