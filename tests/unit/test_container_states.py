"""Operations allowed in each container state, the state that follows, and state.json on disk.

Of :mod:`hawse.monitor.container`, through the socket of the monitor.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hawse.errors import DeviceError, HawseError, StateError, VmError
from hawse.state.store import start_time
from tests.support.async_wait import until
from tests.support.groups import BOUND, EDU, NICS, attachment
from tests.support.host_processes import reused
from tests.support.pods import KEY, Pod, heard, pod, run, settle

SH = {"args": ["sh"]}


async def bring(sandbox: Pod, status: str) -> None:
    """Create c2 and bring it to a status."""
    await sandbox.join(plugs=[])
    if status in ("running", "paused", "stopped"):
        await sandbox.call("c2", "start")
    if status == "paused":
        await sandbox.call("c2", "pause")
    if status == "stopped":
        sandbox.guest.tell("exit", process=2, code=0)
        await sandbox.sandbox.find("c2").stopped.wait()
    assert (sandbox.sandbox.find("c2").status, sandbox.state()["status"]) == (status, status)


async def ask(sandbox: Pod, verb: str) -> object:
    if verb == "attach":
        return await sandbox.call("c2", "attach", **msgspec.to_builtins(attachment(EDU, sandbox.spares)))
    if verb == "exec":
        await sandbox.announce("c2/k")
    params: dict[str, dict[str, Any]] = {
        "kill": {"signal": 15, "all": False}, "kill --all": {"signal": 9, "all": True},
        "exec": {"key": "k", "process": SH}, "detach": {"group": 5, "force": False},
    }  # fmt: skip
    return await sandbox.call("c2", verb.split()[0], **params.get(verb, {}))


NOT_RUNNING, NO_START = "container not running: c2", "cannot start"


@pytest.mark.parametrize(
    ("verb", "created", "running", "paused", "stopped"),
    [
        ("start", "", f"{NO_START} an already running container: c2", f"{NO_START} a container in the paused state: c2",
         f"{NO_START} a container that has stopped: c2"),
        ("pause", "", "", f"{NOT_RUNNING} is paused", f"{NOT_RUNNING} is stopped"),
        ("resume", *(f"container not paused: c2 is {status}" for status in ("created", "running")), "",
         "container not paused: c2 is stopped"),
        ("kill", "", "", "", NOT_RUNNING),
        ("kill --all", "", "", "", ""),
        ("exec", NOT_RUNNING, "", "cannot exec in a paused container: c2", NOT_RUNNING),
        ("attach", "", "", "", f"{NOT_RUNNING} is stopped"),
        ("detach", *("group 5 is not attached",) * 3, f"{NOT_RUNNING} is stopped"),
        ("pids", "", "", "", f"{NOT_RUNNING} is stopped"),
    ],
)  # fmt: skip
def test_operation_is_allowed_or_refused_by_state(
    tmp_path: Path, verb: str, created: str, running: str, paused: str, stopped: str
) -> None:
    async def story(status: str, refusal: str, directory: Path) -> None:
        async with pod(directory) as sandbox:
            await bring(sandbox, status)
            calls = len(sandbox.guest.calls)
            if refusal:
                with pytest.raises(HawseError, match=f"^{re.escape(refusal)}$") as caught:
                    await ask(sandbox, verb)
                assert caught.value.message == refusal
                assert len(sandbox.guest.calls) == calls, "the guest is not called"
            else:
                await ask(sandbox, verb)

    refusals = {"created": created, "running": running, "paused": paused, "stopped": stopped}
    for status, refusal in refusals.items():
        run(lambda status=status, refusal=refusal: story(status, refusal, tmp_path / status))  # type: ignore[misc]


@pytest.mark.parametrize("before", ["created", "running"])
def test_resume_restores_the_state_before_the_pause(tmp_path: Path, before: str) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await bring(sandbox, before)
            await sandbox.call("c2", "pause")
            assert sandbox.state()["status"] == "paused"
            await sandbox.call("c2", "resume")
            assert sandbox.state()["status"] == before
            freezes = [(call["container"], call["frozen"]) for call in sandbox.guest.asked("freeze")]
            assert freezes == [("c2", True), ("c2", False)]

    run(story)


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_container_that_exits_during_pause_or_resume_stays_stopped(tmp_path: Path, verb: str) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await bring(sandbox, "running" if verb == "pause" else "paused")
            held = sandbox.guest.held["freeze"] = asyncio.Event()
            asking = asyncio.create_task(sandbox.call("c2", verb))
            await until(lambda: len(sandbox.guest.asked("freeze")) == 1 + (verb == "resume"))
            sandbox.guest.tell("exit", process=2, code=0)
            await sandbox.sandbox.find("c2").stopped.wait()
            held.set()
            await asking
            assert sandbox.state()["status"] == "stopped"

    run(story)


@pytest.mark.parametrize("ends", [False, True])
def test_failed_start_restores_created_unless_stopped(tmp_path: Path, ends: bool) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await bring(sandbox, "created")
            held = sandbox.guest.held["start"] = asyncio.Event()
            sandbox.guest.answers["start"] = VmError("agent: no")
            starting = asyncio.create_task(sandbox.call("c2", "start"))
            await until(lambda: sandbox.guest.asked("start") == [{"container": "c2"}])
            assert sandbox.state()["status"] == "running", "a short program may exit before the call returns"
            if ends:
                sandbox.guest.tell("exit", process=2, code=1)
                await sandbox.sandbox.find("c2").stopped.wait()
            held.set()
            with pytest.raises(VmError, match="agent: no"):
                await starting
            assert sandbox.state()["status"] == ("stopped" if ends else "created")

    run(story)


def test_second_concurrent_start_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await bring(sandbox, "created")
            answers = await asyncio.gather(*(sandbox.call("c2", "start") for _ in range(2)), return_exceptions=True)
            assert sorted(map(str, answers)) == ["[]", "cannot start an already running container: c2"]
            assert len(sandbox.guest.asked("start")) == 1

    run(story)


def test_container_whose_proxy_has_ended_has_no_pid(tmp_path: Path) -> None:
    """The pid may be another process's by then, and a namespace of that process is not the container's."""

    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.join()
            container = sandbox.sandbox.find("c2")
            assert container.pid == os.getpid()
            assert container._proxy is not None
            container._proxy.process = reused()
            assert container.pid == 0

    run(story)


def test_state_file_after_creation(tmp_path: Path) -> None:
    hooks = {"poststop": [{"path": "/bin/true"}]}

    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.join(annotations={"a": "b"}, hooks=hooks, owner="root")
            state = sandbox.state()
            mine = os.getpid()
            assert (state["id"], state["sandbox"], state["bundle"], state["owner"]) == ("c2", "c1", "/b", "root")
            assert (state["pid"], state["pidStart"], state["monitorPid"]) == (mine, start_time(mine), mine)
            assert state["annotations"] == {"a": "b"}
            assert state["hooks"] == hooks
            assert state["created"].endswith("Z")
            assert [entry["host"]["group"] for entry in state["vfio"]] == [5]
            assert "hooks" not in sandbox.state("c1")
            assert sandbox.state("c1")["network"] == []

    run(story)


def test_state_file_lists_attached_devices(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.join()
            more = msgspec.to_builtins(attachment(NICS, sandbox.spares))
            sandbox.guest.answers["bind_vfio"] = BOUND | {"group": 4, "minor": 1}
            entries = await sandbox.call("c2", "attach", **more)
            assert isinstance(entries, list)
            assert [entry["host"]["group"] for entry in entries] == [7, 7]
            assert [entry["host"]["group"] for entry in sandbox.state()["vfio"]] == [5, 7, 7]
            await sandbox.call("c2", "detach", group=5, force=True)
            assert sandbox.guest.asked("remove_nodes")[0]["force"] is True
            assert [entry["host"]["group"] for entry in sandbox.state()["vfio"]] == [7, 7]
            sandbox.guest.answers["remove_nodes"] = DeviceError("it is in use")
            with pytest.raises(DeviceError, match="it is in use"):
                await sandbox.call("c2", "detach", group=7, force=False)
            assert [entry["host"]["group"] for entry in sandbox.state()["vfio"]] == [7, 7]

    run(story)


def test_attach_and_detach_wait_for_the_creation(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            sandbox.guest.held["create"] = asyncio.Event()
            await sandbox.announce(f"c2/{KEY}")
            creating = asyncio.create_task(sandbox.create(sandbox.joining(plugs=[])))
            await until(lambda: len(sandbox.guest.asked("create")) == 2)
            attaching = asyncio.create_task(ask(sandbox, "attach"))
            detaching = asyncio.create_task(ask(sandbox, "detach"))
            await settle()
            assert not attaching.done()
            assert not detaching.done()
            sandbox.sandbox.end()
            for waiting in (attaching, detaching):
                with pytest.raises(StateError, match="container not running: c2 is stopped"):
                    await waiting
            sandbox.guest.held["create"].set()
            await asyncio.gather(creating, return_exceptions=True)

    run(story)


def test_vm_failure_is_recorded_for_containers_that_had_not_stopped(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            proxy = await sandbox.join(plugs=[])
            await sandbox.call("c1", "start")
            sandbox.guest.tell("exit", process=1, code=0)
            await sandbox.sandbox.first.stopped.wait()
            sandbox.sandbox.record_failure(VmError("QEMU ended", hint="look"))
            sandbox.sandbox.end()
            assert await heard(proxy) == ("exit", {"code": 255})
            assert sandbox.state()["failure"]["message"] == "QEMU ended"
            assert sandbox.state()["status"] == "stopped"
            assert "failure" not in sandbox.state("c1")

    run(story)


def test_missing_state_directory_does_not_stop_a_start(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.join(plugs=[])
            for name in os.listdir(f"{sandbox.store.root}/c2"):
                os.unlink(f"{sandbox.store.root}/c2/{name}")
            os.rmdir(f"{sandbox.store.root}/c2")
            await sandbox.sandbox.find("c2").start()
            assert sandbox.sandbox.find("c2").status == "running"
            assert not os.path.exists(f"{sandbox.store.root}/c2")

    run(story)
