"""A VM from its template, or by a boot that creates one. A defective template never fails a container.

Each VM is initialized first, by hawse.monitor.agent.identity.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hawse.commands.build_template import build
from hawse.errors import ConfigError, HostError, VmError
from hawse.monitor.machine.machine import Machine
from hawse.monitor.machine.restore import obtain
from hawse.monitor.machine.start_programs import begin
from hawse.notes import Notes
from hawse.plan import model as plan
from hawse.state.steps import Steps
from hawse.vm import ram_file
from hawse.vm import templates as template
from tests.support.async_wait import until
from tests.support.fake_machine import GUEST_NS, SECONDS, FakeHost, FakeMachine
from tests.support.monitor import runs
from tests.support.plans import machine_plan

DIGEST = "d" * 64
#: The status is queried after each boot: QEMU may have stopped the VM before QMP answered.
SAVING = [
    "query-status", "stop", "getfd", "migrate-set-capabilities", "migrate", "query-migrate", "query-migrate", "cont",
]  # fmt: skip
LOADING = [
    "migrate-set-capabilities", "getfd", "migrate-incoming", "query-status", "query-status", "query-status", "cont",
]  # fmt: skip


@dataclass
class Stage:
    """The directories and programs of VMs."""

    host: FakeHost
    directory: str
    notes: Notes
    steps: Steps

    @property
    def cache(self) -> str:
        return f"{self.directory}/cache"

    def plan(self, **changes: Any) -> plan.MachinePlan:
        """The plan of a VM with a template. Its share is virtiofs, which is plugged later."""
        usable = os.path.isdir(f"{self.cache}/templates/{DIGEST}")
        daemon = [self.host.virtiofsd, "--fd={fd}"]
        fields: dict[str, Any] = {
            "qemu": self.host.qemu, "share": "virtiofs", "virtiofsd": daemon,
            "template": plan.Template(cache=self.cache, digest=DIGEST, usable=usable),
        }  # fmt: skip
        return machine_plan(**fields | changes)

    @asynccontextmanager
    async def machine(self, **changes: Any) -> AsyncIterator[Machine]:
        """A VM that is obtained as by the monitor, with its share mounted; it ends with the block."""
        planned = self.plan(**changes)
        async with AsyncExitStack() as undo:
            launched = begin(planned, self.directory, self.steps, self.notes)
            machine = await obtain(planned, launched, self.directory, undo, self.steps, self.notes)
            await machine.shared
            yield machine

    def templates(self) -> list[str]:
        return [name for name, _ in template.list_all(self.cache)]


def run(directory: Path, story: Callable[[Stage], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with FakeHost(str(directory)) as host, asyncio.timeout(SECONDS):
            await story(Stage(host, str(directory), [], Steps(f"{directory}/steps.json", [])))
            for machine in host.machines:
                await until(lambda pid=machine.program.pid: not runs(pid))  # type: ignore[misc]

    asyncio.run(whole())


def methods(machine: FakeMachine) -> list[str]:
    return [name for name, _ in machine.calls]


def test_first_start_creates_a_template_that_the_second_restores(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        async with stage.machine():
            [booted] = stage.host.machines
            assert methods(booted) == ["wake", "prepare_template", "mount_share"]
            assert booted.executed() == [*SAVING, "device_add"], "the share is not part of the template"
            assert booted.running
        assert (stage.templates(), stage.notes) == ([DIGEST], [])
        stored = template.find(stage.cache, DIGEST)
        assert stored is not None
        assert Path(stored.state).read_bytes() == b"state of the CPUs"
        async with stage.machine() as machine:
            _, restored = stage.host.machines
            assert restored.incoming == b"state of the CPUs"
            assert restored.executed()[:7] == LOADING
            assert restored.executed()[7:] == ["device_add"]
            assert restored.asked("wake")[0]["seed"] != booted.asked("wake")[0]["seed"]
            assert methods(restored) == ["wake", "mount_share"]
            assert machine.ram != restored.ram
        assert (stage.templates(), stage.notes) == ([DIGEST], [])
        names = [name for _, name, _, _ in stage.steps.done]
        assert {"state saved", "memory saved", "copied", "state loaded", "plugged", "mounted"} <= set(names)

    run(tmp_path, story)


def test_template_has_the_memory_of_the_paused_vm(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        stage.host.held["prepare_template"] = asyncio.Event()

        async def write() -> None:
            machine = await stage.host.machine()
            await until(lambda: bool(machine.asked("prepare_template")))
            os.pwrite(machine.ram, b"what a kernel left", 8192)
            stage.host.held["prepare_template"].set()

        writing = asyncio.create_task(write())
        async with stage.machine():
            await writing
        async with stage.machine() as machine:
            assert os.pread(machine.ram, 18, 8192) == b"what a kernel left"

    run(tmp_path, story)


def test_vm_with_9p_has_its_share_from_the_start(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        for commands in (SAVING, LOADING):
            async with stage.machine(share="9p"):
                assert stage.host.machines[-1].executed() == commands
                assert stage.host.machines[-1].asked("mount_share")[0]["kind"] == "9p"

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("command", "stands"), [("stop", False), ("getfd", True), ("migrate-set-capabilities", True), ("migrate", True)]
)
def test_template_that_cannot_be_saved_is_a_warning_and_the_vm_continues(
    tmp_path: Path, command: str, stands: bool
) -> None:
    async def story(stage: Stage) -> None:
        stage.host.refused[command] = "no such thing"
        async with stage.machine():
            [machine] = stage.host.machines
            assert ("cont" in machine.executed()) is stands
            assert machine.running
        reason = f"cannot save a template for later starts: {command}: no such thing"
        assert stage.notes == [("warning", reason)]
        assert stage.templates() == []
        assert not [name for name in os.listdir(f"{stage.cache}/templates") if name.endswith(".new")]
        stage.host.refused.clear()
        async with stage.machine():
            pass
        assert stage.templates() == [DIGEST], "the next attempt is not blocked"

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("size", "migrations", "words"),
    [
        (64 * ram_file.MIB, ["completed"], ""),
        (64 * ram_file.MIB + 1, ["completed"], "the saved state has more than 67108864 bytes"),
        (1, ["active", "active", "failed"], "QEMU failed to save the VM's state"),
    ],
)
def test_only_a_complete_state_of_limited_size_is_kept(
    tmp_path: Path, size: int, migrations: list[str], words: str
) -> None:
    async def story(stage: Stage) -> None:
        stage.host.state, stage.host.migrations = bytes(size), migrations
        async with stage.machine():
            pass
        assert [text for _, text in stage.notes] == (
            [f"cannot save a template for later starts: {words}"] if words else []
        )
        assert stage.templates() == ([] if words else [DIGEST])

    run(tmp_path, story)


def test_second_vm_does_not_wait_for_the_template_of_the_first(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        draft = template.begin(stage.cache, DIGEST, stage.plan().shape)
        assert draft is not None
        async with stage.machine():
            assert "stop" not in stage.host.machines[0].executed()
        assert stage.notes == []
        draft.close()

    run(tmp_path, story)


def test_cache_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        os.makedirs(f"{stage.cache}/templates")
        os.chmod(f"{stage.cache}/templates", 0o777)
        async with stage.machine():
            assert methods(stage.host.machines[0]) == ["wake", "mount_share"]
        [(level, text)] = stage.notes
        assert (level, "others may write to" in text) == ("warning", True)

    run(tmp_path, story)


def test_cache_that_is_not_a_directory_is_a_warning(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        Path(stage.cache).touch()
        async with stage.machine():
            pass
        [(level, text)] = stage.notes
        assert level == "warning"
        assert text.startswith("cannot save a template for later starts: templates are not used: ")
        assert f"{stage.cache} is not a directory" in text

    run(tmp_path, story)


def test_read_only_cache_is_a_warning(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        os.makedirs(stage.cache)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,mode=700", "none", stage.cache], check=True)
        try:
            async with stage.machine():
                pass
        finally:
            subprocess.run(["umount", stage.cache], check=True)
        [(level, text)] = stage.notes
        assert level == "warning"
        reason = f"cannot create {stage.cache}/templates: Read-only file system"
        assert text.startswith(f"cannot save a template for later starts: {reason}")

    run(tmp_path, story)


@pytest.mark.parametrize("command", ["migrate-set-capabilities", "migrate-incoming", "cont"])
def test_template_that_qemu_refuses_is_removed_and_the_vm_boots(tmp_path: Path, command: str) -> None:
    async def story(stage: Stage) -> None:
        async with stage.machine():
            pass
        refused, stage.host.refused = stage.host.refused, {command: "not this one"}

        async def forgive() -> None:
            machine = await stage.host.machine(1)
            await until(lambda: command in machine.executed())
            stage.host.refused = refused

        forgiving = asyncio.create_task(forgive())
        async with stage.machine():
            await forgiving
            _, restored, booted = stage.host.machines
            assert ("-incoming" in restored.argv, "-incoming" in booted.argv) == (True, False)
            assert not runs(restored.program.pid), "the attempt is undone before the next"
        [(level, text)] = stage.notes
        assert level == "warning"
        assert (
            text == f"cannot restore the template {DIGEST[:12]}, and the virtual machine boots instead: "
            f"{command}: not this one"
        )
        assert stage.templates() == [DIGEST], "the boot has created a new template"

    run(tmp_path, story)


def test_error_explains_that_qemu_died_while_it_loaded_the_state(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        async with stage.machine():
            pass
        stage.host.held["migrate-incoming"] = asyncio.Event()

        async def die() -> None:
            machine = await stage.host.machine(1)
            await until(lambda: "migrate-incoming" in machine.executed())
            await machine.end(exit=1, stderr="qemu: load of migration failed\n")

        dying = asyncio.create_task(die())
        async with stage.machine():
            await dying
        [(_, text)] = stage.notes
        assert text.endswith(
            "the virtual machine boots instead: QEMU ended with exit code 1 [the end of its stderr follows]"
        )

    run(tmp_path, story)


def test_template_with_damaged_memory_is_not_loaded(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        async with stage.machine():
            pass
        os.truncate(f"{stage.cache}/templates/{DIGEST}/memory", 3)
        async with stage.machine():
            _, restored, _ = stage.host.machines
            assert restored.executed() == ["migrate-set-capabilities"], "it does not load the state"
        [(_, text)] = stage.notes
        assert text.endswith("cannot copy the template's memory: the template's memory is cut short")

    run(tmp_path, story)


def test_template_that_is_removed_meanwhile_is_not_an_error(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        async with stage.machine():
            pass
        stage.host.refused["migrate-incoming"] = "not this one"
        held = stage.host.held["migrate-incoming"] = asyncio.Event()

        async def remove() -> None:
            machine = await stage.host.machine(1)
            await until(lambda: "migrate-incoming" in machine.executed())
            shutil.rmtree(f"{stage.cache}/templates/{DIGEST}")
            held.set()

        removing = asyncio.create_task(remove())
        async with stage.machine():
            await removing
        assert len(stage.notes) == 1
        assert stage.templates() == [DIGEST]

    run(tmp_path, story)


def test_death_of_qemu_during_the_save_fails_the_start(tmp_path: Path) -> None:
    """No VM remains to continue with."""

    async def story(stage: Stage) -> None:
        stage.host.held["migrate"] = asyncio.Event()

        async def die() -> None:
            machine = await stage.host.machine()
            await until(lambda: "migrate" in machine.executed())
            await machine.end(exit=1, stderr="qemu: out of memory\n")

        dying = asyncio.create_task(die())
        with pytest.raises(VmError, match="QEMU ended with exit code 1") as caught:
            async with stage.machine():
                pass
        await dying
        assert caught.value.evidence == "qemu: out of memory"
        assert (stage.notes, stage.templates()) == ([], [])

    run(tmp_path, story)


@pytest.mark.parametrize("answer", [None, {}, {"monotonic_ns": -1}, {"monotonic_ns": 2**63}, {"monotonic_ns": True}])
def test_guest_without_a_valid_clock_is_refused(tmp_path: Path, answer: object) -> None:
    async def story(stage: Stage) -> None:
        stage.host.answers["wake"] = answer
        with pytest.raises(VmError, match=r"^the guest's answer to wake is unusable: "):
            async with stage.machine(template=None):
                pass

    run(tmp_path, story)


@pytest.mark.parametrize("clock", [0, GUEST_NS, 2**63 - 1])
def test_clock_of_the_guest_is_compared_with_that_of_the_host(tmp_path: Path, clock: int) -> None:
    async def story(stage: Stage) -> None:
        stage.host.answers["wake"] = {"monotonic_ns": clock}
        async with stage.machine(template=None) as machine:
            [(sent, received)] = [(began, ended) for _, name, began, ended in stage.steps.done if name == "woken"]
            assert sent <= machine.link.clock_offset + clock / 1e9 <= received
            assert machine.link.clock_offset + clock / 1e9 == pytest.approx((sent + received) / 2)
            [call] = stage.host.machines[0].asked("wake")
            assert len(bytes.fromhex(call["seed"])) == 64

    run(tmp_path, story)


def test_template_is_built_in_advance_and_only_once(tmp_path: Path) -> None:
    """`hawse template build`: the VM ends when its template exists."""
    plans: list[plan.MachinePlan] = []

    async def story(stage: Stage) -> None:
        plans.append(stage.plan())
        built, fresh, seconds = await asyncio.to_thread(build, stage.plan())
        assert (built.digest, fresh) == (DIGEST, True)
        assert 0 < seconds < 60
        assert methods(stage.host.machines[0]) == ["wake", "prepare_template"], "no share is mounted in it"
        again, fresh, _ = await asyncio.to_thread(build, stage.plan())
        assert (again, fresh, len(stage.host.machines)) == (built, False, 1)
        with pytest.raises(ConfigError, match="this VM cannot have a template"):
            build(stage.plan(template=None))
        shutil.rmtree(f"{stage.cache}/templates/{DIGEST}")
        with pytest.raises(VmError, match="the template was not saved"):
            build(
                msgspec.structs.replace(
                    stage.plan(), template=plan.Template(cache=stage.cache, digest=DIGEST, usable=True)
                )
            )

    run(tmp_path, story)


def test_template_that_another_process_builds_is_an_error(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        draft = template.begin(stage.cache, DIGEST, stage.plan().shape)
        assert draft is not None
        with pytest.raises(HostError, match="another process is building this template"):
            await asyncio.to_thread(build, stage.plan())
        draft.close()
        shutil.rmtree(stage.cache)
        Path(stage.cache).touch()
        with pytest.raises(HostError, match=r"templates are not used: .*/cache is not a directory"):
            await asyncio.to_thread(build, stage.plan())

    run(tmp_path, story)
