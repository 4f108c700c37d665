"""The monitor's worker threads drop capabilities together with its main thread."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from hawse.linux import process_capabilities, processes
from hawse.monitor.privileges import KEPT, Workers


def test_earlier_worker_threads_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread keeps the capabilities with which it was started, so idle threads must be replaced."""
    order: list[object] = []
    monkeypatch.setattr(process_capabilities, "keep_only", order.append)
    monkeypatch.setattr(processes, "give_up_privileges", lambda: order.append("no_new_privs"))

    async def story() -> None:
        workers = Workers()
        before = await asyncio.to_thread(threading.current_thread)
        workers.drop_privileges()
        after = await asyncio.to_thread(threading.current_thread)
        assert order == [KEPT, "no_new_privs"]
        await asyncio.to_thread(before.join, 10)
        assert not before.is_alive()
        assert after is not before

    asyncio.run(story())


def test_effective_capabilities_are_read_from_the_status(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tx\nCapPrm:\t0\nCapEff:\t0000000000200001\n")
    assert process_capabilities.effective(f"{tmp_path}/status") == 1 << process_capabilities.NUMBERS["SYS_ADMIN"] | 1
