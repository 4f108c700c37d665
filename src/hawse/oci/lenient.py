"""Forms of a document that Go's decoder, and so runc, accepts. Pure.

- null for a member of an object is the member left out; in a map it is the empty text or object under its name
  (encoding/json, Unmarshal).
- A path of a mount or of a device without its first slash is below the container's root (runtime-spec 1.2, config.md,
  "Mounts"; runc libcontainer/specconv/spec_linux.go, createLibcontainerMount()).
- A device rule without ``allow`` denies.
"""

from __future__ import annotations

from typing import Any

_TEXTS = (("annotations",), ("linux", "sysctl"), ("linux", "resources", "unified"))
_OBJECTS = (("linux", "netDevices"), ("linux", "timeOffsets"), ("linux", "resources", "rdma"))


def completed(document: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The document as one that hawse reads, and what to warn of. Other faults are left for the check of types."""
    for path in _TEXTS:
        _complete_map(document, path, "")
    for path in _OBJECTS:
        _complete_map(document, path, {})
    whole: dict[str, Any] = without_nulls(document)
    warnings = _complete_paths(whole.get("mounts"), "destination", "mounts")
    linux = whole.get("linux")
    if isinstance(linux, dict):
        warnings += _complete_paths(linux.get("devices"), "path", "linux.devices")
        _complete_rules(linux.get("resources"))
    return whole, warnings


def without_nulls(value: Any) -> Any:
    """A JSON value without the members of objects that are null."""
    if isinstance(value, dict):
        return {key: without_nulls(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [without_nulls(entry) for entry in value]
    return value


def _complete_map(document: Any, path: tuple[str, ...], empty: Any) -> None:
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    if isinstance(document, dict):
        document.update({key: empty for key, value in document.items() if value is None})


def _complete_paths(entries: Any, key: str, where: str) -> list[str]:
    warnings = []
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        path = entry.get(key) if isinstance(entry, dict) else None
        if isinstance(path, str) and path and not path.startswith("/"):
            entry[key] = f"/{path}"
            warnings.append(f"{where}[{index}].{key}: {path[:200]!r} is not absolute: it is taken as below /")
    return warnings


def _complete_rules(resources: Any) -> None:
    rules = resources.get("devices") if isinstance(resources, dict) else None
    for rule in rules if isinstance(rules, list) else ():
        if isinstance(rule, dict):
            rule.setdefault("allow", False)
