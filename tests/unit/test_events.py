"""`events`: statistics in intervals, out-of-memory kills as they come, until the container ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import StateError
from hawse.state.store import STOPPED
from tests.support.command import Command
from tests.support.fake_monitor import HANG_UP, FakeMonitor

STATISTICS = {"pids": {"current": 2}}
OOM = {"type": "oom", "id": "c1"}
STATS = {"type": "stats", "id": "c1", "data": STATISTICS}


@pytest.fixture
def hawse(tmp_path: Path) -> Command:
    return Command(str(tmp_path))


def lines(output: str) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]


def kills(*answers: object, at_the_end: Callable[[], object] = lambda: None) -> Callable[[dict[str, Any]], object]:
    """The answers of a monitor to each wait for a kill; after the last one the container has ended."""
    left = list(answers)

    def answer(_params: dict[str, Any]) -> object:
        if left:
            return left.pop(0)
        at_the_end()
        return StateError("it has ended")

    return answer


def test_statistics_are_printed_once(hawse: Command) -> None:
    with FakeMonitor(hawse.store("c1"), {"statistics": STATISTICS}) as monitor:
        done = hawse("events", "--stats", "c1")
    assert (done.code, lines(done.output)) == (0, [STATS])
    assert monitor.methods == ["statistics"]


@pytest.mark.parametrize("words", [["--stats"], []])
def test_stopped_container_has_no_events(hawse: Command, words: list[str]) -> None:
    with FakeMonitor(hawse.store("c1"), status=STOPPED) as monitor:
        done = hawse("events", *words, "c1")
    assert (done.code, done.output) == (1, "")
    assert "container with id c1 is not running: container not running" in done.errors
    assert monitor.calls == []


def test_statistics_are_printed_at_intervals(hawse: Command) -> None:
    """The first after one interval, as from runc."""
    printed = 0

    def statistics(_params: object) -> object:
        nonlocal printed
        printed += 1
        return STATISTICS if printed < 4 else HANG_UP

    with FakeMonitor(hawse.store("c1"), {"statistics": statistics, "await_oom": 0}) as monitor:
        done = hawse("events", "--interval", "1ms", "c1")
    assert (done.code, lines(done.output)) == (0, [STATS] * 3)
    assert monitor.methods[0] == "await_oom"


def test_wait_for_a_kill_ends_with_the_interval(hawse: Command) -> None:
    with FakeMonitor(hawse.store("c1"), {"await_oom": kills(2, 2)}) as monitor:
        assert hawse("events", "--interval", "1h", "c1").code == 0
    waits = [(params["seen"], round(params["seconds"] / 60)) for _, params in monitor.calls]
    assert waits == [(-1, 0), (2, 60), (2, 60)]


@pytest.mark.parametrize(
    ("answers", "events"),
    [
        ((0,), 0),
        ((0, 0), 0),
        ((0, 1), 1),
        ((3, 3), 0),  # of before
        ((3, 4, 4, 9), 2),
        ((2, 1, 2), 0),
        ((0, None), 0),
    ],
)
def test_each_new_kill_is_one_event(hawse: Command, answers: tuple[object, ...], events: int) -> None:
    with FakeMonitor(hawse.store("c1"), {"await_oom": kills(*answers)}, oomKills=0):
        done = hawse("events", "--interval", "1h", "c1")
    assert (done.code, lines(done.output)) == (0, [OOM] * events)


@pytest.mark.parametrize(("last", "events"), [(0, 0), (1, 1), (None, 0)])
def test_kill_that_ended_the_container_is_printed(hawse: Command, last: int | None, events: int) -> None:
    """The monitor has written it into the state before it ended."""
    monitor = FakeMonitor(hawse.store("c1"))
    with monitor:
        monitor.answers["await_oom"] = kills(0, at_the_end=lambda: monitor.change(oomKills=last, status=STOPPED))
        done = hawse("events", "c1")
    assert lines(done.output) == [OOM] * events


def test_container_that_is_deleted_meanwhile_ends_the_events(hawse: Command) -> None:
    monitor = FakeMonitor(hawse.store("c1"))
    with monitor:
        monitor.answers["await_oom"] = kills(0, at_the_end=monitor.store.remove)
        done = hawse("events", "c1")
    assert (done.code, done.output, done.errors) == (0, "", "")
