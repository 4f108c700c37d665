"""`update`: check which limits of a running container are to change, and compute the limits afterwards. Pure.

The fields are those of linux.resources in config.json. As in runc (update.go), zero, null and the empty string change
nothing, and device rules are ignored: engines send them with every update.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import msgspec

from hawse.errors import ConfigError
from hawse.json_text import Document
from hawse.oci.limits.changes import CHANGEABLE, ON_HOST, is_set
from hawse.oci.types import Bytes, Int64, Text, Uint64

_UNIFIED = ("memory.", "cpu.", "pids.")
_FILES = {
    ("memory", "limit"): "memory.max",
    ("memory", "swap"): "memory.swap.max",
    ("cpu", "quota"): "cpu.max",
    ("pids", "limit"): "pids.max",
}
_REASONS = {
    "memory": "the guest uses cgroup v2, which has no such limit",
    "cpu": "the guest uses cgroup v2, which has no such limit",
    "blockIO": "the container's files are in a shared directory: the guest has no disk to limit",
    "hugepageLimits": "the guest's huge pages are reserved when the container is created",
    "network": "the guest's cgroups do not mark packets",
    "rdma": "the guest has no RDMA devices",
    "intelRdt": "the guest cannot allocate CPU cache",
}


class Memory(msgspec.Struct, frozen=True):
    limit: Bytes | None = None
    reservation: Bytes | None = None
    swap: Bytes | None = None


class Cpu(msgspec.Struct, frozen=True):
    shares: Uint64 | None = None
    quota: Int64 | None = None
    period: Uint64 | None = None
    cpus: Text | None = None
    mems: Text | None = None


class Pids(msgspec.Struct, frozen=True):
    limit: Int64 | None = None


class Update(msgspec.Struct, frozen=True):
    """The types and bounds of the fields that can change; other fields are only compared."""

    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    unified: dict[str, str] | None = None


def merge(update: object, current: Mapping[str, Any]) -> Document:
    """Return the limits after the update. Raises :class:`ConfigError` naming a field that cannot be applied."""
    if not isinstance(update, dict):
        raise ConfigError("update: the resources are not a JSON object", hint="see linux.resources in config-linux.md")
    try:
        fields = msgspec.convert(update, Update)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise ConfigError(
            f"update: {where.strip('`.') or 'resources'}: {what[0].lower()}{what[1:].replace('`', '')}",
            hint="see linux.resources in config-linux.md",
        ) from None
    _check_size(fields.cpu or Cpu())
    merged = copy.deepcopy(dict(current))
    for section, value in update.items():
        if section == "unified":
            _merge_unified(merged, value or {}, current.get("unified") or {})
        elif section in CHANGEABLE:
            for field, number in (value or {}).items():
                if field in CHANGEABLE[section] or (section, field) in ON_HOST:
                    if number:
                        merged[section] = {**(merged.get(section) or {}), field: number}
                else:
                    _refuse_change(f"{section}.{field}", number, (current.get(section) or {}).get(field), section)
        elif section in _REASONS:
            _refuse_change(section, value, current.get(section), section)
    _check_swap(merged.get("memory") or {})
    return merged


def for_guest(merged: Mapping[str, Any]) -> Document:
    """The limits that the guest has to set.

    A negative limit means unlimited. crun 1.8.1 does not write the cgroup file in this case
    (src/libcrun/cgroup-resources.c), so it is set through ``unified``.
    """
    chosen: dict[str, Document] = {}
    unified: dict[str, str] = {}
    for section, fields in CHANGEABLE.items():
        for field in fields:
            value = (merged.get(section) or {}).get(field)
            if value and value < 0 and (section, field) in _FILES:
                unified[_FILES[section, field]] = "max"
            elif value:
                chosen.setdefault(section, {})[field] = value
    if unified | (merged.get("unified") or {}):
        chosen["unified"] = unified | (merged.get("unified") or {})
    return chosen


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Document:
    """The limits of :func:`for_guest` that have to be set again after a change.

    These are whole sections, since their fields depend on each other (``swap`` is the sum of memory and swap; cpu.max
    contains quota and period), and single files of ``unified``.
    """
    changed = {section: value for section, value in after.items() if value != before.get(section)}
    if "unified" in changed:
        known = before.get("unified") or {}
        changed["unified"] = {name: text for name, text in after["unified"].items() if text != known.get(name)}
    return {section: value for section, value in changed.items() if value}


def _merge_unified(merged: Document, values: Mapping[str, str], current: Mapping[str, str]) -> None:
    for name, value in values.items():
        if value == current.get(name):
            continue
        if not name.startswith(_UNIFIED) or "/" in name:
            raise ConfigError(
                f"update: unified.{name[:80]} cannot be changed while the container runs",
                hint="files of the controllers memory, cpu and pids can",
            )
        merged["unified"] = {**(merged.get("unified") or {}), name: value}


def _refuse_change(name: str, value: object, current: object, section: str) -> None:
    """Refuse a new value. Engines repeat the values of config.json, or send values that mean "unchanged"."""
    if is_set(value) and value != current:
        raise ConfigError(f"update: {name} cannot be changed while the container runs: {_REASONS[section]}")


def _check_size(cpu: Cpu) -> None:
    """Check the bound of unsigned fields of 64 bits: msgspec has no bounds above 2**63 - 1."""
    for field, number in (("shares", cpu.shares), ("period", cpu.period)):
        if (number or 0) >= 2**64:
            raise ConfigError(
                f"update: cpu.{field}: expected int < 2**64", hint="see linux.resources in config-linux.md"
            )


def _check_swap(memory: Mapping[str, Any]) -> None:
    """Check the limits as runc does: ``swap`` is the sum of memory and swap (config-linux.md)."""
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if swap > 0 and not 0 < limit <= swap:
        raise ConfigError(
            f"update: memory.swap {swap} is the sum of memory and swap, and memory.limit is {limit or 'not set'}",
            hint="set both, and memory.swap to at least memory.limit",
        )
