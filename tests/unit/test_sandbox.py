"""Containers that join a running sandbox: made, deleted at every moment, undone whole; and what their callers hear.

The monitor's own code, from the socket that the command line talks to down to the link; beyond it are a guest and a
QEMU of the test's making.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from hawse.cli.runc import kill
from hawse.cli.settings import Settings
from hawse.commands.delete import delete
from hawse.errors import ConfigError, DeviceError, HawseError, NotFoundError, StateError, VmError
from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.link import control
from hawse.linux import oom_score
from hawse.linux.processes import Process, open_process
from hawse.log import Log
from hawse.monitor.container import Container
from hawse.monitor.joined_namespaces import own_paths, owner_of
from hawse.monitor.machine.bounded_log import with_console_tail
from hawse.monitor.processes.processes import LOST
from hawse.oci.limits.cgroups import CgroupPlan
from hawse.plan.model import Attachment, DiskPlan
from hawse.state.store import Store
from tests.support.async_wait import until
from tests.support.fake_qmp import FakeQmp
from tests.support.pods import KEY, NoShare, heard, pod, run, settle


def test_a_container_joins_and_is_deleted(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            wanted = made.joining()
            proxy = await made.announce(f"c2/{KEY}")
            assert await made.create(wanted) == []
            assert (made.guest.containers, len(made.spares)) == ({"c1", "c2"}, 3)
            await made.call("c2", "delete")
            assert await heard(proxy) == ("exit", {"code": 137})
            made.prove_alone()

    run(story)


def test_guest_looks_at_mounts_before_a_container_is_created(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path, created=False) as made:
            share = cast(NoShare, made.sandbox._share)
            share.mounted = {"c1": ["c1/mount7/inner"]}
            await made.create_first()
            await made.join()
            share.mounted["c3"] = ["c3/mount7/inner"]
            await made.announce(f"c3/{KEY}")
            await made.create(made.joining("c3", plugs=[]))
            asked = [
                (method, params.get("paths") or params["container"])
                for method, params in made.guest.calls
                if method in ("look_at_mounts", "create")
            ]
            assert asked == [
                ("look_at_mounts", ["c1/mount7/inner"]), ("create", "c1"), ("create", "c2"),
                ("look_at_mounts", ["c3/mount7/inner"]), ("create", "c3"),
            ]  # fmt: skip

    run(story)


def test_vm_has_the_oom_score_of_the_containers_that_have_joined(tmp_path: Path) -> None:
    own = oom_score.read()
    if own > 900:
        pytest.skip("this process is among the first to be killed [run it with a lower oom_score_adj]")

    async def story() -> None:
        with subprocess.Popen(["/bin/sleep", "1000"]) as qemu:
            try:
                async with pod(tmp_path, oom_score_adj=own) as made:
                    made.machine.processes = lambda: [open_process(qemu.pid), Process(qemu.pid, -1)]
                    scores = []
                    for name, score in (("c2", own + 20), ("c3", own + 50)):
                        await made.announce(f"{name}/{KEY}")
                        await made.create(made.joining(name, plugs=[], oom_score_adj=score))
                        scores.append(oom_score.read(qemu.pid))
                    for name in ("c3", "c2"):
                        await made.call(name, "delete")
                        scores.append(oom_score.read(qemu.pid))
                    assert scores == [own + 20, own + 50, own + 20, own + 20]
            finally:
                qemu.kill()

    run(story)


def test_oom_score_that_cannot_be_set_is_warned_of(tmp_path: Path) -> None:
    async def story() -> None:
        with subprocess.Popen(["/bin/sleep", "1000"]) as qemu:
            try:
                async with pod(tmp_path) as made:
                    made.machine.processes = lambda: [open_process(qemu.pid)]
                    await made.announce(f"c2/{KEY}")
                    notes = await made.create(made.joining(plugs=[], oom_score_adj=5000))
                    assert notes == [["warning", oom_score.warning(5000, 0)]]
            finally:
                qemu.kill()

    run(story)


def test_an_end_that_cannot_be_recorded_is_told_and_is_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            wanted = made.joining()
            proxy = await made.announce(f"c2/{KEY}")
            await made.create(wanted)
            [asked] = [params for params in made.guest.asked("create") if params["container"] == "c2"]

            recorded = f"{made.store.root}/c2/state.json"
            os.rename(recorded, f"{recorded}.before")
            os.mkdir(recorded)  # which a file cannot replace
            made.guest.tell("exit", container="c2", process=asked["process"], code=5)
            assert await heard(proxy) == ("exit", {"code": 5})
            os.rmdir(recorded)
            os.rename(f"{recorded}.before", recorded)
            assert "cannot write the state of container c2: Is a directory" in capsys.readouterr().err
            assert made.sandbox.find("c2").status == "stopped"
            await made.call("c2", "delete")
            made.prove_alone()

    run(story)


@pytest.mark.parametrize("moment", ["bind_vfio", "create"])
def test_a_container_is_deleted_while_it_is_created(tmp_path: Path, moment: str) -> None:
    """As containerd does after a create that it has given up. The deletion is answered when all is undone."""

    async def story() -> None:
        async with pod(tmp_path) as made:
            wanted = made.joining()
            proxy = await made.announce(f"c2/{KEY}")
            made.guest.held[moment] = asyncio.Event()
            creating = asyncio.create_task(made.create(wanted))
            await until(lambda: any(params.get("container") != "c1" for params in made.guest.asked(moment)))
            deleting = asyncio.create_task(asyncio.to_thread(delete, Store(made.store.root, "c2"), force=True))
            await until(lambda: made.sandbox.removals == ["c2"])
            if moment == "create":
                await settle()
                assert made.guest.asked("delete") == [], "what the agent makes can be undone when it has been made"
                made.guest.held.pop(moment).set()
            assert await deleting == []
            for held in made.guest.held.values():
                held.set()
            made.guest.held.clear()
            made.prove_alone()
            assert not os.path.exists(f"{made.store.root}/c2")
            with pytest.raises(StateError, match="container c2 was deleted while it was created"):
                await creating
            assert await heard(proxy) == ("exit", {"code": LOST})
            await made.announce(f"c2/{KEY}")
            assert await made.create(made.joining()) == [], "the id and the group are free"

    run(story)


def test_a_caller_that_is_killed_leaves_no_container_in_the_guest(tmp_path: Path) -> None:
    """The agent's calls are threads: a deletion that overtook the creation found nothing, and then it was there."""

    async def story() -> None:
        async with pod(tmp_path) as made:
            wanted = made.joining()
            proxy = await made.announce(f"c2/{KEY}")
            held = made.guest.held["create"] = asyncio.Event()
            _, caller = await made.connect()
            params = {"container": "c2", "plan": msgspec.to_builtins(wanted), "sources": [], "key": KEY}
            caller.write(control.encode_call(1, "create", params))
            await until(lambda: len(made.guest.asked("create")) == 2)
            caller.close()
            await settle()
            assert made.guest.asked("delete") == []
            # Its engine deletes it meanwhile: both wait for the one undoing.
            deleting = asyncio.create_task(made.call("c2", "delete"))
            await until(lambda: made.sandbox.removals == ["c2"])
            await settle()
            assert made.guest.asked("delete") == []
            held.set()
            await deleting
            made.prove_alone()
            assert len(made.guest.asked("delete")) == 1
            assert await heard(proxy) == ("exit", {"code": LOST})

    run(story)


def test_two_deletions_at_once_are_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            await made.announce(f"c2/{KEY}")
            await made.create(made.joining())
            made.guest.held["delete"] = asyncio.Event()
            deletions = [asyncio.create_task(made.call("c2", "delete")) for _ in range(2)]
            await until(lambda: made.sandbox.removals == ["c2", "c2"])
            await settle()
            assert [deletion.done() for deletion in deletions] == [False, False]
            made.guest.held["delete"].set()
            assert await asyncio.gather(*deletions) == [None, None]
            assert len(made.guest.asked("delete")) == 1
            made.prove_alone()

    run(story)


def test_a_state_that_cannot_be_written_holds_up_no_release(tmp_path: Path) -> None:
    """A directory that somebody has removed by hand, as a deletion by force once did."""

    async def story() -> None:
        async with pod(tmp_path) as made:
            await made.announce(f"c2/{KEY}")
            await made.create(made.joining())
            shutil.rmtree(f"{made.store.root}/c2")
            await made.sandbox.remove("c2")
            made.prove_alone()
            made.joining()
            await made.announce(f"c2/{KEY}")
            await made.create(made.joining())
            shutil.rmtree(f"{made.store.root}/c2")
            made.sandbox.end()
            assert made.sandbox.first.stopped.is_set()
            assert made.sandbox.find("c2").stopped.is_set()

    run(story)


def test_a_container_whose_directory_has_gone_claims_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            wanted = made.joining()
            shutil.rmtree(f"{made.store.root}/c2")
            with pytest.raises(StateError, match="container c2 was deleted while it was created"):
                await made.sandbox.add(wanted, [], key=KEY)
            made.prove_alone()

    run(story)


def test_a_device_that_stays_is_told_and_its_container_stays_on_record(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path, FakeQmp(patience=10**9), seconds=0.1) as made:
            await made.join()
            store = Store(made.store.root, "c2")
            for _ in range(3):
                with pytest.raises(DeviceError, match="the guest does not release it"):
                    await asyncio.to_thread(delete, store, force=True)
                assert os.path.exists(f"{store.path}/state.json")
                assert made.guest.containers == {"c1"}
            with pytest.raises(StateError, match="group 5: the guest has not released it after container c2") as caught:
                await made.create(made.joining("c3"))
            assert caught.value.hint.startswith("try again: each attempt asks the guest again")
            made.qmp.patience = 1
            assert await asyncio.to_thread(delete, store, force=True) == []
            assert not os.path.exists(store.path)
            made.prove_alone()

    run(story)


@pytest.mark.parametrize("attaches", [False, True])
def test_group_that_the_guest_kept_after_a_failed_creation_is_asked_for_again(tmp_path: Path, attaches: bool) -> None:
    """The container is on record nowhere, so that no deletion can ask."""

    async def story() -> None:
        async with pod(tmp_path, FakeQmp(patience=10**9), seconds=0.1) as made:
            wanted = made.joining()
            await made.announce(f"c2/{KEY}")
            made.guest.containers.add("c2")  # so that there can be no second one
            with pytest.raises(VmError, match="does not release it"):
                await made.create(wanted)
            made.guest.containers.discard("c2")
            await made.sandbox.first.begin(cast(Any, made.qmp), made.machine.link)
            shutil.rmtree(f"{made.store.root}/c2")
            with pytest.raises(StateError, match="group 5: the guest has not released it after container c2"):
                await made.create(made.joining())
            shutil.rmtree(f"{made.store.root}/c2")
            attachment = Attachment(plugs=wanted.plugs, nodes=[], mode=0o600, uid=0, gid=0)
            with pytest.raises(StateError, match="group 5: the guest has not released it after container c2"):
                await made.call("c1", "attach", **msgspec.to_builtins(attachment))
            made.qmp.patience = 1
            if attaches:
                await made.call("c1", "attach", **msgspec.to_builtins(attachment))
                await made.call("c1", "detach", group=5, force=False)
            else:
                await made.join()
                await made.call("c2", "delete")
            made.prove_alone()

    run(story)


def test_disk_that_the_guest_keeps_is_reported_by_each_deletion(tmp_path: Path) -> None:
    """Until the guest has released it; also after another container with the same id has come and gone."""

    async def story() -> None:
        async with pod(tmp_path, FakeQmp(patience=10**9), seconds=0.1) as made:
            made.guest.answers["bind_disk"] = {"major": 254, "minor": 0}
            made.sandbox.disks._open = lambda *_, **__: os.open("/dev/null", os.O_RDWR)
            disk = DiskPlan(major=8, minor=16, name="sdb", writable=True)
            await made.join(plugs=[], disks=[disk])
            store = Store(made.store.root, "c2")
            for _ in range(2):
                with pytest.raises(DeviceError, match=r"block device sdb \(8:16\): the guest does not release it"):
                    await asyncio.to_thread(delete, store, force=True)
                assert os.path.exists(f"{store.path}/state.json")
            await made.announce(f"c3/{KEY}")
            with pytest.raises(DeviceError, match="the guest has not released it after container c2"):
                await made.create(made.joining("c3", plugs=[], disks=[disk]))
            store.remove()
            await made.join(plugs=[])
            await made.call("c2", "delete")
            with pytest.raises(DeviceError, match="the guest does not release it"):
                await made.call("c2", "delete")
            made.qmp.patience = 1
            await made.call("c2", "delete")
            made.prove_alone()
            with pytest.raises(NotFoundError):
                await made.call("c2", "delete")

    run(story)


def test_a_failure_and_that_of_its_undoing_are_told_together(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path, FakeQmp(patience=10**9)) as made:
            wanted = made.joining()
            await made.announce(f"c2/{KEY}")
            made.guest.containers.add("c2")  # so that there can be no second one
            with pytest.raises(VmError, match=r"c2 is there, or is not; and then .* does not release it"):
                await made.create(wanted)

    run(story)


def test_every_failure_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that nobody has thought of, too: without an answer or an end its caller would wait for ever."""

    def refuse(command: str, _arguments: dict[str, Any]) -> HawseError | None:
        return cast(HawseError, OSError(28, "No space left on device")) if command == "device_add" else None

    async def story() -> None:
        async with pod(tmp_path, FakeQmp(refuse=refuse)) as made:
            with pytest.raises(VmError, match=r"monitor: create: OSError: \[Errno 28\] No space left on device"):
                await made.create(made.joining())
            made.prove_alone()

    run(story)
    assert "raise error\nOSError: [Errno 28] No space left on device" in capsys.readouterr().err


def test_all_can_be_killed_after_the_first_has_ended(tmp_path: Path) -> None:
    """In a PID namespace that is another container's, the end of a first process is not the others'."""

    async def story() -> None:
        async with pod(tmp_path) as made:
            await made.announce(f"c2/{KEY}")
            await made.create(made.joining())
            made.guest.tell("exit", container="c2", process=2, code=0)
            await made.sandbox.find("c2").stopped.wait()
            with pytest.raises(StateError, match="container not running: c2"):
                await made.call("c2", "kill", signal=9, all=False)
            assert made.guest.asked("signal") == []
            settings = Settings(root=made.store.root, log=Log(), config_path=None, debug=False)
            assert await asyncio.to_thread(kill.main, ["--all", "c2", "9"], settings) == 0
            assert made.guest.asked("signal") == [{"container": "c2", "process": 2, "signal": 9, "everyone": True}]
        # Engines ask for it whatever has ended.
        assert kill.main(["--all", "c2", "9"], settings) == 0

    run(story)


def test_the_cgroup_of_a_container_that_joins_is_asked_for_with_its_proxy(tmp_path: Path) -> None:
    class Noted(HostCgroup):
        def place(self, process: Process, **_: Any) -> list[str]:
            return [f"{process.pid} is placed"]

    async def story() -> None:
        async with pod(tmp_path) as made:
            wanted = made.joining(
                plugs=[], cgroup=CgroupPlan(path="/a.slice/x-c2.scope", slice="a.slice", unit="x-c2.scope")
            )
            store = Store(made.store.root, "c2")
            sandbox = made.sandbox
            cgroup = Noted(wanted.cgroup, store.path)
            joined = Container(
                wanted, store, sandbox.processes, sandbox.claims, cgroup, key=KEY, seconds=1.0, sandbox="c1"
            )
            await made.announce(f"c2/{KEY}")
            assert await joined.create({}) == [("warning", f"{os.getpid()} is placed")]
            await joined.remove()

    run(story)


def test_a_namespace_is_a_members_or_refused(tmp_path: Path) -> None:
    """Of the pod's, by any of the names that engines have for them; never of somebody else's by mistake."""
    mine = os.getpid()
    for name in ("ipc", "another"):
        (tmp_path / name).touch()
    os.symlink(tmp_path / "ipc", tmp_path / "same")
    own = {"ipc": str(tmp_path / "ipc"), "uts": "/run/utsns/gone"}
    pids = {"c1": 0, "c2": mine}

    def owner(kind: str, path: str) -> str:
        return owner_of(kind, path, pids=pids, first="c1", own=own)

    assert owner("ipc", f"/proc/{mine}/ns/ipc") == "c2", "the pid that its engine was told"
    assert owner("pid", "/proc/thread-self/ns/pid") == "c2", "the same PID namespace by another name"
    assert owner("ipc", str(tmp_path / "same")) == "c1", "one that the engine has made for the sandbox"
    assert owner("uts", "/run/utsns/gone") == "c1", "whatever is to be seen there from here"
    for kind, path in (
        ("pid", f"/proc/{os.getppid()}0/ns/pid"), ("ipc", "/proc/1/ns/ipc"), ("ipc", f"/proc/{mine}/ns/uts"),
        ("uts", "/proc/self/ns/uts"), ("ipc", str(tmp_path / "another")), ("uts", str(tmp_path / "ipc")),
        ("pid", "/proc/0/ns/pid"), ("pid", f"/proc/{mine}/ns/uts"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            owner(kind, path)
        assert (
            caught.value.message
            == f"linux.namespaces[type={kind}].path: {path}: belongs to no container in the sandbox c1"
        )


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ('{"linux": {"namespaces": [{"type": "ipc", "path": "/run/x"}, {"type": "pid"}]}}', {"ipc": "/run/x"}),
        ('{"linux": {"namespaces": null}}', {}),
        ('{"linux": [1]}', {}),
        ("{", {}),
    ],
)  # fmt: skip
def test_the_sandboxs_own_paths_are_its_specifications(tmp_path: Path, text: str, paths: dict[str, str]) -> None:
    assert own_paths(str(tmp_path)) == {}
    (tmp_path / "config.json").write_text(text)
    assert own_paths(str(tmp_path)) == paths


def test_a_namespace_of_nobody_in_the_pod_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            # Of a PID namespace these processes may have the same.
            wanted = made.joining(joins={"ipc": "/proc/1/ns/ipc"})
            with pytest.raises(
                ConfigError, match=r"linux\.namespaces\[type=ipc\]\.path: /proc/1/ns/ipc: belongs to no"
            ):
                await made.create(wanted)
            made.prove_alone()
            await made.announce(f"c2/{KEY}")
            own = f"/proc/{os.getpid()}/ns/uts"
            await made.create(made.joining(joins={"uts": own}))
            assert made.guest.asked("create")[-1]["joins"] == {"uts": "c1"}

    run(story)


@pytest.mark.parametrize(
    ("reason", "console", "sentence", "evidence"),
    [
        (VmError("it ended"), "Oops", "it ended [the end of the console log follows]", "Oops"),
        (
            VmError("it ended"), "",
            "it ended [the console is empty: a processor was reset, as by a triple fault, or the agent ended]",
            "",
        ),
        (VmError("QEMU ended", hint="look", evidence="abort"), "Oops", "QEMU ended [look]", "abort"),
    ],
)  # fmt: skip
def test_the_end_of_a_machine_is_told_with_its_last_words(
    reason: VmError, console: str, sentence: str, evidence: str
) -> None:
    told = with_console_tail(reason, console)
    assert (told.sentence(), told.evidence) == (sentence, evidence)
