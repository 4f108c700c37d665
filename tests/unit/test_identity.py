"""The monitor sends each guest a seed and the time. The guest answers with its own clock."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import VmError
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.agent.identity import SEED_BYTES, wake
from hawse.state.steps import GUEST, Steps


class Link(GuestLink):
    """A link whose guest gives one answer to every call."""

    def __init__(self, answer: object) -> None:
        self.clock_offset = 0.0
        self.calls: list[tuple[str, dict[str, Any], float]] = []
        self._answer = answer

    async def call(self, method: str, params: dict[str, Any], *, seconds: float) -> object:
        self.calls.append((method, params, seconds))
        return self._answer


def test_each_guest_gets_a_seed_of_its_own_and_the_time(tmp_path: Path) -> None:
    links = [Link({"monotonic_ns": 5}), Link({"monotonic_ns": 5})]
    before = time.time_ns()
    for link in links:
        asyncio.run(wake(link, Steps(f"{tmp_path}/steps.json", []), seconds=7))
    after = time.time_ns()
    calls = [call for link in links for call in link.calls]
    assert [(method, sorted(params), seconds) for method, params, seconds in calls] == [
        ("wake", ["seed", "time_ns"], 7)
    ] * 2
    seeds = [bytes.fromhex(params["seed"]) for _, params, _ in calls]
    assert [len(seed) for seed in seeds] == [SEED_BYTES] * 2
    assert seeds[0] != seeds[1]
    assert before <= calls[0][1]["time_ns"] <= calls[1][1]["time_ns"] <= after


def test_the_clocks_are_compared_in_the_middle_of_the_call(tmp_path: Path) -> None:
    link, steps = Link({"monotonic_ns": 3_000_000_000}), Steps(f"{tmp_path}/steps.json", [])
    before = time.monotonic()
    asyncio.run(wake(link, steps, seconds=7))
    assert before - 3 <= link.clock_offset <= time.monotonic() - 3
    [(lane, name, began, ended)] = steps.done
    assert (lane, name) == (GUEST, "woken")
    assert before <= began <= ended <= time.monotonic()
    assert link.clock_offset == pytest.approx((began + ended) / 2 - 3)


@pytest.mark.parametrize(
    "answer",
    [None, [], "", {}, {"monotonic_ns": -1}, {"monotonic_ns": 2**63}, {"monotonic_ns": 1.5}, {"monotonic_ns": True}],
    ids=repr,
)
def test_an_answer_without_a_usable_clock_is_refused(tmp_path: Path, answer: object) -> None:
    link = Link(answer)
    with pytest.raises(VmError, match=r"^the guest reports no usable clock$"):
        asyncio.run(wake(link, Steps(f"{tmp_path}/steps.json", []), seconds=7))
    assert link.clock_offset == 0


@pytest.mark.parametrize("clock", [0, 2**63 - 1])
def test_the_first_and_the_last_clock_are_usable(tmp_path: Path, clock: int) -> None:
    asyncio.run(wake(Link({"monotonic_ns": clock}), Steps(f"{tmp_path}/steps.json", []), seconds=7))
