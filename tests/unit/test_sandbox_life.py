"""A sandbox from the VM's first message to its end: hooks, joining containers, OOM kills, the trace.

Tests :mod:`hawse.monitor.sandbox` through the socket of the monitor.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hawse.commands.delete import delete
from hawse.errors import ConfigError, DeviceError, HawseError, NotFoundError, StateError, VmError
from hawse.monitor import members
from hawse.monitor.sandbox import INIT_KEY
from hawse.oci.guest.share import Share
from hawse.state.store import Store
from hawse.vfio.bind import records as bindings
from tests.support.fake_qmp import FakeQmp
from tests.support.pods import KEY, NoShare, heard, pod, run, settle


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_creation_hooks_run_before_the_first_container(tmp_path: Path, kind: str) -> None:
    async def story() -> None:
        async with pod(tmp_path, created=False, hooks={kind: [{"path": "/bin/true"}]}) as sandbox:
            waiting = asyncio.create_task(sandbox.call("c1", "await_machine"))
            await settle()
            assert not waiting.done()
            creating = asyncio.create_task(sandbox.create_first())
            await waiting
            await settle()
            assert sandbox.guest.asked("create") == []
            await sandbox.call("c1", "go_on")
            await creating
            assert [call["container"] for call in sandbox.guest.asked("create")] == ["c1"]

    run(story)


@pytest.mark.parametrize("hooks", [{}, {"createRuntime": []}, {"poststop": [{"path": "/bin/true"}]}])
def test_creation_does_not_wait_without_creation_hooks(tmp_path: Path, hooks: dict[str, Any]) -> None:
    async def story() -> None:
        async with pod(tmp_path, created=False, hooks=hooks) as sandbox:
            assert await sandbox.create_first() == []

    run(story)


def test_join_is_refused_unless_the_first_container_is_created_or_running(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path, created=False) as sandbox:
            with pytest.raises(StateError, match="sandbox c1 is creating: no container can join it"):
                await sandbox.create(sandbox.joining())
            await sandbox.create_first()
            await sandbox.join()
            with pytest.raises(StateError, match="container with given ID already exists: c2"):
                await sandbox.create(sandbox.joining(plugs=[]))
            assert sandbox.guest.containers == {"c1", "c2"}
            await sandbox.call("c1", "pause")
            with pytest.raises(StateError, match="sandbox c1 is paused: no container can join it"):
                await sandbox.create(sandbox.joining("c3"))

    run(story)


def test_unknown_container_is_an_error(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            for method, params in (("start", {}), ("delete", {}), ("pids", {}), ("kill", {"signal": 9, "all": True})):
                with pytest.raises(NotFoundError, match="container does not exist: c9"):
                    await sandbox.call("c9", method, **params)
            assert not sandbox.sandbox.finished.is_set()

    run(story)


@pytest.mark.parametrize("end", ["delete", "exit", "exit of another"])
def test_sandbox_ends_with_its_first_container(tmp_path: Path, end: str) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.join(plugs=[])
            if end == "delete":
                deleting = asyncio.create_task(sandbox.call("c1", "delete"))
                await sandbox.sandbox.finished.wait()
                assert not deleting.done(), "the end of its connection is the end of the monitor"
                deleting.cancel()
            else:
                sandbox.guest.tell("exit", process=1 if end == "exit" else 2, code=0)
                await settle()
            assert sandbox.sandbox.finished.is_set() == (end != "exit of another")
            assert sandbox.sandbox.find("c2").status == ("stopped" if end == "exit of another" else "created")

    run(story)


def test_room_lists_spare_ports_and_shared_groups(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.join(native={9: {}})
            room = await sandbox.call("c1", "room")
            assert isinstance(room, dict)
            assert [port["name"] for port in room["spares"]] == [port.name for port in sandbox.spares]
            assert len(room["spares"]) == 3
            assert [plug["device"] for plug in room["plugs"]] == ["vfio-5-0"]
            assert (room["native"], room["memory_mib"], room["label"]) == ([9], 512, "")

    run(story)


def test_oom_kills_are_counted_per_container(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.join(plugs=[])
            waiting = asyncio.create_task(sandbox.call("c2", "await_oom", seen=0, seconds=60))
            await settle()
            assert not waiting.done()
            sandbox.guest.tell("oom", container="nobody", kills=5)
            sandbox.guest.tell("oom", container="c2", kills=2)
            assert await waiting == 2
            assert sandbox.state()["oomKills"] == 2
            assert "oomKills" not in sandbox.state("c1")
            assert await sandbox.call("c2", "await_oom", seen=1, seconds=60) == 2
            sandbox.guest.tell("oom", container="c2", kills=1)
            began = asyncio.get_running_loop().time()
            assert await sandbox.call("c2", "await_oom", seen=2, seconds=60) == 2, "a lower count is ignored"
            assert asyncio.get_running_loop().time() - began >= 60
            waiting = asyncio.create_task(sandbox.call("c2", "await_oom", seen=2, seconds=60))
            await settle()
            sandbox.guest.tell("exit", process=2, code=137)
            assert await waiting == 2
            assert asyncio.get_running_loop().time() - began < 120, "the wait ends with the container"

    run(story)


@pytest.mark.parametrize(
    "taken", [[{"name": "crun", "began_ns": 10**9, "ended_ns": 2 * 10**9}], [["crun", 1, 2]], VmError("agent: no")]
)
def test_timeline_is_written_at_start(tmp_path: Path, taken: Any) -> None:
    async def story() -> None:
        async with pod(tmp_path, timeline=f"{tmp_path}/trace.json") as sandbox:
            sandbox.guest.answers["trace"] = taken
            await sandbox.join(plugs=[])
            await sandbox.call("c2", "start")
            assert sandbox.guest.asked("trace") == []
            await sandbox.call("c1", "start")
            names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
            assert "container started" in names
            assert ("crun" in names) == (isinstance(taken, list) and isinstance(taken[0], dict))

    run(story)


def test_no_timeline_unless_requested(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.call("c1", "start")
            assert sandbox.guest.asked("trace") == []

    run(story)


def test_every_container_ends_when_one_state_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            proxy = await sandbox.join(plugs=[])
            os.unlink(f"{sandbox.store.path}/state.json")
            os.mkdir(f"{sandbox.store.path}/state.json")  # which a file cannot replace
            sandbox.sandbox.end()
            assert sandbox.sandbox.finished.is_set()
            assert sandbox.sandbox.find("c2").stopped.is_set()
            assert await heard(proxy) == ("exit", {"code": 255})
            assert sandbox.state()["status"] == "stopped"

    run(story)
    assert "cannot write the state of container c1" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["delete", "leave"])
def test_bound_functions_are_released(tmp_path: Path, end: str) -> None:
    """By deletion of the container, or after the end of the VM. Records of other owners stay."""
    directory = f"{tmp_path}/root.bindings"

    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.join(plugs=[])
            for number, owner in enumerate(("c2", "c3")):
                bindings.write(directory, bindings.Record(f"ffff:ff:1f.{number}", "x", "", "vfio-pci", owner))
            if end == "leave":
                await sandbox.sandbox.restore_functions()
            else:
                await sandbox.call("c2", "delete")
            records, _ = bindings.read_all(directory)
            assert [record.owner for record in records] == ["c3"]
            if end == "leave":
                bindings.write(directory, bindings.Record("ffff:ff:1f.0", "x", "", "vfio-pci", "c2"))
                await sandbox.call("c2", "delete")
                records, _ = bindings.read_all(directory)
                assert [record.owner for record in records] == ["c2", "c3"], "released only once"

    run(story)


def test_functions_that_cannot_be_restored_do_not_block_the_deletion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt reports the error, and the next one removes the container. The functions stay recorded."""
    failing = True

    def restore(_store: Store) -> None:
        if failing:
            raise DeviceError("0000:3b:00.0: another program has changed its driver")

    monkeypatch.setattr(members, "restore_drivers", restore)

    async def story() -> None:
        nonlocal failing
        async with pod(tmp_path) as sandbox:
            await sandbox.join(plugs=[])
            store = Store(sandbox.store.root, "c2")
            with pytest.raises(DeviceError, match="another program has changed its driver"):
                await asyncio.to_thread(delete, store, force=True)
            assert os.path.exists(store.path)
            assert await asyncio.to_thread(delete, store, force=True) == []
            assert not os.path.exists(store.path)
            failing = False
            await sandbox.sandbox.restore_functions()

    run(story)


def test_concurrent_deletions_of_a_container_with_a_kept_device_all_succeed(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path, FakeQmp(patience=10**9), seconds=0.1) as sandbox:
            await sandbox.join()
            with pytest.raises(DeviceError, match="the guest does not release it"):
                await sandbox.sandbox.remove("c2")
            sandbox.qmp.patience = 1
            assert await asyncio.gather(*(sandbox.sandbox.remove("c2") for _ in range(3))) == [None] * 3

    run(story)


def test_share_that_cannot_be_mounted_fails_before_the_guest_is_called(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.announce(f"c2/{KEY}")
            shares = [Share(name="m", source="/x", is_dir=True, readonly=True)]
            params = {"plan": msgspec.to_builtins(sandbox.joining(shares=shares)), "key": KEY}
            with open("/dev/null") as tree, pytest.raises(ConfigError, match="cannot share /x with the guest: "):
                await sandbox.call("c2", "create", **params, sources=[{"tree": tree.fileno(), "origin": {}}])
            sandbox.prove_alone()
            assert sandbox.guest.asked("bind_vfio") == []
            assert isinstance(sandbox.sandbox._share, NoShare)
            assert sandbox.sandbox._share.removed == ["c2"]

    run(story)


def test_second_proxy_for_a_process_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path, created=False) as sandbox:
            await sandbox.announce(f"c1/{INIT_KEY}")
            await settle()
            second = await sandbox.announce(f"c1/{INIT_KEY}")
            answer = await second.read()
            assert b"a second proxy for the process c1/init" in answer

    run(story)


@pytest.mark.parametrize("is_pod", [True, False])
def test_ports_are_forwarded_for_pods_only(tmp_path: Path, is_pod: bool) -> None:
    """The descriptor is not a network namespace, so that the attempt causes a warning."""

    async def story() -> None:
        with open("/dev/null") as nothing:
            async with pod(tmp_path, created=False, pod=is_pod, loopback=nothing.fileno()) as sandbox:
                notes = await sandbox.create_first()
                assert [text[:39] for _, text in notes] == ["ports of this pod cannot be forwarded: "][: int(is_pod)]

    run(story)


def test_function_that_cannot_be_bound_fails_before_the_guest_is_called(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            with pytest.raises(HawseError, match=r"ffff:ff:1f\.0"):
                await sandbox.create(sandbox.joining(binds=["ffff:ff:1f.0"]))
            sandbox.prove_alone()
            assert [method for method, _ in sandbox.guest.calls] == ["create"]

    run(story)
