"""The configuration of hawse that `hawse install` writes if none exists. Pure."""

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
#: Advice about a setting of [vm] that is missing in a file.
_NOTES = {
    "confine": 'set it to "required" to refuse a QEMU that is not in a jail',
    "accel": 'set it to "kvm" to refuse guests without KVM: QEMU does not consider its TCG a security boundary',
}


def text(*, kvm: bool) -> str:
    """The text of the file. With ``kvm`` it refuses guests without KVM."""
    return f"{_FIRST}[vm]\n{_CONFINE}{_KVM if kvm else _AUTO}"


def is_ours(content: str) -> bool:
    """Whether `hawse install` wrote this text, perhaps before somebody changed it."""
    return content.startswith(_FIRST)


def is_unchanged(content: str) -> bool:
    """Whether the text is exactly as `hawse install` writes it."""
    return content in (text(kvm=True), text(kvm=False))


def notes(content: str, *, kvm: Callable[[], bool]) -> list[str]:
    """Advice about an existing file: a line for each missing setting, or one about a file that cannot be parsed.

    ``kvm`` tries whether KVM works. It is called only if ``vm.accel`` is missing.
    """
    try:
        table = tomllib.loads(content).get("vm", {})
    except tomllib.TOMLDecodeError as error:
        return [f"hawse cannot read it, it is not TOML: {error}"]
    except RecursionError:
        return ["hawse cannot read it, it is nested too deeply"]
    lacking = [key for key in _NOTES if key not in table]
    if "accel" in lacking and not kvm():
        lacking.remove("accel")
    return [f"vm.{key} is not set; {_NOTES[key]}" for key in lacking]
