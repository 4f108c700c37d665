"""`update`: what of a container's limits can be changed while it runs, and what they are afterwards. Pure.

The fields are config.json's linux.resources. As in runc (update.go), zero, null and the empty string change nothing,
and device rules are passed over: engines send them along with every update.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import msgspec

from hawse.errors import ConfigError
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
    "memory": "cgroup v2, which the guest has, knows no such limit",
    "cpu": "cgroup v2, which the guest has, knows no such limit",
    "blockIO": "the container's files come over a shared directory: the guest has no disk to limit",
    "hugepageLimits": "the guest's huge pages are reserved when the container is created",
    "network": "the guest's cgroups do not mark packets",
    "rdma": "the guest has no RDMA devices",
    "intelRdt": "a guest has no cache allocation",
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
    """The types of what can be changed, with the bounds of config.json; the rest is only compared."""

    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    unified: dict[str, str] | None = None


def merge(wanted: object, current: Mapping[str, Any]) -> dict[str, Any]:
    """The limits after the update. Raises :class:`ConfigError` naming a field that cannot be applied."""
    if not isinstance(wanted, dict):
        raise ConfigError("update: the resources are no JSON object", hint="see linux.resources in config-linux.md")
    try:
        update = msgspec.convert(wanted, Update)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise ConfigError(
            f"update: {where.strip('`.') or 'resources'}: {what[0].lower()}{what[1:].replace('`', '')}",
            hint="see linux.resources in config-linux.md",
        ) from None
    _check_size(update.cpu or Cpu())
    merged = copy.deepcopy(dict(current))
    for section, value in wanted.items():
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


def for_guest(merged: Mapping[str, Any]) -> dict[str, Any]:
    """What of the limits the guest is to set.

    One below zero is none. crun 1.8.1 leaves the file as it is then (src/libcrun/cgroup-resources.c), so the file is
    named.
    """
    chosen: dict[str, dict[str, Any]] = {}
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


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Of limits of :func:`for_guest` those that are to be set again: whole sections, since their fields belong together
    (``swap`` is memory and swap; cpu.max has quota and period), and single files of ``unified``."""
    changed = {section: value for section, value in after.items() if value != before.get(section)}
    if "unified" in changed:
        known = before.get("unified") or {}
        changed["unified"] = {name: text for name, text in after["unified"].items() if text != known.get(name)}
    return {section: value for section, value in changed.items() if value}


def _merge_unified(merged: dict[str, Any], values: Mapping[str, str], current: Mapping[str, str]) -> None:
    for name, value in values.items():
        if value == current.get(name):
            continue
        if not name.startswith(_UNIFIED) or "/" in name:
            raise ConfigError(
                f"update: unified.{name[:80]} cannot be changed while the container runs",
                hint="files of the controllers memory, cpu and pids can",
            )
        merged["unified"] = {**(merged.get("unified") or {}), name: value}


def _refuse_change(name: str, wanted: object, current: object, section: str) -> None:
    """Engines send what config.json has again, and nothing in many ways; anything else would be a change."""
    if is_set(wanted) and wanted != current:
        raise ConfigError(f"update: {name} cannot be changed while the container runs: {_REASONS[section]}")


def _check_size(cpu: Cpu) -> None:
    """Refuse what 64 bits cannot hold without a sign; msgspec has no bounds beyond those with one."""
    for field, number in (("shares", cpu.shares), ("period", cpu.period)):
        if (number or 0) >= 2**64:
            raise ConfigError(
                f"update: cpu.{field}: expected int < 2**64", hint="see linux.resources in config-linux.md"
            )


def _check_swap(memory: Mapping[str, Any]) -> None:
    """As runc: ``swap`` is memory and swap together (config-linux.md)."""
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if swap > 0 and not 0 < limit <= swap:
        raise ConfigError(
            f"update: memory.swap {swap} is memory and swap together, and memory.limit is {limit or 'not set'}",
            hint="give both, the first not less than the second",
        )
