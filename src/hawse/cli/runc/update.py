"""`hawse update ID`: change the limits of a container."""

from __future__ import annotations

import re
import sys

from hawse.cli.hot_options import expect, see, split
from hawse.commands.client import call
from hawse.errors import ConfigError, UsageError
from hawse.json_text import Document, parse
from hawse.notes import warning
from hawse.oci.limits.changes import changes_nothing
from hawse.state.store import CREATED, PAUSED, RUNNING

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from hawse.cli.settings import Settings

_MAX_BYTES = 1024 * 1024
_MAX_NUMBER = 2**63 - 1  # most fields of linux.resources have the type int64
_MAX_UNSIGNED = 2**64 - 1
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}

#: Option → section and field of linux.resources. The options have runc's names.
_NUMBERS = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-share": ("cpu", "shares"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "pids-limit": ("pids", "limit"),
}
#: Of these, those whose fields have the type uint64 or uint16: runc refuses a sign.
_UNSIGNED = ("blkio-weight", "cpu-period", "cpu-share", "cpu-rt-period")
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

HELP = f"""change the limits of a container, by options or by a JSON file; with a file the options are ignored

  -r, --resources FILE   JSON in the format of linux.resources in config.json; - for stdin
  numbers                {" ".join(f"--{name}" for name in _NUMBERS)}
  texts                  {" ".join(f"--{name}" for name in _TEXTS)}
  bytes                  {" ".join(f"--{name}" for name in _SIZES)}
                         with a unit such as m; -1 for no limit"""
USAGE = "[OPTION VALUE]... ID"


def main(words: list[str], settings: Settings) -> int:
    """Set the limits through the monitor, unless the state shows that the container has them already."""
    spelled = ["--resources" if word == "-r" else word for word in words]
    given = split(spelled, options=("resources", *_NUMBERS, *_TEXTS, *_SIZES), command="update")
    [name] = expect(given, "update", "ID")
    file = given.options.get("resources")
    resources = _read(file) if file is not None else from_options(given.options)
    store = settings.store(name)
    state = store.read()
    limits = state.get("limits")
    if state["status"] in (CREATED, RUNNING, PAUSED) and limits is not None and changes_nothing(resources, limits):
        return 0
    warnings = call(store, "update", {"resources": resources})
    settings.log.tell(warning(str(text)) for text in (warnings if isinstance(warnings, list) else ()))
    return 0


def from_options(options: Mapping[str, str]) -> Document:
    """linux.resources with the values of the options, which are given by name. Raises UsageError."""
    resources: Document = {}
    for name, text in options.items():
        section, field = (_NUMBERS | _TEXTS | _SIZES)[name]
        value: int | str = text
        if name in _NUMBERS:
            value = _parse_number(name, text)
        elif name in _SIZES:
            value = parse_size(name, text)
        resources.setdefault(section, {})[field] = value
    return resources


def _parse_number(name: str, text: str) -> int:
    if name in _UNSIGNED:
        if not re.fullmatch(r"\d{1,20}", text, re.ASCII) or int(text) > _MAX_UNSIGNED:
            raise UsageError(
                f"update: --{name} {text[:40]!r} is not a number of 64 bits without a sign", hint=see("update")
            )
    elif not re.fullmatch(r"-?\d{1,19}", text, re.ASCII) or abs(int(text)) > _MAX_NUMBER:
        raise UsageError(f"update: --{name} {text[:40]!r} is not a number of 64 bits", hint=see("update"))
    return int(text)


def parse_size(name: str, text: str) -> int:
    """The bytes of an option's value such as "512m". As in Docker, units are powers of 1024; -1 means unlimited.

    Raises UsageError naming the option.
    """
    if text == "-1":
        return -1
    match = re.fullmatch(r"(\d{1,18})(?: ?([kmgtp])?i?b?)?", text, re.ASCII | re.IGNORECASE)
    if not match:
        raise UsageError(f"update: --{name} {text[:40]!r} is not a size", hint="write it as 512m")
    size = int(match[1]) * int(1024 ** _UNITS[(match[2] or "").lower()])
    if size > _MAX_NUMBER:
        raise UsageError(f"update: --{name} {text[:40]!r} is more than 64 bits can hold", hint="use -1 for no limit")
    return size


def _read(name: str) -> Any:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(
                f"update: {name}: larger than {_MAX_BYTES} bytes", hint="name a file with linux.resources"
            )
        return parse(data)
    except OSError as error:
        raise ConfigError(f"update: {name}: {(error.strerror or '').lower()}") from None
    except ValueError as error:
        raise ConfigError(f"update: {name}: not JSON: {error}") from None
