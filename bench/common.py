"""Shared parts of the benchmarks: timing of commands, and the bare boot with which starts are compared."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from hawse.cli.own.timeline import title
from hawse.config import load_config
from hawse.monitor.machine.start_programs import launch
from hawse.planner.vm import plan_machine
from hawse.state.steps import Steps
from hawse.state.timeline import read
from tests.support.bundles import add_devices, make_bundle, write
from tests.support.runtime import Runtime

Seconds = list[float]
DEVICES = [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 511, 5)]
#: A script that opens the group and then prints a line.
OPENS = "exec 3<>/dev/vfio/%d && echo opened"

_SAID = b"reached"
_INIT = 'rdinit=/usr/bin/sh -- -c "echo reached; while :; do :; done"'


@dataclass
class Measured:
    """Figures by name, their readings, and lines of Markdown with a breakdown."""

    figures: dict[str, float] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Quiet:
    """A log that discards its messages."""

    def warning(self, message: str) -> None:
        """Discard a warning."""

    def debug(self, message: str) -> None:
        """Discard a message."""


@contextmanager
def workbench(config: str = "") -> Iterator[tuple[Runtime, str]]:
    """hawse with a private root and configuration, and a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="hawse-bench-") as directory:
        runtime = Runtime(directory)
        runtime.configure(config)
        yield runtime, directory


def bare_boot(config: str = "") -> float:
    """Seconds from the start of QEMU until the first program of the initial ramfs runs.

    The VM, kernel, initrd and command line are hawse's, except that the first program is a shell.
    """
    with tempfile.TemporaryDirectory(prefix="hawse-bench-") as directory:
        Path(f"{directory}/config.toml").write_text(config)
        machine, _ = plan_machine(load_config(f"{directory}/config.toml"), [])
        append = f"{machine.shape.kernel_append} {_INIT}".strip()
        bare = replace(machine, shape=dataclasses.replace(machine.shape, kernel_append=append, share=""), template=None)
        began = time.monotonic()
        launched = launch(bare, directory, Steps("/dev/null", []), share_plugged=False)
        with launched.undo:
            output = b""
            while _SAID not in output:
                piece = launched.console.recv(4096)
                assert piece, f"the bare boot ended: {output.decode(errors='replace')}"
                output += piece
            return time.monotonic() - began


def timed(argv: Sequence[str]) -> float:
    """The duration of a command in seconds; it must succeed."""
    began = time.monotonic()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def first_line(argv: Sequence[str]) -> float:
    """Seconds from exec to the first line of a command, which must then succeed."""
    began = time.monotonic()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.monotonic() - began
        _, errors = process.communicate()
    assert line and process.returncode == 0, errors.decode(errors="replace")
    return seconds


def make_true(directory: str) -> str:
    """Create a bundle that runs true; returns its path."""
    make_bundle(f"{directory}/true", ["/bin/true"])
    return f"{directory}/true"


def make_opener(directory: str, *groups: int) -> str:
    """Create a bundle that opens every group and then prints a line; returns its path."""
    bundle = f"{directory}/opens-{len(groups)}"
    script = "; ".join(f"exec {3 + i}<>/dev/vfio/{group} || exit 1" for i, group in enumerate(groups))
    spec = make_bundle(bundle, ["/bin/sh", "-c", f"{script}; echo opened"])
    add_devices(spec, [DEVICES[0], *((f"/dev/vfio/{group}", 511, group) for group in groups)])
    write(bundle, spec)
    return bundle


def steps_of(trace: str) -> dict[str, tuple[float, float]]:
    """Begin and end of each step of a start in seconds, by "lane: name"."""
    return {title(step): (step[2], step[3]) for step in read(trace)}


def medians(rounds: Sequence[dict[str, tuple[float, float]]]) -> dict[str, list[float]]:
    """The median begin and duration in ms of each step that occurs in every round."""
    names = [name for name in rounds[0] if all(name in one for one in rounds)]
    return {
        name: [
            round(statistics.median(one[name][0] for one in rounds) * 1000),
            round(statistics.median(one[name][1] - one[name][0] for one in rounds) * 1000),
        ]
        for name in names
    }


def table(steps: dict[str, list[float]]) -> list[str]:
    """The steps as a Markdown table."""
    rows = [f"| {name} | {began:.0f} | {takes:.0f} |" for name, (began, takes) in steps.items()]
    return ["| step | from ms | takes ms |", "|---|---|---|", *rows]


def ratio(over: Seconds, under: Seconds) -> float:
    """The ratio of the medians."""
    return round(statistics.median(over) / statistics.median(under), 3)


def others(directory: str, true: str) -> dict[str, str]:
    """Other runtimes for comparison: for each name the reason why it cannot run here, or ""."""
    reasons = {}
    for name in ("runc", "crun"):
        try:
            argv = [name, "--root", f"{directory}/{name}", "run", "--bundle", true, "probe"]
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            reasons[name] = "not installed"
            continue
        reasons[name] = done.stderr.strip() if done.returncode else ""
    return reasons
