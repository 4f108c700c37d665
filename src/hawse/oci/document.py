"""Read parts of a specification's document, and copy it with changes. Pure: no function changes its arguments.

This file is part of the guest image, since the agent also reads the specification.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from hawse.json_text import Document


def linux_of(spec: Mapping[str, Any]) -> Document:
    """The object ``linux``; empty if it is absent."""
    return spec.get("linux") or {}


def with_linux(spec: Mapping[str, Any], **fields: Any) -> Document:
    """The specification with these fields of ``linux``; a value of None removes the field."""
    return {**spec, "linux": _replaced(linux_of(spec), fields)}


def devices_of(spec: Mapping[str, Any]) -> list[Document]:
    """linux.devices."""
    return linux_of(spec).get("devices") or []


def rules_of(spec: Mapping[str, Any]) -> list[Document]:
    """linux.resources.devices."""
    return (linux_of(spec).get("resources") or {}).get("devices") or []


def with_devices(spec: Mapping[str, Any], devices: Sequence[Document], rules: Sequence[Document]) -> Document:
    """The specification with its devices and device rules replaced by these."""
    resources = (linux_of(spec).get("resources") or {}) | {"devices": list(rules)}
    return with_linux(spec, devices=list(devices), resources=resources)


def process_of(spec: Mapping[str, Any]) -> Document:
    """The object ``process``, which every specification has."""
    process: Document = spec["process"]
    return process


def with_process(spec: Mapping[str, Any], **fields: Any) -> Document:
    """The specification with these fields of ``process``; a value of None removes the field."""
    return {**spec, "process": _replaced(process_of(spec), fields)}


def is_bind(mount: Mapping[str, Any]) -> bool:
    """Whether a mount is a bind mount, by its type or by its options (the options count in runc too)."""
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))


def _replaced(before: Mapping[str, Any], fields: Mapping[str, Any]) -> Document:
    kept = {key: value for key, value in before.items() if key not in fields}
    return kept | {key: value for key, value in fields.items() if value is not None}
