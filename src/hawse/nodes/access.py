"""What the rules of ``linux.resources.devices`` let a container do with one device. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hawse.oci.types import DeviceRule

#: Pseudo-terminals, which every runtime allows after the spec's rules (runc libcontainer/specconv/spec_linux.go,
#: AllowedDevices; crun src/libcrun/cgroup-resources.c, get_default_devices()). The others are among the known numbers.
_DEFAULT = DeviceRule(allow=True, type="c", major=136, access="rwm")


def allowed(rules: Sequence[DeviceRule], kind: str, major: int, minor: int) -> str:
    """The letters of ``rwm`` that are allowed for a device of kind ``b``, ``c`` or ``u``.

    Everything is denied at first, and of the rules that match the last one counts, for each letter by itself
    (config-linux.md, Allowed Device list).
    """
    kind = "b" if kind == "b" else "c"
    granted: set[str] = set()
    for rule in (*rules, _DEFAULT):
        if rule.type in ("a", "", kind) and _is(rule.major, major) and _is(rule.minor, minor):
            letters = set(rule.access) & set("rwm")
            granted = granted | letters if rule.allow else granted - letters
    return "".join(letter for letter in "rwm" if letter in granted)


def allows_all(rules: Sequence[DeviceRule]) -> bool:
    """Whether the rules allow every device, as those of a privileged container do.

    The last rule for all devices counts, since each overrides those before it.
    """
    answer = False
    for rule in rules:
        everything = rule.type in ("a", "") and is_wildcard(rule.major) and is_wildcard(rule.minor)
        if everything and (not rule.allow or set("rwm") <= set(rule.access)):
            answer = rule.allow
    return answer


def is_wildcard(number: int | None) -> bool:
    """Whether a number of a rule stands for all numbers."""
    return number is None or number < 0


def _is(wanted: int | None, number: int) -> bool:
    return is_wildcard(wanted) or wanted == number
