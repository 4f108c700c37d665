"""Signals to a program that has not installed its signal handlers yet."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from hawse.agent.container.handlers import await_handler, is_lost

TERM = 1 << signal.SIGTERM - 1


def process(directory: Path, *, namespaces: str = "70\t1", caught: int = 0, blocked: int = 0, ignored: int = 0) -> str:
    """A fake /proc with process 70."""
    (directory / "70").mkdir(exist_ok=True)
    masks = f"SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
    (directory / "70" / "status").write_text(f"Name:\tx\nNSpid:\t{namespaces}\n{masks}")
    return str(directory)


@pytest.mark.parametrize(
    ("masks", "lost"),
    [
        ({}, True),
        ({"caught": TERM << 1}, True),
        ({"caught": TERM}, False),
        ({"blocked": TERM}, False),
        ({"ignored": TERM}, False),
        ({"namespaces": "70"}, False),
        ({"namespaces": "70\t12"}, False),
        ({"namespaces": "70\t12\t1"}, True),
    ],
)
def test_first_process_of_a_namespace_loses_a_signal_without_a_handler(
    tmp_path: Path, masks: dict[str, int], lost: bool
) -> None:
    assert is_lost(70, signal.SIGTERM, proc=process(tmp_path, **masks)) is lost  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGWINCH])
def test_signals_without_use_for_a_handler_are_not_lost(tmp_path: Path, number: int) -> None:
    assert not is_lost(70, number, proc=process(tmp_path))


def test_process_that_has_ended_loses_nothing(tmp_path: Path) -> None:
    assert not is_lost(70, signal.SIGTERM, proc=str(tmp_path))


def test_handler_that_comes_ends_the_wait(tmp_path: Path) -> None:
    proc = process(tmp_path)
    timer = threading.Timer(0.05, process, [tmp_path], {"caught": TERM})
    timer.start()
    started = time.monotonic()
    await_handler(70, signal.SIGTERM, started=started, lives=lambda: True, proc=proc, seconds=60)
    timer.join()
    assert not is_lost(70, signal.SIGTERM, proc=proc)


@pytest.mark.parametrize(("age", "lives"), [(100.0, True), (0.0, False)])
def test_wait_is_for_the_start_of_a_living_process_only(tmp_path: Path, age: float, lives: bool) -> None:
    """The wait would not end in this test."""
    proc = process(tmp_path)
    await_handler(70, signal.SIGTERM, started=time.monotonic() - age, lives=lambda: lives, proc=proc, seconds=60)
