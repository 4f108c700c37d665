"""hawse's own configuration as `hawse install` writes it where there is none. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Callable

_FIRST = "# Written by `hawse install`. docs/config.md has all keys.\n"
_CONFINE = 'confine = "required"  # refuse to start a QEMU that is not in a jail\n'
_KVM = 'accel = "kvm"         # refuse to start a guest without KVM\n'
_AUTO = (
    'accel = "auto"        # KVM did not work when this was written: guests run under QEMU\'s TCG, which QEMU\n'
    '                      # does not consider a security boundary; "kvm" refuses to start them\n'
)
#: What is said of a setting of [vm] that a file lacks.
_NOTES = {
    "confine": 'set it to "required" to refuse a QEMU that is not in a jail',
    "accel": 'set it to "kvm" to refuse guests without KVM: QEMU does not consider its TCG a security boundary',
}


def text(*, kvm: bool) -> str:
    """The file; ``kvm``: whether guests are to have KVM or not to start."""
    return f"{_FIRST}[vm]\n{_CONFINE}{_KVM if kvm else _AUTO}"


def is_ours(found: str) -> bool:
    """Whether `hawse install` has written a file, which others may have changed."""
    return found.startswith(_FIRST)


def is_unchanged(found: str) -> bool:
    """Whether a file is as `hawse install` writes it."""
    return found in (text(kvm=True), text(kvm=False))


def notes(found: str, *, kvm: Callable[[], bool]) -> list[str]:
    """What to say of a file that others wrote: a line for each setting that it lacks, or that it cannot be read.

    ``kvm`` finds out whether KVM works, and is called for a file without ``vm.accel`` only.
    """
    try:
        table = tomllib.loads(found).get("vm", {})
    except tomllib.TOMLDecodeError as error:
        return [f"not TOML, hawse cannot read it: {error}"]
    except RecursionError:
        return ["nested too deeply, hawse cannot read it"]
    lacking = [key for key in _NOTES if key not in table]
    if "accel" in lacking and not kvm():
        lacking.remove("accel")
    return [f"vm.{key} is not set; {_NOTES[key]}" for key in lacking]
