"""Containers that join a running sandbox: creation, deletion at every moment, undoing, and the answers to callers.

The monitor's own code runs, from the socket that commands connect to down to the link. The guest and QEMU are fakes.
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
from hawse.link import messages
from hawse.linux import oom_score
from hawse.linux.processes import Process, open_process
from hawse.log import Log
from hawse.monitor.container import Container
from hawse.monitor.joined_namespaces import own_paths, owner_of
from hawse.monitor.machine.bounded_log import with_console_tail
from hawse.monitor.processes.process_table import LOST
from hawse.oci.limits.cgroups import CgroupPlan
from hawse.plan.model import Attachment, DiskPlan
from hawse.state.store import Store
from hawse.vfio.node import group_node
from tests.support.async_wait import until
from tests.support.fake_qmp import FakeQmp
from tests.support.pods import KEY, NoShare, heard, pod, run, settle


def test_container_joins_and_is_deleted(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            container = sandbox.joining()
            proxy = await sandbox.announce(f"c2/{KEY}")
            assert await sandbox.create(container) == []
            assert (sandbox.guest.containers, len(sandbox.spares)) == ({"c1", "c2"}, 3)
            await sandbox.call("c2", "delete")
            assert await heard(proxy) == ("exit", {"code": 137})
            sandbox.prove_alone()

    run(story)


def test_guest_looks_at_mounts_before_a_container_is_created(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path, created=False) as sandbox:
            share = cast(NoShare, sandbox.sandbox._share)
            share.mounted = {"c1": ["c1/mount7/inner"]}
            await sandbox.create_first()
            await sandbox.join()
            share.mounted["c3"] = ["c3/mount7/inner"]
            await sandbox.announce(f"c3/{KEY}")
            await sandbox.create(sandbox.joining("c3", plugs=[]))
            asked = [
                (method, params.get("paths") or params["container"])
                for method, params in sandbox.guest.calls
                if method in ("automount", "create")
            ]
            assert asked == [
                ("automount", ["c1/mount7/inner"]), ("create", "c1"), ("create", "c2"),
                ("automount", ["c3/mount7/inner"]), ("create", "c3"),
            ]  # fmt: skip

    run(story)


def test_vm_has_the_oom_score_of_the_containers_that_have_joined(tmp_path: Path) -> None:
    own = oom_score.read()
    if own > 900:
        pytest.skip("this process is among the first to be killed [run it with a lower oom_score_adj]")

    async def story() -> None:
        with subprocess.Popen(["/bin/sleep", "1000"]) as qemu:
            try:
                async with pod(tmp_path, oom_score_adj=own) as sandbox:
                    sandbox.machine.processes = lambda: [open_process(qemu.pid), Process(qemu.pid, -1)]
                    scores = []
                    for name, score in (("c2", own + 20), ("c3", own + 50)):
                        await sandbox.announce(f"{name}/{KEY}")
                        await sandbox.create(sandbox.joining(name, plugs=[], oom_score_adj=score))
                        scores.append(oom_score.read(qemu.pid))
                    for name in ("c3", "c2"):
                        await sandbox.call(name, "delete")
                        scores.append(oom_score.read(qemu.pid))
                    assert scores == [own + 20, own + 50, own + 20, own + 20]
            finally:
                qemu.kill()

    run(story)


def test_oom_score_that_cannot_be_set_is_a_warning(tmp_path: Path) -> None:
    async def story() -> None:
        with subprocess.Popen(["/bin/sleep", "1000"]) as qemu:
            try:
                async with pod(tmp_path) as sandbox:
                    sandbox.machine.processes = lambda: [open_process(qemu.pid)]
                    await sandbox.announce(f"c2/{KEY}")
                    notes = await sandbox.create(sandbox.joining(plugs=[], oom_score_adj=5000))
                    assert notes == [["warning", oom_score.warning(5000, 0)]]
            finally:
                qemu.kill()

    run(story)


def test_end_that_cannot_be_recorded_is_logged_and_affects_no_other_container(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            container = sandbox.joining()
            proxy = await sandbox.announce(f"c2/{KEY}")
            await sandbox.create(container)
            [asked] = [params for params in sandbox.guest.asked("create") if params["container"] == "c2"]

            recorded = f"{sandbox.store.root}/c2/state.json"
            os.rename(recorded, f"{recorded}.before")
            os.mkdir(recorded)  # which a file cannot replace
            sandbox.guest.tell("exit", container="c2", process=asked["process"], code=5)
            assert await heard(proxy) == ("exit", {"code": 5})
            os.rmdir(recorded)
            os.rename(f"{recorded}.before", recorded)
            assert "cannot write the state of container c2: Is a directory" in capsys.readouterr().err
            assert sandbox.sandbox.find("c2").status == "stopped"
            await sandbox.call("c2", "delete")
            sandbox.prove_alone()

    run(story)


@pytest.mark.parametrize("moment", ["bind_vfio", "create"])
def test_container_is_deleted_during_its_creation(tmp_path: Path, moment: str) -> None:
    """As by containerd after a create that has timed out. The deletion is answered when everything is undone."""

    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            container = sandbox.joining()
            proxy = await sandbox.announce(f"c2/{KEY}")
            sandbox.guest.held[moment] = asyncio.Event()
            creating = asyncio.create_task(sandbox.create(container))
            await until(lambda: any(params.get("container") != "c1" for params in sandbox.guest.asked(moment)))
            deleting = asyncio.create_task(asyncio.to_thread(delete, Store(sandbox.store.root, "c2"), force=True))
            await until(lambda: sandbox.sandbox.removals == ["c2"])
            if moment == "create":
                await settle()
                assert sandbox.guest.asked("delete") == [], "only what the agent has created can be undone"
                sandbox.guest.held.pop(moment).set()
            assert await deleting == []
            for held in sandbox.guest.held.values():
                held.set()
            sandbox.guest.held.clear()
            sandbox.prove_alone()
            assert not os.path.exists(f"{sandbox.store.root}/c2")
            with pytest.raises(StateError, match="container c2 was deleted while it was created"):
                await creating
            assert await heard(proxy) == ("exit", {"code": LOST})
            await sandbox.announce(f"c2/{KEY}")
            assert await sandbox.create(sandbox.joining()) == [], "the id and the group are free"

    run(story)


def test_killed_caller_leaves_no_container_in_the_guest(tmp_path: Path) -> None:
    """Calls of the agent are threads: without order, a deletion that overtook the creation found nothing, and the
    container existed afterwards."""

    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            container = sandbox.joining()
            proxy = await sandbox.announce(f"c2/{KEY}")
            held = sandbox.guest.held["create"] = asyncio.Event()
            _, caller = await sandbox.connect()
            params = {"container": "c2", "plan": msgspec.to_builtins(container), "sources": [], "key": KEY}
            caller.write(messages.encode_call(1, "create", params))
            await until(lambda: len(sandbox.guest.asked("create")) == 2)
            caller.close()
            await settle()
            assert sandbox.guest.asked("delete") == []
            # Its engine deletes it in the meantime: both requests wait for the same undoing.
            deleting = asyncio.create_task(sandbox.call("c2", "delete"))
            await until(lambda: sandbox.sandbox.removals == ["c2"])
            await settle()
            assert sandbox.guest.asked("delete") == []
            held.set()
            await deleting
            sandbox.prove_alone()
            assert len(sandbox.guest.asked("delete")) == 1
            assert await heard(proxy) == ("exit", {"code": LOST})

    run(story)


def test_concurrent_deletions_are_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.announce(f"c2/{KEY}")
            await sandbox.create(sandbox.joining())
            sandbox.guest.held["delete"] = asyncio.Event()
            deletions = [asyncio.create_task(sandbox.call("c2", "delete")) for _ in range(2)]
            await until(lambda: sandbox.sandbox.removals == ["c2", "c2"])
            await settle()
            assert [deletion.done() for deletion in deletions] == [False, False]
            sandbox.guest.held["delete"].set()
            assert await asyncio.gather(*deletions) == [None, None]
            assert len(sandbox.guest.asked("delete")) == 1
            sandbox.prove_alone()

    run(story)


def test_state_that_cannot_be_written_does_not_prevent_the_release(tmp_path: Path) -> None:
    """For example since a user has removed the directory, as a deletion by force once did."""

    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.announce(f"c2/{KEY}")
            await sandbox.create(sandbox.joining())
            shutil.rmtree(f"{sandbox.store.root}/c2")
            await sandbox.sandbox.remove("c2")
            sandbox.prove_alone()
            sandbox.joining()
            await sandbox.announce(f"c2/{KEY}")
            await sandbox.create(sandbox.joining())
            shutil.rmtree(f"{sandbox.store.root}/c2")
            sandbox.sandbox.end()
            assert sandbox.sandbox.first.stopped.is_set()
            assert sandbox.sandbox.find("c2").stopped.is_set()

    run(story)


def test_container_without_a_directory_claims_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            container = sandbox.joining()
            shutil.rmtree(f"{sandbox.store.root}/c2")
            with pytest.raises(StateError, match="container c2 was deleted while it was created"):
                await sandbox.sandbox.add(container, [], key=KEY)
            sandbox.prove_alone()

    run(story)


def test_device_that_the_guest_keeps_is_reported_and_its_container_stays_on_record(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path, FakeQmp(patience=10**9), seconds=0.1) as sandbox:
            await sandbox.join()
            store = Store(sandbox.store.root, "c2")
            for _ in range(3):
                with pytest.raises(DeviceError, match="the guest does not release it"):
                    await asyncio.to_thread(delete, store, force=True)
                assert os.path.exists(f"{store.path}/state.json")
                assert sandbox.guest.containers == {"c1"}
            with pytest.raises(StateError, match="group 5: the guest has not released it after container c2") as caught:
                await sandbox.create(sandbox.joining("c3"))
            assert caught.value.hint.startswith("try again: each attempt asks the guest again")
            sandbox.qmp.patience = 1
            assert await asyncio.to_thread(delete, store, force=True) == []
            assert not os.path.exists(store.path)
            sandbox.prove_alone()

    run(story)


@pytest.mark.parametrize("attaches", [False, True])
def test_group_that_the_guest_kept_after_a_failed_creation_is_asked_for_again(tmp_path: Path, attaches: bool) -> None:
    """The container is on record nowhere, so that no deletion can ask."""

    async def story() -> None:
        async with pod(tmp_path, FakeQmp(patience=10**9), seconds=0.1) as sandbox:
            container = sandbox.joining()
            await sandbox.announce(f"c2/{KEY}")
            sandbox.guest.containers.add("c2")  # so that there can be no second one
            with pytest.raises(VmError, match="does not release it"):
                await sandbox.create(container)
            sandbox.guest.containers.discard("c2")
            await sandbox.sandbox.first.begin(cast(Any, sandbox.qmp), sandbox.machine.link)
            shutil.rmtree(f"{sandbox.store.root}/c2")
            with pytest.raises(StateError, match="group 5: the guest has not released it after container c2"):
                await sandbox.create(sandbox.joining())
            shutil.rmtree(f"{sandbox.store.root}/c2")
            attachment = Attachment(plugs=container.plugs, nodes=[group_node(5)], mode=0o600, uid=0, gid=0)
            with pytest.raises(StateError, match="group 5: the guest has not released it after container c2"):
                await sandbox.call("c1", "attach", **msgspec.to_builtins(attachment))
            sandbox.qmp.patience = 1
            if attaches:
                await sandbox.call("c1", "attach", **msgspec.to_builtins(attachment))
                await sandbox.call("c1", "detach", group=5, force=False)
            else:
                await sandbox.join()
                await sandbox.call("c2", "delete")
            sandbox.prove_alone()

    run(story)


def test_disk_that_the_guest_keeps_is_reported_by_each_deletion(tmp_path: Path) -> None:
    """Until the guest has released it; also after another container with the same id was created and deleted."""

    async def story() -> None:
        async with pod(tmp_path, FakeQmp(patience=10**9), seconds=0.1) as sandbox:
            sandbox.guest.answers["bind_disk"] = {"major": 254, "minor": 0}
            sandbox.sandbox.disks._open = lambda *_, **__: os.open("/dev/null", os.O_RDWR)
            disk = DiskPlan(major=8, minor=16, name="sdb", writable=True)
            await sandbox.join(plugs=[], disks=[disk])
            store = Store(sandbox.store.root, "c2")
            for _ in range(2):
                with pytest.raises(DeviceError, match=r"block device sdb \(8:16\): the guest does not release it"):
                    await asyncio.to_thread(delete, store, force=True)
                assert os.path.exists(f"{store.path}/state.json")
            await sandbox.announce(f"c3/{KEY}")
            with pytest.raises(DeviceError, match="the guest has not released it after container c2"):
                await sandbox.create(sandbox.joining("c3", plugs=[], disks=[disk]))
            store.remove()
            await sandbox.join(plugs=[])
            await sandbox.call("c2", "delete")
            with pytest.raises(DeviceError, match="the guest does not release it"):
                await sandbox.call("c2", "delete")
            sandbox.qmp.patience = 1
            await sandbox.call("c2", "delete")
            sandbox.prove_alone()
            with pytest.raises(NotFoundError):
                await sandbox.call("c2", "delete")

    run(story)


def test_failure_and_failure_of_its_undoing_are_reported_together(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path, FakeQmp(patience=10**9)) as sandbox:
            planned = sandbox.joining()
            await sandbox.announce(f"c2/{KEY}")
            sandbox.guest.containers.add("c2")  # so that there can be no second one
            with pytest.raises(VmError, match=r"c2 is there, or is not; and then .* does not release it"):
                await sandbox.create(planned)

    run(story)


def test_every_error_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also an unexpected one: without an answer or an end of the connection its caller would wait for ever."""

    def refuse(command: str, _arguments: dict[str, Any]) -> HawseError | None:
        return cast(HawseError, OSError(28, "No space left on device")) if command == "device_add" else None

    async def story() -> None:
        async with pod(tmp_path, FakeQmp(refuse=refuse)) as sandbox:
            with pytest.raises(VmError, match=r"monitor: create: OSError: \[Errno 28\] No space left on device"):
                await sandbox.create(sandbox.joining())
            sandbox.prove_alone()

    run(story)
    assert "raise error\nOSError: [Errno 28] No space left on device" in capsys.readouterr().err


def test_all_processes_can_be_killed_after_the_end_of_the_first(tmp_path: Path) -> None:
    """If the container joins another container's PID namespace, the other processes survive the end of its first
    process."""

    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.announce(f"c2/{KEY}")
            await sandbox.create(sandbox.joining())
            sandbox.guest.tell("exit", container="c2", process=2, code=0)
            await sandbox.sandbox.find("c2").stopped.wait()
            with pytest.raises(StateError, match="container not running: c2"):
                await sandbox.call("c2", "kill", signal=9, all=False)
            assert sandbox.guest.asked("signal") == []
            settings = Settings(root=sandbox.store.root, log=Log(), config_path=None, debug=False)
            assert await asyncio.to_thread(kill.main, ["--all", "c2", "9"], settings) == 0
            assert sandbox.guest.asked("signal") == [{"container": "c2", "process": 2, "signal": 9, "everyone": True}]
        # Engines request it in any case.
        assert kill.main(["--all", "c2", "9"], settings) == 0

    run(story)


def test_cgroup_of_a_joining_container_is_created_with_its_proxy(tmp_path: Path) -> None:
    class Noted(HostCgroup):
        def place(self, process: Process, **_: Any) -> list[str]:
            return [f"{process.pid} is placed"]

    async def story() -> None:
        async with pod(tmp_path) as pod_sandbox:
            container = pod_sandbox.joining(
                plugs=[], cgroup=CgroupPlan(path="/a.slice/x-c2.scope", slice="a.slice", unit="x-c2.scope")
            )
            store = Store(pod_sandbox.store.root, "c2")
            sandbox = pod_sandbox.sandbox
            cgroup = Noted(container.cgroup, store.path)
            joined = Container(
                container, store, sandbox.processes, sandbox.claims, cgroup, key=KEY, seconds=1.0, sandbox="c1"
            )
            await pod_sandbox.announce(f"c2/{KEY}")
            assert await joined.create({}) == [("warning", f"{os.getpid()} is placed")]
            await joined.remove()

    run(story)


def test_namespace_belongs_to_a_container_of_the_pod_or_is_refused(tmp_path: Path) -> None:
    """The namespace of a container of the pod, by any of the pids and paths that engines use, and never another
    process's."""
    mine = os.getpid()
    for name in ("ipc", "another"):
        (tmp_path / name).touch()
    os.symlink(tmp_path / "ipc", tmp_path / "same")
    own = {"ipc": str(tmp_path / "ipc"), "uts": "/run/utsns/gone"}
    pids = {"c1": 0, "c2": mine}

    def owner(kind: str, path: str) -> str:
        return owner_of(kind, path, pids=pids, first="c1", own=own)

    assert owner("ipc", f"/proc/{mine}/ns/ipc") == "c2", "the pid that its engine got"
    assert owner("pid", "/proc/thread-self/ns/pid") == "c2", "the same PID namespace by another name"
    assert owner("ipc", str(tmp_path / "same")) == "c1", "one that the engine has created for the sandbox"
    assert owner("uts", "/run/utsns/gone") == "c1", "whatever this process sees there"
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
def test_paths_of_the_sandbox_are_those_of_its_specification(tmp_path: Path, text: str, paths: dict[str, str]) -> None:
    assert own_paths(str(tmp_path)) == {}
    (tmp_path / "config.json").write_text(text)
    assert own_paths(str(tmp_path)) == paths


def test_namespace_outside_of_the_pod_is_refused_before_any_change(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            # Of a PID namespace these processes may have the same.
            planned = sandbox.joining(joins={"ipc": "/proc/1/ns/ipc"})
            with pytest.raises(
                ConfigError, match=r"linux\.namespaces\[type=ipc\]\.path: /proc/1/ns/ipc: belongs to no"
            ):
                await sandbox.create(planned)
            sandbox.prove_alone()
            await sandbox.announce(f"c2/{KEY}")
            own = f"/proc/{os.getpid()}/ns/uts"
            await sandbox.create(sandbox.joining(joins={"uts": own}))
            assert sandbox.guest.asked("create")[-1]["joins"] == {"uts": "c1"}

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
def test_end_of_a_vm_is_reported_with_its_last_console_lines(
    reason: VmError, console: str, sentence: str, evidence: str
) -> None:
    told = with_console_tail(reason, console)
    assert (told.sentence(), told.evidence) == (sentence, evidence)
