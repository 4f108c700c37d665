"""The QMP wrapper against a real QEMU with machine type "none"."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hawse.config import Vm
from hawse.errors import VmError
from hawse.vm.qmp import Qmp
from tests.support.patience import patience


@asynccontextmanager
async def qemu() -> AsyncIterator[tuple[Qmp, subprocess.Popen[bytes], list[bytes]]]:
    ours, theirs = socket.socketpair()
    argv = [Vm().qemu, "-machine", "none", "-nodefaults", "-display", "none"]
    chardev = ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
    log: list[bytes] = []
    with subprocess.Popen([*argv, *chardev], pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        qmp = Qmp(log=log.append)
        await qmp.open(ours, seconds=30)
        try:
            yield qmp, process, log
        finally:
            await qmp.close()
            process.kill()


def test_command_returns_its_result_or_raises_its_error() -> None:
    async def scenario() -> None:
        async with qemu() as (qmp, _, log):
            answer = await qmp.execute("query-status", {}, timeout=patience(10))
            assert isinstance(answer, dict)
            assert "status" in answer
            with pytest.raises(VmError, match="device_add: 'nothing' is not a valid device model name"):
                await qmp.execute("device_add", {"driver": "nothing"}, timeout=patience(10))
            assert b'"execute": "device_add"' in b"".join(log)

    asyncio.run(scenario())


def test_event_between_the_command_and_the_wait_is_not_missed() -> None:
    async def scenario() -> None:
        async with qemu() as (qmp, _, _log):
            with qmp.listen("STOP", "RESUME") as events:
                await qmp.execute("stop", {}, timeout=patience(10))
                await qmp.execute("cont", {}, timeout=patience(10))
                await qmp.execute("query-status", {}, timeout=patience(10))
                for _ in range(2):
                    assert await events.wait(lambda _data: True, seconds=0) is not None
            with qmp.listen("SHUTDOWN") as events:
                # QEMU sends both events before the last answer: if they passed the filter, they would be present.
                for command in ("stop", "cont", "query-status"):
                    await qmp.execute(command, {}, timeout=patience(10))
                assert await events.wait(lambda _data: True, seconds=0) is None

    asyncio.run(scenario())


def test_descriptors_passed_concurrently_all_arrive() -> None:
    """For example those of a network interface and of a disk."""

    async def scenario() -> None:
        async with qemu() as (qmp, _, _log):
            with open("/dev/null") as file:
                fd = file.fileno()
                names = [qmp.give(fd, f"name{n}", timeout=patience(10)) for n in range(4)]
                sets = [qmp.add(fd, {"fdset-id": n}, timeout=patience(10)) for n in range(1, 5)]
                await asyncio.gather(*(part for pair in zip(names, sets, strict=True) for part in pair))
            fd_sets = await qmp.execute("query-fdsets", {}, timeout=patience(10))
            assert isinstance(fd_sets, list)
            assert sorted((entry["fdset-id"], len(entry["fds"])) for entry in fd_sets) == [(n, 1) for n in range(1, 5)]

    asyncio.run(scenario())


def test_command_after_qemu_exited_is_an_error() -> None:
    async def scenario() -> None:
        async with qemu() as (qmp, process, _):
            process.kill()
            process.wait()
            with pytest.raises(VmError, match="QEMU ended before it answered query-status"):
                await qmp.execute("query-status", {}, timeout=patience(10))

    asyncio.run(scenario())
