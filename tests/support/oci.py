"""Parts of OCI specifications, parsed as hawse parses them, and the meaning of device rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hawse.oci.load import Bundle, load_bundle
from hawse.oci.types import Device


def device(path: str, major: int | None, minor: int | None, kind: str = "c") -> Device:
    """An entry of linux.devices."""
    return Device(path=path, type=kind, major=major, minor=minor)


def bundle_with(path: Path, spec: dict[str, Any]) -> Bundle:
    """Write a bundle with this specification and load it."""
    (path / "rootfs").mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(spec))
    return load_bundle(str(path))


def verdict(rules: list[dict[str, Any]], numbers: tuple[int, int], access: str) -> bool:
    """Whether device rules allow an access to a character device, as crun decides: by the last rule that covers the
    whole access."""
    for one in reversed(rules):
        hit = all(one.get(key, -1) in (-1, n) for key, n in zip(("major", "minor"), numbers, strict=True))
        if (one["type"] == "a" or (one["type"] == "c" and hit)) and set(access) <= set(one["access"]):
            return bool(one["allow"])
    return False
