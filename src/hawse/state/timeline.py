"""Write a sandbox's start as a trace for chrome://tracing and Perfetto ("Trace Event Format", JSON object form)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hawse.errors import ConfigError
from hawse.json_text import parse
from hawse.linux.files import replace_file
from hawse.state.steps import Step

_MICRO = 1_000_000
_MAX_BYTES = 16 * 1024 * 1024
_MAKE = "create one with `hawse run --timeline FILE`"


def trace(steps: Sequence[Step], *, name: str) -> dict[str, object]:
    """Convert steps to a trace: one process with a thread per lane, ordered by begin; times from the first step."""
    lanes: dict[str, int] = {}
    for lane, _, _, _ in sorted(steps, key=lambda step: step[2]):
        lanes.setdefault(lane, len(lanes) + 1)
    origin = min((step[2] for step in steps), default=0.0)
    events: list[dict[str, object]] = [_named("process_name", 0, f"hawse {name}")]
    for lane, number in lanes.items():
        events.append(_named("thread_name", number, lane))
        events.append({**_named("thread_sort_index", number, ""), "args": {"sort_index": number}})
    for lane, text, began, ended in sorted(steps, key=lambda step: (step[2], -step[3])):
        times = {"ts": round((began - origin) * _MICRO), "dur": max(1, round((ended - began) * _MICRO))}
        events.append({"ph": "X", "pid": 1, "tid": lanes[lane], "cat": lane, "name": text, **times})
    return {"displayTimeUnit": "ms", "traceEvents": events}


def write(path: str, steps: Sequence[Step], *, name: str) -> None:
    """Write the trace atomically. Errors are ignored, since no other step depends on the trace."""
    try:
        replace_file(path, json.dumps(trace(steps, name=name)).encode())
    except OSError:
        return


def read(path: str) -> list[Step]:
    """Read the steps of a trace, in seconds from the first one. Raises :class:`ConfigError` with the reason."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"timeline {path}: {error.strerror}", hint="give the file that --timeline wrote") from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"timeline {path}: larger than {_MAX_BYTES} bytes, so it is not a sandbox's timeline")
    try:
        events = parse(data)["traceEvents"]
        steps = [
            (str(event["cat"]), str(event["name"]), event["ts"] / _MICRO, (event["ts"] + event["dur"]) / _MICRO)
            for event in events
            if event["ph"] == "X"
        ]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"timeline {path}: not a trace", hint=_MAKE) from None
    if not steps:
        raise ConfigError(f"timeline {path}: the trace contains no steps", hint=_MAKE)
    return steps


def _named(kind: str, thread: int, name: str) -> dict[str, object]:
    return {"ph": "M", "pid": 1, "tid": thread, "name": kind, "args": {"name": name}}
