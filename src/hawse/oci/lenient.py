"""Convert what Go's decoder, and so runc, accepts into a document that hawse accepts. Pure.

- null as a member of an object means that the member is absent; in a map it becomes an empty text or object, and in a
  list an empty text, an empty object or zero (encoding/json, Unmarshal).
- Half a surrogate pair becomes U+FFFD (encoding/json, Unmarshal).
- A path of a mount or of a device that does not begin with a slash is relative to the container's root (runtime-spec
  1.2, config.md, "Mounts"; runc libcontainer/specconv/spec_linux.go, createLibcontainerMount()).
- A device rule without ``allow`` denies.
"""

from __future__ import annotations

from typing import Any

from msgspec import inspect

from hawse.json_text import Document

_TEXTS = (("annotations",), ("linux", "sysctl"), ("linux", "resources", "unified"))
_OBJECTS = (("linux", "netDevices"), ("linux", "timeOffsets"), ("linux", "resources", "rdma"))


def completed(document: Document, kind: type[Any]) -> tuple[Document, list[str]]:
    """Return the document in the form that hawse reads, and warnings. The check of types reports other faults later.

    ``kind`` is the type to which the document will be converted.
    """
    for path in _TEXTS:
        _complete_map(document, path, "")
    for path in _OBJECTS:
        _complete_map(document, path, {})
    whole: Document = _without_nulls(document)
    if _has_null(whole):
        _complete_lists(whole, inspect.type_info(kind))
    warnings = _complete_paths(whole.get("mounts"), "destination", "mounts")
    linux = whole.get("linux")
    if isinstance(linux, dict):
        warnings += _complete_paths(linux.get("devices"), "path", "linux.devices")
        _complete_rules(linux.get("resources"))
    return whole, warnings


def _without_nulls(value: Any) -> Any:
    """Copy a JSON value without members of objects that are null, and with half surrogate pairs replaced."""
    if isinstance(value, dict):
        return {_text(key): _without_nulls(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _has_null(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return any(map(_has_null, value.values() if isinstance(value, dict) else value))
    return value is None


def _complete_lists(value: Any, kind: inspect.Type) -> None:
    """Replace null in lists by the zero value of the entries' type; it stays if the type has no zero value."""
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    for each in kinds:
        if isinstance(each, inspect.StructType) and isinstance(value, dict):
            for field in each.fields:
                _complete_lists(value.get(field.encode_name), field.type)
        elif isinstance(each, inspect.ListType) and isinstance(value, list):
            value[:] = [_zero(each.item_type) if entry is None else entry for entry in value]
            for entry in value:
                _complete_lists(entry, each.item_type)


def _zero(kind: inspect.Type) -> Any:
    if isinstance(kind, (inspect.StructType, inspect.DictType)):
        return {}
    return {inspect.StrType: "", inspect.IntType: 0}.get(type(kind))


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
            warnings.append(f"{where}[{index}].{key}: {path[:200]!r} is not absolute: it is read as a path below /")
    return warnings


def _complete_rules(resources: Any) -> None:
    rules = resources.get("devices") if isinstance(resources, dict) else None
    for rule in rules if isinstance(rules, list) else ():
        if isinstance(rule, dict):
            rule.setdefault("allow", False)
