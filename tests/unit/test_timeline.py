"""Steps on one clock, and the trace that is written from them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.cli.own.timeline import bar
from hawse.errors import ConfigError, VmError
from hawse.monitor.agent.calls import Trace, read_answer
from hawse.state import timeline
from hawse.state.steps import Step, Steps, process_start

STEPS: list[Step] = [
    ("QEMU", "process started", 100.25, 100.5),
    ("command line", "plan made", 100.0, 100.25),
    ("QEMU", "QMP answers", 100.5, 100.75),
]


def test_trace_has_a_thread_for_each_lane_and_times_in_microseconds() -> None:
    events = timeline.trace(STEPS, name="c1")["traceEvents"]
    assert isinstance(events, list)
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert lanes == {1: "command line", 2: "QEMU"}
    done = [(e["tid"], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert done == [
        (1, "plan made", 0, 250_000),
        (2, "process started", 250_000, 250_000),
        (2, "QMP answers", 500_000, 250_000),
    ]


def test_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "trace.json")
    timeline.write(path, STEPS, name="c1")
    assert timeline.read(path) == [(lane, name, began - 100, ended - 100) for lane, name, began, ended in
                                   sorted(STEPS, key=lambda step: step[2])]  # fmt: skip


def test_trace_that_cannot_be_written_is_not_an_error(tmp_path: Path) -> None:
    timeline.write(f"{tmp_path}/missing/trace.json", STEPS, name="c1")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not a trace"), ("[]", "not a trace"), ('{"traceEvents": [{"ph": "X"}]}', "not a trace"),
     ('{"traceEvents": []}', "the trace contains no steps")],
)  # fmt: skip
def test_file_that_is_not_a_trace_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        timeline.read(str(path))


def test_failed_step_is_recorded() -> None:
    steps = Steps("/dev/null", [])
    with pytest.raises(KeyError), steps.span("QEMU", "fails"):
        raise KeyError
    [(lane, name, began, ended)] = steps.done
    assert (lane, name) == ("QEMU", "fails")
    assert began <= ended


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=20
)


def note(answer: object, *, offset: float = 0.0) -> list[Step]:
    """The steps that are recorded from the agent's answer to the call trace."""
    steps = Steps("/dev/null", [])
    steps.add_guest(read_answer(Trace(), answer), offset=offset)
    return steps.done


def guest_step(name: object, began: object, ended: object) -> dict[str, object]:
    return {"name": name, "began_ns": began, "ended_ns": ended}


@given(json_values | st.lists(st.builds(guest_step, st.text(), st.integers(), st.integers())))
def test_any_report_of_a_guest_gives_steps_that_can_be_drawn(answer: object) -> None:
    try:
        done = note(answer, offset=5.0)
    except VmError as error:
        assert error.message.startswith("the guest's answer to trace is unusable: ")
        return
    json.dumps(timeline.trace(done, name="c1"))


def test_steps_of_a_guest_are_limited_and_on_the_clock_of_the_host() -> None:
    done = note([guest_step("share mounted\x1b[2J", 1_000_000_000, 2_500_000_000)] * 1000, offset=5.0)
    assert len(done) == 256
    assert done[0] == ("in the guest: share mounted[2J", "share mounted[2J", 6.0, 7.5)


@given(st.floats(0, 10), st.floats(0, 10), st.integers(20, 200))
def test_bar_fits_its_line_and_is_never_empty(began: float, takes: float, width: int) -> None:
    drawn = bar(began, began + takes, 20.0, width)
    assert drawn.count("█") >= 1
    assert len(drawn) <= width


def test_steps_that_begin_together_are_drawn_from_the_outer_one() -> None:
    steps: list[Step] = [("a", "inner", 1.0, 2.0), ("a", "outer", 1.0, 3.0), ("a", "instant", 2.0, 2.0)]
    events = timeline.trace(steps, name="c1")["traceEvents"]
    assert isinstance(events, list)
    drawn = [(e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert drawn == [("outer", 0, 2_000_000), ("inner", 0, 1_000_000), ("instant", 1_000_000, 1)]
    order = [(e["tid"], e["args"]) for e in events if e["name"] == "thread_sort_index"]
    assert order == [(1, {"sort_index": 1})]
    assert events[0]["args"] == {"name": "hawse c1"}


def test_trace_replaces_the_previous_one_completely(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("the former")
    with open(path) as former:
        timeline.write(str(path), STEPS, name="c1")
        assert former.read() == "the former"
    assert [entry.name for entry in tmp_path.iterdir()] == ["trace.json"]


@pytest.mark.parametrize("more", [0, 1])
def test_trace_is_read_up_to_a_size(tmp_path: Path, more: int) -> None:
    path = tmp_path / "trace.json"
    timeline.write(str(path), STEPS, name="c1")
    with open(path, "a") as file:
        file.write(" " * (16 * 1024 * 1024 - path.stat().st_size + more))
    if not more:
        assert len(timeline.read(str(path))) == len(STEPS)
        return
    with pytest.raises(ConfigError, match="larger than 16777216 bytes"):
        timeline.read(str(path))


def test_missing_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"timeline .*/none: No such file"):
        timeline.read(f"{tmp_path}/none")


@pytest.mark.parametrize(
    ("entry", "noted"),
    [
        (guest_step("a", 1, 2), ("a", 1e-9, 2e-9)),
        (guest_step("a", 2, 1), ("a", 2e-9, 2e-9)),
        (guest_step("a", 0, 2**63 - 1), ("a", 0.0, (2**63 - 1) / 1e9)),
        (guest_step("a" * 81, 1, 2), ("a" * 80, 1e-9, 2e-9)),
        (guest_step("\ud800", 1, 2), ("", 1e-9, 2e-9)),
        (guest_step("a", 1, 2) | {"more": 1}, ("a", 1e-9, 2e-9)),
    ],
)
def test_step_of_a_guest_is_recorded(entry: object, noted: tuple[str, float, float]) -> None:
    done = note([entry, guest_step("last", 1, 2)])
    assert [(name, began, ended) for _, name, began, ended in done] == [noted, ("last", 1e-9, 2e-9)]


@pytest.mark.parametrize(
    ("entry", "refusal"),
    [
        (guest_step("a", -5, 3), "[1].began_ns: Expected `int` >= 0"),
        (guest_step("a", 0, 2**63), "[1].ended_ns: Expected `int` <= 9223372036854775807"),
        (guest_step("a", 0, 2**70), "[1].ended_ns: Expected `int` <= 9223372036854775807"),
        (guest_step("a", True, 2), "[1].began_ns: Expected `int`, got `bool`"),
        (guest_step("a", 1.0, 2), "[1].began_ns: Expected `int`, got `float`"),
        (guest_step(1, 1, 2), "[1].name: Expected `str`, got `int`"),
        ({"name": "a", "began_ns": 1}, "[1]: Object missing required field `ended_ns`"),
        (["a", 1, 2], "[1]: Expected `object`, got `array`"),
        ({"a": 1}, "[1]: Object missing required field `name`"),
        ("abc", "[1]: Expected `object`, got `str`"),
    ],
)
def test_invalid_steps_of_a_guest_are_ignored(entry: object, refusal: str) -> None:
    """None of these steps is recorded; only a hostile agent sends them."""
    with pytest.raises(VmError) as caught:
        note([guest_step("first", 1, 2), entry])
    assert caught.value.message == f"the guest's answer to trace is unusable: {refusal}"


@pytest.mark.parametrize("answer", [None, "text", {"a": 1}, 5])
def test_report_of_a_guest_that_is_not_a_list_has_no_steps(answer: object) -> None:
    with pytest.raises(VmError, match=r"^the guest's answer to trace is unusable: Expected `array`"):
        note(answer)


def test_steps_are_written_if_the_file_is_writable(tmp_path: Path) -> None:
    steps = Steps(f"{tmp_path}/steps.json", STEPS)
    steps.save()
    assert json.loads((tmp_path / "steps.json").read_text()) == [list(step) for step in STEPS]
    Steps(f"{tmp_path}/none/steps.json", []).save()


def test_start_time_of_a_process_is_in_the_past() -> None:
    """On the clock of the steps, which all processes of the host share."""
    assert 0 < process_start() <= time.monotonic()
