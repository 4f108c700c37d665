"""Processes and proxies find each other by key; timeouts, cancellation and the end of a container."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from hawse.errors import HostError, StateError, VmError
from hawse.monitor.agent.calls import Listing, Statistics
from hawse.monitor.processes.process_table import LOST, Processes
from hawse.monitor.processes.proxy_connections import Proxy
from tests.support import virtual_time
from tests.support.fake_qmp import FakeLink
from tests.support.pods import settle


class FakeProxy:
    """Records the exit codes that it is given."""

    def __init__(self) -> None:
        self.codes: list[int] = []

    def exit(self, code: int) -> None:
        self.codes.append(code)


def announced(processes: Processes, key: str) -> FakeProxy:
    proxy = FakeProxy()
    processes.announce(key, cast(Proxy, proxy))
    return proxy


def run(story: Callable[[Processes], Awaitable[None]]) -> None:
    async def whole() -> None:
        await story(Processes(seconds=60))

    virtual_time.run(whole())


@pytest.mark.parametrize("first", ["proxy", "process"])
def test_process_and_proxy_find_each_other_in_either_order(first: str) -> None:
    async def story(processes: Processes) -> None:
        if first == "proxy":
            proxy = announced(processes, "c2/k")
            await asyncio.sleep(19)
            assert await processes.await_proxy("c2/k") is cast(object, proxy)
        else:
            waiting = asyncio.create_task(processes.await_proxy("c2/k"))
            await asyncio.sleep(19)
            proxy = announced(processes, "c2/k")
            assert await waiting is cast(object, proxy)
        await asyncio.sleep(100)
        assert proxy.codes == [], "the timeout ends when the process takes the proxy"
        other = announced(processes, "c2/k")
        await settle()
        assert other.codes == [], "the key can be used again"

    run(story)


def test_proxy_without_process_ends_after_20_seconds() -> None:
    async def story(processes: Processes) -> None:
        proxy = announced(processes, "c2/k")
        await asyncio.sleep(19)
        assert proxy.codes == []
        with pytest.raises(StateError, match="a second proxy for the process c2/k"):
            announced(processes, "c2/k")
        await asyncio.sleep(2)
        assert proxy.codes == [LOST]
        announced(processes, "c2/k")

    run(story)


def test_proxy_of_claimed_process_has_no_timeout() -> None:
    async def story(processes: Processes) -> None:
        processes.claim("c2/k")
        proxy = announced(processes, "c2/k")
        await asyncio.sleep(1000)
        assert proxy.codes == []
        assert await processes.await_proxy("c2/k") is cast(object, proxy)

    run(story)


def test_process_without_proxy_fails_after_20_seconds() -> None:
    async def story(processes: Processes) -> None:
        waiting = asyncio.create_task(processes.await_proxy("c2/k"))
        await asyncio.sleep(19)
        assert not waiting.done()
        with pytest.raises(VmError, match="the proxy process did not connect within 20 s"):
            await waiting

    run(story)


def test_failure_of_proxy_is_raised_to_its_process() -> None:
    async def story(processes: Processes) -> None:
        processes.fail("c2/k", "no mounts")
        processes.fail("c2/k", "again")
        with pytest.raises(
            HostError, match="cannot assemble the container's files for programs of the host: no mounts"
        ) as caught:
            await processes.await_proxy("c2/k")
        assert caught.value.hint
        proxy = announced(processes, "c2/k")
        processes.fail("c2/k", "too late")
        assert await processes.await_proxy("c2/k") is cast(object, proxy)
        processes.fail("c2/other", "nobody asks")
        processes.end(LOST)
        announced(processes, "c2/other")

    run(story)


@pytest.mark.parametrize("first", ["proxy", "cancellation"])
def test_proxy_of_cancelled_process_ends(first: str) -> None:
    async def story(processes: Processes) -> None:
        waiting = asyncio.create_task(processes.await_proxy("c2/k"))
        await settle()
        if first == "proxy":
            proxy = announced(processes, "c2/k")
            waiting.cancel()
        else:
            waiting.cancel()
            await settle()
            proxy = announced(processes, "c2/k")
        await settle()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert proxy.codes == [LOST]
        again = announced(processes, "c2/k")
        await settle()
        assert again.codes == []

    run(story)


@pytest.mark.parametrize("container", ["c2", None])
def test_waiting_proxies_end_with_their_container(container: str | None) -> None:
    """Also a proxy that connects later. Proxies of other containers keep waiting."""

    async def story(processes: Processes) -> None:
        processes.claim("c2/claimed")
        waits, other = announced(processes, "c2/k"), announced(processes, "c22/k")
        processes.end(LOST, container=container)
        assert waits.codes == [LOST]
        assert other.codes == ([] if container else [LOST])
        late = announced(processes, "c2/claimed")
        assert late.codes == [LOST]
        assert announced(processes, "c2/claimed").codes == [], "the key was reserved for one proxy"
        if container:
            assert await processes.await_proxy("c22/k") is cast(object, other)

    run(story)


def test_call_before_the_link_is_refused() -> None:
    async def story(processes: Processes) -> None:
        with pytest.raises(StateError, match="container c2 is still being created"):
            await processes.call(Listing(container="c2"))

    run(story)


def test_call_passes_its_timeout() -> None:
    class Link(FakeLink):
        on_exit: Any = None

    async def story(processes: Processes) -> None:
        call, link = Statistics(container="c2"), Link({"statistics": {"pids.current": "1"}})
        processes.begin(cast(Any, link))
        expected = {"pids.current": "1"}
        assert (await processes.call(call), link.seconds["statistics"]) == (expected, 60)
        assert (await processes.call(call, more=5.0), link.seconds["statistics"]) == (expected, 65)
        assert (await processes.call(call, within=2.0), link.seconds["statistics"]) == (expected, 2)
        assert link.calls == [("statistics", {"container": "c2"})] * 3

    run(story)
