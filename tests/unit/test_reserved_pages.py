"""Huge pages that the guest reserves for one container: exactly these are released."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from hawse.errors import VmError
from hawse.monitor.agent.calls import ReserveHugepages, ShareHugepages, name_of, parameters
from hawse.monitor.guest_hugepages import HugePages
from hawse.monitor.processes.process_table import Processes
from hawse.oci.guest.hugetlbfs import Hugetlbfs
from tests.support.plans import container_plan

GIB_KIB = 1024 * 1024
PAGES = [(GIB_KIB, 3), (2048, 256)]
MOUNT = Hugetlbfs(kib=2048, mode=0o700, uid=1, gid=2)


class Calls:
    """The guest's calls for huge pages; it has no pages of the sizes in ``lacking``."""

    def __init__(self, lacking: int = 0) -> None:
        self.calls: list[tuple[str, dict[str, Any], float]] = []
        self.go_on = asyncio.Event()
        self._lacking = lacking

    async def call(self, call: ReserveHugepages | ShareHugepages, *, more: float = 0.0) -> None:
        self.calls.append((name_of(call), parameters(call), more))
        await self.go_on.wait()
        if isinstance(call, ReserveHugepages) and call.kib == self._lacking and call.count > 0:
            raise VmError("the guest has too few")


def pages(calls: Calls) -> HugePages:
    plan = container_plan(bundle="/b", hugepages=PAGES, hugetlbfs={"h": MOUNT})
    return HugePages(plan, cast(Processes, calls))


def test_pages_are_reserved_and_released_once() -> None:
    async def story() -> None:
        calls = Calls()
        calls.go_on.set()
        reserved = pages(calls)
        await reserved.reserve()
        assert calls.calls == [
            ("reserve_hugepages", {"kib": GIB_KIB, "count": 3}, 6.0),
            ("reserve_hugepages", {"kib": 2048, "count": 256}, 1.0),
            ("share_hugepages", {"name": "h", "kib": 2048, "mode": 0o700, "uid": 1, "gid": 2}, 0.0),
        ], "two seconds more for each GiB"
        await reserved.release()
        await reserved.release()
        assert [(params["kib"], params["count"]) for _, params, _ in calls.calls[3:]] == [(2048, -256), (GIB_KIB, -3)]

    asyncio.run(story())


@pytest.mark.parametrize(("lacking", "released"), [(2048, [(GIB_KIB, -3)]), (GIB_KIB, [])])
def test_refused_pages_are_not_released(lacking: int, released: list[tuple[int, int]]) -> None:
    async def story() -> None:
        calls = Calls(lacking)
        calls.go_on.set()
        reserved = pages(calls)
        with pytest.raises(VmError, match="the guest has too few"):
            await reserved.reserve()
        before = len(calls.calls)
        await reserved.release()
        assert [(params["kib"], params["count"]) for _, params, _ in calls.calls[before:]] == released

    asyncio.run(story())


@pytest.mark.parametrize(("lacking", "released"), [(0, [-3]), (GIB_KIB, [])])
def test_cancelled_creation_waits_for_the_reservation(lacking: int, released: list[int]) -> None:
    async def story() -> None:
        calls = Calls(lacking)
        reserved = pages(calls)
        reserving = asyncio.create_task(reserved.reserve())
        while not calls.calls:
            await asyncio.sleep(0)
        reserving.cancel()
        await asyncio.sleep(0)
        assert not reserving.done()
        calls.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await reserving
        await reserved.release()
        assert [params["count"] for _, params, _ in calls.calls[1:]] == released

    asyncio.run(story())


def test_failed_release_does_not_block_other_pages() -> None:
    async def story() -> None:
        calls = Calls()
        calls.go_on.set()
        reserved = pages(calls)
        await reserved.reserve()

        async def refuse(call: ReserveHugepages | ShareHugepages, **_: float) -> None:
            calls.calls.append((name_of(call), parameters(call), 0.0))
            raise VmError("no")

        calls.call = refuse  # type: ignore[method-assign]
        await reserved.release()
        assert [params["kib"] for _, params, _ in calls.calls[3:]] == [2048, GIB_KIB]

    asyncio.run(story())
