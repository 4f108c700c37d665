"""The monitor sends each guest a seed and the time. The guest answers with its own clock."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import VmError
from hawse.monitor.agent.calls import Answer, Call, Wake, read_answer
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.agent.identity import SEED_BYTES, wake
from hawse.state.steps import GUEST, Steps


class Link(GuestLink):
    """A link whose guest gives one answer to every call."""

    def __init__(self, answer: object) -> None:
        self.clock_offset = 0.0
        self.calls: list[tuple[Any, float]] = []
        self._answer = answer

    async def call(self, call: Call[Answer], *, seconds: float) -> Answer:
        self.calls.append((call, seconds))
        return read_answer(call, self._answer)


def test_each_guest_gets_its_own_seed_and_the_time(tmp_path: Path) -> None:
    links = [Link({"monotonic_ns": 5}), Link({"monotonic_ns": 5})]
    before = time.time_ns()
    for link in links:
        asyncio.run(wake(link, Steps(f"{tmp_path}/steps.json", []), seconds=7))
    after = time.time_ns()
    calls = [call for link in links for call in link.calls]
    assert [(type(call), seconds) for call, seconds in calls] == [(Wake, 7)] * 2
    seeds = [bytes.fromhex(call.seed) for call, _ in calls]
    assert [len(seed) for seed in seeds] == [SEED_BYTES] * 2
    assert seeds[0] != seeds[1]
    assert before <= calls[0][0].time_ns <= calls[1][0].time_ns <= after


def test_clocks_are_compared_at_the_middle_of_the_call(tmp_path: Path) -> None:
    link, steps = Link({"monotonic_ns": 3_000_000_000}), Steps(f"{tmp_path}/steps.json", [])
    before = time.monotonic()
    asyncio.run(wake(link, steps, seconds=7))
    assert before - 3 <= link.clock_offset <= time.monotonic() - 3
    [(lane, name, began, ended)] = steps.done
    assert (lane, name) == (GUEST, "woken")
    assert before <= began <= ended <= time.monotonic()
    assert link.clock_offset == pytest.approx((began + ended) / 2 - 3)


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        (None, "Expected `object`, got `null`"),
        ([], "Expected `object`, got `array`"),
        ("", "Expected `object`, got `str`"),
        ({}, "Object missing required field `monotonic_ns`"),
        ({"monotonic_ns": -1}, "monotonic_ns: Expected `int` >= 0"),
        ({"monotonic_ns": 2**63}, "monotonic_ns: Expected `int` <= 9223372036854775807"),
        ({"monotonic_ns": 2**64}, "monotonic_ns: Expected `int` <= 9223372036854775807"),
        ({"monotonic_ns": 1.5}, "monotonic_ns: Expected `int`, got `float`"),
        ({"monotonic_ns": True}, "monotonic_ns: Expected `int`, got `bool`"),
    ],
)
def test_answer_without_a_valid_clock_is_refused(tmp_path: Path, answer: object, refusal: str) -> None:
    link = Link(answer)
    with pytest.raises(VmError) as caught:
        asyncio.run(wake(link, Steps(f"{tmp_path}/steps.json", []), seconds=7))
    assert caught.value.message == f"the guest's answer to wake is unusable: {refusal}"
    assert link.clock_offset == 0


@pytest.mark.parametrize("clock", [0, 2**63 - 1])
def test_smallest_and_largest_clock_are_accepted(tmp_path: Path, clock: int) -> None:
    asyncio.run(wake(Link({"monotonic_ns": clock}), Steps(f"{tmp_path}/steps.json", []), seconds=7))
