"""`hawse events ID`: print statistics and OOM kills in runc's JSON, one object in each line."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from typing import TYPE_CHECKING

from hawse.commands.client import call
from hawse.errors import NotFoundError, StateError, UsageError
from hawse.json_text import Document
from hawse.state.store import STOPPED

if TYPE_CHECKING:
    from hawse.cli.settings import Settings
    from hawse.state.store import Store

HELP = "print statistics of a container at intervals, and an event when the OOM killer kills one of its processes"
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("--stats", action="store_true", help="print the statistics once")
    parser.add_argument("--interval", metavar="TIME", default="5s", help="time between statistics (default: 5s)")
    parser.add_argument("id", metavar="ID")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the events until the container ends."""
    store = settings.store(args.id)
    interval = parse_interval(args.interval)
    if store.read()["status"] == STOPPED:
        raise StateError(f"container with id {store.name} is not running: container not running")
    if args.stats:
        _print_statistics(store)
        return 0
    printed = 0
    try:
        printed = _kills(call(store, "await_oom", {"seen": -1, "seconds": 0.0}))
        due = time.monotonic() + interval
        while True:
            left = due - time.monotonic()
            if left <= 0:
                _print_statistics(store)
                due += interval
                continue
            kills = _kills(call(store, "await_oom", {"seen": printed, "seconds": left}))
            printed = _print_kills(store, printed, kills)
    except StateError:
        # The container has ended, perhaps because of an OOM kill: the monitor's last state has the number of kills.
        _print_kills(store, printed, _last_kills(store))
        return 0


def parse_interval(text: str) -> float:
    """Seconds of "5s", "1m30s" or "250ms" (Go's time.ParseDuration). Raises UsageError."""
    parts = re.findall(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)", text, re.ASCII)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise UsageError(f"events: --interval {text[:40]!r} is not a time", hint="write it as 5s or 1m30s")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds <= 0:
        raise UsageError("events: --interval: duration interval must be greater than 0")
    return seconds


def _print_statistics(store: Store) -> None:
    _print({"type": "stats", "id": store.name, "data": call(store, "statistics", {})})


def _print_kills(store: Store, printed: int, kills: int) -> int:
    """Print one event if ``kills`` is more than was printed. runc is notified of kills without their number, too."""
    if kills > printed:
        _print({"type": "oom", "id": store.name})
    return max(kills, printed)


def _print(event: Document) -> None:
    print(json.dumps(event))
    sys.stdout.flush()


def _kills(answer: object) -> int:
    return answer if isinstance(answer, int) else 0


def _last_kills(store: Store) -> int:
    try:
        return _kills(store.read().get("oomKills"))
    except NotFoundError:
        return 0
