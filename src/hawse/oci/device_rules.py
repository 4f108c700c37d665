"""linux.resources.devices as runc applies it: a default for all devices, and exceptions from it. Pure.

runc emulates the devices controller of cgroup v1 on v2 too (libcontainer/cgroups/devices/devices_emulator.go): a rule
of type a resets all rules before it and ignores its own numbers and access; rules for the same numbers are merged; a
rule that removes part of a wildcard is an error. The rules for the devices that every container may use are appended
last, so that no rule of the specification can deny them (libcontainer/specconv/spec_linux.go, AllowedDevices).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from hawse.errors import ConfigError
from hawse.json_text import Document
from hawse.oci.types import DeviceRule

FIELD = "linux.resources.devices"
_EVERYTHING = "rwm"
_WILDCARD = -1
_KINDS = ("a", "b", "c")

_Meta = tuple[str, int, int]
"""Type, major and minor number; a number of -1 matches every device."""

#: null, random, full, tty, zero, urandom, console, pts and ptmx; nodes of any device may be created (m).
_DEFAULTS: dict[_Meta, str] = {
    ("c", _WILDCARD, _WILDCARD): "m", ("b", _WILDCARD, _WILDCARD): "m",
    ("c", 1, 3): _EVERYTHING, ("c", 1, 8): _EVERYTHING, ("c", 1, 7): _EVERYTHING, ("c", 5, 0): _EVERYTHING,
    ("c", 1, 5): _EVERYTHING, ("c", 1, 9): _EVERYTHING, ("c", 5, 1): _EVERYTHING,
    ("c", 136, _WILDCARD): _EVERYTHING, ("c", 5, 2): _EVERYTHING,
}  # fmt: skip


def effective(name: str, rules: Sequence[DeviceRule]) -> list[Document]:
    """Convert the rules to a list in which the last matching rule decides; the first is the default for all devices.

    An allowing rule matches if it covers every letter of the access, a denying rule if it covers at least one letter.
    ``name`` is the document's name for errors. Raises :class:`ConfigError` in the same cases as runc.
    """
    allow, exceptions = _emulate(name, rules)
    emulated = [_rule(("a", _WILDCARD, _WILDCARD), _EVERYTHING, allow=allow)]
    if not allow:
        return emulated + [_rule(meta, access, allow=True) for meta, access in exceptions.items()]
    # In crun, a rule matches only accesses all of whose letters it lists (src/libcrun/ebpf.c,
    # bpf_program_append_dev()): if only "w" were denied, "rw" would stay allowed. So each exception denies every access
    # first, and then allows the rest.
    wide = {meta: access for meta, access in exceptions.items() if _is_wide(meta)}
    for meta in _meets(exceptions):
        denied = {letter for other, access in wide.items() if _covers(other, meta) for letter in access}
        denied.update(exceptions.get(meta, ""))
        emulated.append(_rule(meta, _EVERYTHING, allow=False))
        if left := _ordered(set(_EVERYTHING) - denied):
            emulated.append(_rule(meta, left, allow=True))
    return emulated


def allows_all(rules: Sequence[DeviceRule]) -> bool:
    """Whether every device is allowed unless a rule denies it, as in a privileged container."""
    allow = False
    for rule in rules:
        if (rule.type or "a") == "a":
            allow = rule.allow
    return allow


def allowed(rules: Sequence[DeviceRule], kind: str, major: int, minor: int) -> str:
    """The letters of ``rwm`` that are allowed for a device of kind ``b``, ``c`` or ``u``.

    Raises :class:`ConfigError` in the same cases as :func:`effective`.
    """
    allow, exceptions = _emulate("config.json", rules)
    meta = ("b" if kind == "b" else "c", major, minor)
    letters = {letter for other, access in exceptions.items() if _covers(other, meta) for letter in access}
    return _ordered(set(_EVERYTHING) - letters if allow else letters)


def _emulate(name: str, rules: Sequence[DeviceRule]) -> tuple[bool, dict[_Meta, str]]:
    """Return the default (True: allowed), and the access letters that are exceptions from it, by device numbers."""
    default = False
    exceptions: dict[_Meta, str] = {}
    steps = [(f"{name}: {FIELD}[{index}]", *_read(name, index, rule)) for index, rule in enumerate(rules)]
    steps += [(f"{name}: {FIELD}", True, meta, access) for meta, access in _DEFAULTS.items()]
    for where, allow, meta, access in steps:
        if meta[0] == "a":
            default, exceptions = allow, {}
        elif allow != default:
            exceptions[meta] = _ordered({*exceptions.get(meta, ""), *access})
        else:
            _check_hole(where, meta, access, exceptions, allow=allow)
            if left := _ordered(set(exceptions.pop(meta, "")) - set(access)):
                exceptions[meta] = left
    return default, exceptions


def _read(name: str, index: int, rule: DeviceRule) -> tuple[bool, _Meta, str]:
    where = f"{name}: {FIELD}[{index}]"
    kind = rule.type or "a"
    if kind not in _KINDS:
        raise ConfigError(f"{where}.type: {kind[:80]!r} is not a, b or c", hint="character devices are c")
    if not rule.access or (kind != "a" and not _ordered(set(rule.access))):
        raise ConfigError(f"{where}.access: {rule.access[:80]!r} has none of r, w, m", hint='"rwm" is every access')
    for key, number in (("major", rule.major), ("minor", rule.minor)):
        if number is not None and number < _WILDCARD:
            raise ConfigError(f"{where}.{key}: {number} is not a device number", hint="-1, or no field, means all")
    major, minor = (_WILDCARD if number is None else number for number in (rule.major, rule.minor))
    return rule.allow, (kind, major, minor), _ordered(set(rule.access))


def _check_hole(where: str, meta: _Meta, access: str, exceptions: Mapping[_Meta, str], *, allow: bool) -> None:
    """Refuse a rule that removes part of a wildcard, as runc does: the kernel of cgroup v1 would ignore such a rule."""
    for other, other_access in exceptions.items():
        if other != meta and _covers(other, meta) and set(other_access) & set(access):
            before, after = ("denies", "allow") if allow else ("allows", "deny")
            what = "a device that every container has" if allow and meta in _DEFAULTS else "part of it again"
            raise ConfigError(
                f"{where}: an earlier rule {before} {_name(other)} {other_access}, and {_name(meta)} {access} would "
                f"{after} {what}, which the devices controller does not support",
                hint="name the devices in the earlier rule one by one",
            )


def _meets(exceptions: Mapping[_Meta, str]) -> list[_Meta]:
    """The numbers of the exceptions and their intersections, the widest first.

    So the last entry that matches a device is a subset of every other entry that matches it. The numbers of a single
    device need no intersections with other entries: the only one is the device itself.
    """
    wide = [meta for meta in exceptions if _is_wide(meta)]
    entries, new = set(exceptions), set(wide)
    while new:
        new = {_meet(a, b) for a, b in product(new, wide) if _overlap(a, b)} - entries
        entries |= new
        new = {meta for meta in new if _is_wide(meta)}
    return sorted(entries, key=lambda meta: (-meta[1:].count(_WILDCARD), meta))


def _is_wide(meta: _Meta) -> bool:
    return _WILDCARD in meta[1:]


def _meet(one: _Meta, other: _Meta) -> _Meta:
    return one[0], max(one[1], other[1]), max(one[2], other[2])


def _overlap(one: _Meta, other: _Meta) -> bool:
    return one[0] == other[0] and all(
        _WILDCARD in pair or len(set(pair)) == 1 for pair in zip(one[1:], other[1:], strict=True)
    )


def _covers(wide: _Meta, narrow: _Meta) -> bool:
    """Whether ``wide`` matches every device that ``narrow`` matches."""
    return wide[0] == narrow[0] and all(a in (_WILDCARD, b) for a, b in zip(wide[1:], narrow[1:], strict=True))


def _ordered(access: set[str]) -> str:
    return "".join(letter for letter in _EVERYTHING if letter in access)


def _rule(meta: _Meta, access: str, *, allow: bool) -> Document:
    numbers = {key: number for key, number in zip(("major", "minor"), meta[1:], strict=True) if number != _WILDCARD}
    return {"allow": allow, "type": meta[0], **numbers, "access": access}


def _name(meta: _Meta) -> str:
    major, minor = ("*" if number == _WILDCARD else number for number in meta[1:])
    return f"{meta[0]} {major}:{minor}"
