"""`hawse update ID`: other limits for a container that runs."""

from __future__ import annotations

import re
import sys

from hawse.cli.options import expect, split
from hawse.container.client import call
from hawse.errors import ConfigError, UsageError
from hawse.json_text import parse
from hawse.oci.changes import changes_nothing
from hawse.sandbox.state import CREATED, PAUSED, RUNNING

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from hawse.cli.settings import Settings

_MAX_BYTES = 1024 * 1024
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}

#: Option → section and field of linux.resources. runc's own names.
_NUMBERS = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-share": ("cpu", "shares"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "pids-limit": ("pids", "limit"),
}
_TEXTS = {
    "cpuset-cpus": ("cpu", "cpus"),
    "cpuset-mems": ("cpu", "mems"),
    "l3-cache-schema": ("intelRdt", "l3CacheSchema"),
    "mem-bw-schema": ("intelRdt", "memBwSchema"),
}
_SIZES = {
    "kernel-memory": ("memory", "kernel"),
    "kernel-memory-tcp": ("memory", "kernelTCP"),
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
}

HELP = f"""change the limits of a container: by options, or by JSON, with which the options are ignored

  -r, --resources FILE   JSON as linux.resources of config.json, - for stdin
  numbers                {" ".join(f"--{name}" for name in _NUMBERS)}
  texts                  {" ".join(f"--{name}" for name in _TEXTS)}
  bytes                  {" ".join(f"--{name}" for name in _SIZES)}
                         with a unit such as m, or -1 for none"""
USAGE = "[OPTION VALUE]... ID"


def main(words: list[str], settings: Settings) -> int:
    """Ask the monitor, unless the state says that the container has these limits."""
    spelled = ["--resources" if word == "-r" else word for word in words]
    found = split(spelled, options=("resources", *_NUMBERS, *_TEXTS, *_SIZES))
    [name] = expect(found, "update", "ID")
    file = found.options.get("resources")
    wanted = _read(file) if file is not None else from_options(found.options)
    store = settings.store(name)
    state = store.read()
    limits = state.get("limits")
    if state["status"] in (CREATED, RUNNING, PAUSED) and limits is not None and changes_nothing(wanted, limits):
        return 0
    warnings = call(store, "update", {"resources": wanted})
    settings.log.tell(("warning", str(text)) for text in (warnings if isinstance(warnings, list) else ()))
    return 0


def from_options(options: Mapping[str, str]) -> dict[str, Any]:
    """linux.resources with what the options, by their names, say. Raises UsageError."""
    wanted: dict[str, Any] = {}
    for name, text in options.items():
        section, field = (_NUMBERS | _TEXTS | _SIZES)[name]
        value: int | str = text
        if name in _NUMBERS:
            value = _parse_number(name, text)
        elif name in _SIZES:
            value = parse_size(text)
        wanted.setdefault(section, {})[field] = value
    return wanted


def _parse_number(name: str, text: str) -> int:
    if not re.fullmatch(r"-?\d{1,19}", text, re.ASCII):
        raise UsageError(f"update: --{name} {text[:40]!r} is no number")
    return int(text)


def parse_size(text: str) -> int:
    """Bytes from "512m", as docker's units read it: powers of 1024; -1 is no limit. Raises UsageError."""
    if text == "-1":
        return -1
    match = re.fullmatch(r"(\d{1,18})(?: ?([kmgtp])?i?b?)?", text, re.ASCII | re.IGNORECASE)
    if not match:
        raise UsageError(f"update: {text[:40]!r} is no size", hint="write it as 512m")
    return int(match[1]) * int(1024 ** _UNITS[(match[2] or "").lower()])


def _read(name: str) -> Any:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"update: {name}: larger than {_MAX_BYTES} bytes", hint="these are no resources")
        return parse(data)
    except OSError as error:
        raise ConfigError(f"update: {name}: {(error.strerror or '').lower()}") from None
    except ValueError as error:
        raise ConfigError(f"update: {name}: not JSON: {error}") from None
