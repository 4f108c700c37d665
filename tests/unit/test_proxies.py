"""Frames between a proxy and its process: forwarding, credit, protocol violations and the exit code.

Of :mod:`hawse.monitor.processes.proxy_connections`, through the socket of the monitor.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hawse.link import messages
from hawse.link.flow import WINDOW, encode_credit
from hawse.link.frames import CREDIT, DATA, EOF, MAX_DATA, encode
from hawse.link.streams import STREAMS
from hawse.monitor.processes.process_table import LOST
from tests.support.pods import KEY, Pod, pod, run, settle

#: c2's first process is the second of the sandbox; its proxy calls it 1.
GUEST, LOCAL = 2 * STREAMS, STREAMS
SIGKILL = {"container": "c2", "process": 2, "signal": 9, "everyone": False}


@asynccontextmanager
async def proxy(
    directory: Path, **params: Any
) -> AsyncIterator[tuple[Pod, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A sandbox with c2, and both directions of its proxy's connection."""
    async with pod(directory) as sandbox:
        plan = sandbox.joining(plugs=[])
        reader, writer = await sandbox.start_proxy(f"c2/{KEY}", **params)
        await sandbox.create(plan)
        yield sandbox, reader, writer


def test_input_and_credit_are_forwarded(tmp_path: Path) -> None:
    async def story() -> None:
        async with proxy(tmp_path, descriptors=["in", "out"]) as (sandbox, _, writer):
            writer.write(encode(LOCAL, DATA, b"typed") + encode(LOCAL, EOF) + encode(LOCAL + 3, DATA, b"more"))
            sandbox.guest.send(encode(GUEST + 1, DATA, b"x" * 9))
            await settle()
            writer.write(encode(LOCAL + 1, CREDIT, encode_credit(9)))
            await settle()
            assert sandbox.guest.frames == [
                (GUEST, DATA, b"typed"), (GUEST, EOF, b""), (GUEST + 3, DATA, b"more"),
                (GUEST + 1, CREDIT, encode_credit(9)),
            ]  # fmt: skip
            assert sandbox.guest.asked("create")[-1]["descriptors"] == ["in", "out"]
            assert sandbox.guest.asked("signal") == []

    run(story)


def test_input_in_the_same_packet_as_the_announcement_is_forwarded(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            plan = sandbox.joining(plugs=[])
            _, writer = await sandbox.connect()
            announcement = messages.encode_call(1, "proxy", {"key": f"c2/{KEY}", "descriptors": []})
            writer.write(announcement + encode(LOCAL, DATA, b"early"))
            await sandbox.create(plan)
            await settle()
            assert sandbox.guest.frames == [(GUEST, DATA, b"early")]

    run(story)


def test_signal_and_resize_are_forwarded(tmp_path: Path) -> None:
    async def story() -> None:
        async with proxy(tmp_path) as (sandbox, _, writer):
            for event, params in (("signal", {"number": 15}), ("other", {}), ("resize", {"rows": 3, "columns": 4})):
                writer.write(messages.encode_event(event, params))
            await settle()
            assert sandbox.guest.asked("signal") == [SIGKILL | {"signal": 15}]
            assert sandbox.guest.asked("resize") == [{"container": "c2", "process": 2, "rows": 3, "columns": 4}]

    run(story)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="end"),
        pytest.param(b"\xff" * 9, id="unknown frame type"),
        pytest.param(encode(LOCAL + STREAMS, DATA, b"x"), id="other process"),
        pytest.param(encode(LOCAL + 1, DATA, b"x"), id="data for stdout"),
        pytest.param(encode(LOCAL + 3, DATA, b"x"), id="unknown descriptor"),
        pytest.param(encode(LOCAL + 1, CREDIT, encode_credit(10)), id="too much credit"),
        pytest.param(messages.encode_call(2, "state", {}), id="a second call"),
        pytest.param(messages.encode_event("signal", {}), id="a signal without a number"),
        pytest.param(messages.encode_event("signal", {"number": "x"}), id="a signal that is not a number"),
        pytest.param(messages.encode_event("signal", {"number": None}), id="a signal that is nothing"),
    ],
)
def test_process_is_killed_when_its_proxy_ends_or_breaks_a_rule(tmp_path: Path, frame: bytes) -> None:
    """The engine knows the process only by the proxy's pid. Later output is dropped and its credit returned."""

    async def story() -> None:
        async with proxy(tmp_path) as (sandbox, reader, writer):
            sandbox.guest.send(encode(GUEST + 1, DATA, b"x" * 9))
            await settle()
            if frame:
                writer.write(frame)
            else:
                writer.close()
            await settle()
            assert sandbox.guest.asked("signal") == [SIGKILL]
            credits = [frame for frame in sandbox.guest.frames if frame[1] == CREDIT]
            assert credits == [(GUEST + 1, CREDIT, encode_credit(9))]
            sandbox.guest.send(encode(GUEST + 1, DATA, bytes(WINDOW // 4)))
            await settle()
            assert sandbox.guest.frames[-1] == (GUEST + 1, CREDIT, encode_credit(WINDOW // 4))
            sandbox.guest.tell("exit", process=2, code=137)
            await sandbox.sandbox.find("c2").stopped.wait()
            assert not sandbox.machine.link.ended.done()
            assert b'"code"' not in await reader.read()

    run(story)


def test_input_beyond_the_credit_kills_the_process(tmp_path: Path) -> None:
    async def story() -> None:
        async with proxy(tmp_path) as (sandbox, _, writer):
            for _ in range(WINDOW // MAX_DATA):
                writer.write(encode(LOCAL, DATA, bytes(MAX_DATA)))
                await settle()
            assert sandbox.guest.asked("signal") == []
            writer.write(encode(LOCAL, DATA, b"x"))
            await settle()
            assert sandbox.guest.asked("signal") == [SIGKILL]
            assert sum(len(payload) for _, kind, payload in sandbox.guest.frames if kind == DATA) == WINDOW

    run(story)


def test_output_beyond_the_credit_ends_the_link(tmp_path: Path) -> None:
    async def story() -> None:
        async with proxy(tmp_path) as (sandbox, reader, _):
            for _ in range(WINDOW // MAX_DATA):
                sandbox.guest.send(encode(GUEST + 1, DATA, bytes(MAX_DATA)))
                await reader.readexactly(MAX_DATA + 9)
            assert not sandbox.machine.link.ended.done()
            sandbox.guest.send(encode(GUEST + 1, DATA, b"x"))
            assert "1 bytes sent with a credit of 0" in (await sandbox.machine.link.ended).message

    run(story)


def test_descriptor_of_an_ended_proxy_is_closed_without_a_garbage_collection(tmp_path: Path) -> None:
    """A pod runs for a long time, and each container and each exec has a proxy."""

    def pidfds() -> int:
        paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum(os.path.islink(path) and os.readlink(path) == "anon_inode:[pidfd]" for path in paths)

    async def story() -> None:
        async with proxy(tmp_path) as (sandbox, reader, writer):
            before = pidfds()
            sandbox.guest.tell("exit", process=2, code=4)
            await reader.read()
            writer.close()
            await settle()
            assert pidfds() == before - 1

    gc.disable()
    try:
        run(story)
    finally:
        gc.enable()


def test_input_after_the_exit_is_ignored(tmp_path: Path) -> None:
    async def story() -> None:
        async with proxy(tmp_path) as (sandbox, reader, writer):
            sandbox.guest.tell("exit", process=2, code=4)
            assert b'"code":4' in await reader.read()
            writer.write(encode(LOCAL, DATA, b"late"))
            await settle()
            assert sandbox.guest.frames == []
            assert sandbox.guest.asked("signal") == []

    run(story)


def test_end_of_one_container_leaves_other_processes(tmp_path: Path) -> None:
    async def story() -> None:
        async with proxy(tmp_path) as (sandbox, reader, _):
            processes = sandbox.sandbox.processes
            processes.end(LOST, container="c1")
            assert (len(processes.proxies("c1")), len(processes.proxies("c2"))) == (0, 1)
            processes.end(7)
            assert processes.proxies("c2") == []
            assert b'"code":7' in await reader.read()

    run(story)
