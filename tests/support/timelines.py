"""Files that `--timeline` writes."""

from __future__ import annotations

import json
from pathlib import Path


def step_names(trace: Path) -> set[str]:
    """The names of the steps in a timeline."""
    return {event["name"] for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"}
