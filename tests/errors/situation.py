"""Situations: functions that are called with a fake host, and fail or return a warning."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from hawse.oci.default_spec import example
from hawse.oci.guest.specification import plan_guest
from hawse.oci.load import load_bundle
from tests.support.bundles import write
from tests.support.sysfs import FakeSysfs

Act = Callable[[FakeSysfs], Any]


def bundle(**parts: Any) -> Act:
    """A bundle: runc's example with these fields; objects are merged, other values are replaced."""

    def act(host: FakeSysfs) -> Any:
        spec: dict[str, Any] = example()
        for name, value in parts.items():
            spec[name] = {**spec[name], **value} if isinstance(value, dict) and name in spec else value
        os.mkdir(f"{host.root}/rootfs")
        write(host.root, spec)
        return plan_guest(load_bundle(host.root), container="c1")

    return act


def warned(**parts: Any) -> Act:
    """A bundle with these fields; returns its only warning."""

    def act(host: FakeSysfs) -> str:
        notes = bundle(**parts)(host).notes
        [text] = [text for level, text in notes if level == "warning"]
        return str(text)

    return act


def hurried() -> SimpleNamespace:
    """A module ``time`` in which an hour passes between any two looks at the clock."""
    return SimpleNamespace(monotonic=itertools.count(0, 3600).__next__, sleep=lambda _seconds: None)
