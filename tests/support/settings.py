"""Configurations for tests."""

from __future__ import annotations

from hawse.config import ANNOTATIONS
from tests.support.patience import kvm_works


def with_annotations(text: str) -> str:
    """A configuration's text that allows every annotation, unless it already lists the allowed ones."""
    return _with(text, "devices", f"annotations = {list(ANNOTATIONS)}")


def confined(text: str) -> str:
    """A configuration's text that requires a jail for QEMU, unless it sets another value; not with 9p."""
    return _with(text, "vm", 'confine = "off"' if 'share = "9p"' in text else 'confine = "required"')


def accelerated(text: str) -> str:
    """A configuration's text in which guests may run without KVM where it does not work, without a warning at each
    start, unless it sets another value."""
    return text if kvm_works() else _with(text, "vm", 'accel = "tcg"')


def _with(text: str, section: str, line: str) -> str:
    if f"\n{line.partition(' =')[0]} = " in text:
        return text
    head = f"[{section}]\n"
    return text.replace(head, f"{head}{line}\n", 1) if head in text else f"{text}\n{head}{line}\n"
