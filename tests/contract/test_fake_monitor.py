"""FakeMonitor answers the commands of hawse as the monitor's real service does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hawse.commands import client
from hawse.commands.client import MonitorGoneError
from hawse.errors import StateError
from hawse.state.store import Store
from tests.support.fake_monitor import FakeMonitor
from tests.support.patience import patience
from tests.support.pods import pod

CREATING = "container c1 is still being created"


@asynccontextmanager
async def real(tmp_path: Path) -> AsyncIterator[Store]:
    async with pod(tmp_path) as sandbox:
        yield sandbox.store


@asynccontextmanager
async def fake(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(str(tmp_path / "root"), "c1")
    answers = {"wants_files": False, "detach": StateError(CREATING)}
    with FakeMonitor(store, answers):
        yield store


Backend = Callable[[Path], Any]
pytestmark = pytest.mark.parametrize("backend", [real, fake])


def test_answer_is_returned_and_the_connection_is_closed(backend: Backend, tmp_path: Path) -> None:
    async def story() -> None:
        async with backend(tmp_path) as store:
            call = asyncio.to_thread(client.call, store, "wants_files", {}, until_end=True)
            assert await asyncio.wait_for(call, patience(10)) is False

    asyncio.run(story())


def test_error_of_the_monitor_is_raised(backend: Backend, tmp_path: Path) -> None:
    async def story() -> None:
        async with backend(tmp_path) as store:
            with pytest.raises(StateError) as caught:
                await asyncio.to_thread(client.call, store, "detach", {"group": 9, "force": False})
            assert caught.value.message == CREATING

    asyncio.run(story())


def test_monitor_lives_until_its_end(backend: Backend, tmp_path: Path) -> None:
    async def story() -> None:
        async with backend(tmp_path) as store:
            assert store.monitor_lives()
        assert not store.monitor_lives()
        with pytest.raises(MonitorGoneError, match="container not running: c1"):
            await asyncio.to_thread(client.call, store, "wants_files", {})

    asyncio.run(story())
