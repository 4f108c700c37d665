"""`hawse update ID`: other limits for a container that runs."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from hawse.container.client import call
from hawse.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "change the limits of a container: by options, or by JSON, which passes the options over"
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


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("-r", "--resources", metavar="FILE", help="JSON as linux.resources of config.json, - for stdin")
    for name in _NUMBERS:
        parser.add_argument(f"--{name}", metavar="N", type=int)
    for name in _TEXTS:
        parser.add_argument(f"--{name}", metavar="TEXT")
    for name in _SIZES:
        parser.add_argument(f"--{name}", metavar="BYTES", type=parse_size, help="with a unit such as m, or -1 for none")
    parser.add_argument("id")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ask the monitor."""
    wanted = _read(args.resources) if args.resources else from_options(vars(args))
    warnings = call(settings.store(args.id), "update", {"resources": wanted})
    settings.log.tell(("warning", str(text)) for text in (warnings if isinstance(warnings, list) else ()))
    return 0


def from_options(options: dict[str, Any]) -> dict[str, Any]:
    """linux.resources with what the options say."""
    wanted: dict[str, Any] = {}
    for name, (section, field) in (_NUMBERS | _TEXTS | _SIZES).items():
        value = options.get(name.replace("-", "_"))
        if value is not None:
            wanted.setdefault(section, {})[field] = value
    return wanted


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
        return json.loads(data)
    except OSError as error:
        raise ConfigError(f"update: {name}: {(error.strerror or '').lower()}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"update: {name}: not JSON: {error}") from None
