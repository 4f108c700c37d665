"""The programs of a VM: the descriptors that they inherit, and the clean-up when one cannot be started."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hawse.errors import HostError, VmError
from hawse.monitor.machine.start_programs import Copy, Saved, begin, launch
from hawse.notes import Notes
from hawse.plan.model import Template
from hawse.state.steps import Steps
from hawse.vm import ram_file
from tests.support.async_wait import until
from tests.support.fake_machine import SECONDS, FakeHost
from tests.support.monitor import runs
from tests.support.plans import machine_plan
from tests.support.processes import children

DAEMON = ["--fd={fd}", "--shared-dir={directory}"]


def run(directory: Path, story: Callable[[FakeHost, Steps], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with FakeHost(str(directory)) as host, asyncio.timeout(SECONDS):
            await story(host, Steps(f"{directory}/steps.json", []))

    before = descriptors()
    asyncio.run(whole())
    assert descriptors() == before, "a descriptor stays open"


def descriptors() -> int:
    """The number of descriptors of this process, without files of pytest."""
    return len(os.listdir("/proc/self/fd"))


def test_virtiofsd_is_connected_to_qemu(tmp_path: Path) -> None:
    async def story(host: FakeHost, steps: Steps) -> None:
        planned = machine_plan(qemu=host.qemu, share="virtiofs", virtiofsd=[host.virtiofsd, *DAEMON])
        launched = launch(planned, str(tmp_path), steps, share_plugged=False)
        with launched.undo:
            machine = await host.machine()
            await until(lambda: len(host.daemons) == 1)
            [daemon] = host.daemons
            assert daemon.argv[2] == f"--shared-dir={tmp_path}/share"
            [inherited] = [word for word in machine.argv if word.startswith("socket,id=share,fd=")]
            client = machine.program.fds[int(inherited.rpartition("=")[2])]
            os.write(client, b"hello")
            listener = daemon.fds[int(daemon.argv[1].removeprefix("--fd="))]
            with socket.socket(fileno=os.dup(listener)) as listening:
                listening.setblocking(True)
                with listening.accept()[0] as connection:
                    assert connection.recv(5) == b"hello"
            assert not os.path.exists(f"{tmp_path}/share.sock"), "the name is needed only for the connection"
            assert not launched.share_plugged
            assert {name for _, name, _, _ in steps.done} == {"process started", "virtiofsd started"}
        assert not runs(machine.program.pid)
        assert daemon.pid == 1, "in a private PID namespace"
        assert launched.virtiofsd is not None
        assert not runs(launched.virtiofsd.process.pid)

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("share", "asked", "plugged"), [("9p", False, True), ("9p", True, True), ("virtiofs", True, True)]
)
def test_9p_share_is_plugged_at_the_start(tmp_path: Path, share: str, asked: bool, plugged: bool) -> None:
    """QEMU cannot add a 9p directory to a running VM."""

    async def story(host: FakeHost, steps: Steps) -> None:
        planned = machine_plan(qemu=host.qemu, share=share, virtiofsd=[host.virtiofsd, *DAEMON])
        launched = launch(planned, str(tmp_path), steps, share_plugged=asked)
        with launched.undo:
            machine = await host.machine()
            assert launched.share_plugged is plugged
            assert (launched.virtiofsd is not None) is (share == "virtiofs")
            words = " ".join(machine.argv)
            assert ("vhost-user-fs-pci" in words, "virtio-9p-pci" in words) == (share == "virtiofs", share == "9p")

    run(tmp_path, story)


def test_virtiofsd_that_cannot_be_executed_ends_qemu(tmp_path: Path) -> None:
    async def story(host: FakeHost, steps: Steps) -> None:
        planned = machine_plan(qemu=host.qemu, share="virtiofs", virtiofsd=["/no/virtiofsd", *DAEMON])
        with pytest.raises(HostError, match="cannot run virtiofsd: /no/virtiofsd: No such file") as caught:
            launch(planned, str(tmp_path), steps, share_plugged=True)
        assert caught.value.hint == "install it, or set its path in the configuration"
        assert not [pid for pid in children(os.getpid()) if runs(pid)]

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("page_kib", "message"),
    [
        (0, "cannot allocate the virtual machine's memory: Invalid argument"),
        (2048, "cannot allocate the virtual machine's memory of huge pages of 2MB: Invalid argument"),
        (16 * 1024, "the virtual machine's memory takes 64 huge pages of 16MB, and 0 of this host's 0 are free"),
    ],
)
def test_memory_that_cannot_be_allocated_is_an_error(tmp_path: Path, page_kib: int, message: str) -> None:
    async def story(host: FakeHost, steps: Steps) -> None:
        planned = machine_plan(qemu=host.qemu, memory_mib=1024 if page_kib > 2048 else -1, page_kib=page_kib)
        with pytest.raises(HostError, match=message):
            launch(planned, str(tmp_path), steps, share_plugged=True)
        assert host.machines == []

    run(tmp_path, story)


def test_qemu_has_the_label_of_the_plan(tmp_path: Path) -> None:
    attribute = tmp_path / "exec"

    async def story(host: FakeHost, steps: Steps) -> None:
        planned = machine_plan(qemu="/no/qemu", label="system_u:system_r:container_kvm_t:s0")
        with pytest.raises(HostError, match=r"process\.selinuxLabel: system_u:system_r:container_kvm_t:s0: cannot run"):
            launch(planned, str(tmp_path), steps, share_plugged=True, attribute=str(attribute))
        assert (host.machines, attribute.read_bytes()) == ([], b""), "it is restored"

    attribute.touch()
    run(tmp_path, story)


def leave_files(cache: Path, *, ram: bytes, state: bytes) -> None:
    """Create the two files of a template."""
    place = cache / "templates" / "d"
    place.mkdir(parents=True)
    fd = ram_file.make(ram_file.MIB)
    os.pwrite(fd, ram, 4096)
    with open(place / "memory", "w+b") as file:
        ram_file.save(fd, file.fileno())
    os.close(fd)
    (place / "state").write_bytes(state)


def template_of(cache: Path, *, usable: bool = True) -> Template:
    return Template(cache=str(cache), digest="d", usable=usable)


def test_usable_template_is_copied_into_the_memory_of_a_waiting_vm(tmp_path: Path) -> None:
    async def story(host: FakeHost, steps: Steps) -> None:
        state = b"CPUs" * ram_file.MIB
        leave_files(tmp_path / "cache", ram=b"a page", state=state)
        notes: Notes = []
        planned = machine_plan(qemu=host.qemu, template=template_of(tmp_path / "cache"))
        launched = begin(planned, str(tmp_path), steps, notes)
        with launched.undo:
            assert launched.saved is not None
            assert launched.copy is not None
            assert launched.saved.state == state
            await asyncio.to_thread(launched.copy.wait)
            machine = await host.machine()
            assert os.pread(machine.ram, 6, 4096) == b"a page"
            assert machine.argv[machine.argv.index("-incoming") + 1] == "defer"
            assert notes == []

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("usable", "words"), [(False, []), (True, ["cannot open the template d: No such file or directory: /"])]
)
def test_vm_without_a_usable_template_boots_without_its_share(tmp_path: Path, usable: bool, words: list[str]) -> None:
    """It becomes the template, which must have no directory of a container."""

    async def story(host: FakeHost, steps: Steps) -> None:
        notes: Notes = []
        planned = machine_plan(
            qemu=host.qemu, share="virtiofs", virtiofsd=[host.virtiofsd, *DAEMON],
            template=template_of(tmp_path / "cache", usable=usable),
        )  # fmt: skip
        launched = begin(planned, str(tmp_path), steps, notes)
        with launched.undo:
            machine = await host.machine()
            assert "-incoming" not in machine.argv
            assert (launched.saved, launched.copy, launched.share_plugged) == (None, None, False)
            assert [(level, text[: len(word)]) for (level, text), word in zip(notes, words, strict=True)] == [
                ("warning", word) for word in words
            ]

    run(tmp_path, story)


def test_vm_without_a_template_boots_with_its_share(tmp_path: Path) -> None:
    async def story(host: FakeHost, steps: Steps) -> None:
        planned = machine_plan(qemu=host.qemu, share="virtiofs", virtiofsd=[host.virtiofsd, *DAEMON])
        launched = begin(planned, str(tmp_path), steps, [])
        with launched.undo:
            assert launched.share_plugged
            assert await host.machine()

    run(tmp_path, story)


def test_template_is_closed_when_its_vm_cannot_be_started(tmp_path: Path) -> None:
    async def story(host: FakeHost, steps: Steps) -> None:
        leave_files(tmp_path / "cache", ram=b"x", state=b"CPUs")
        planned = machine_plan(qemu="/no/qemu", template=template_of(tmp_path / "cache"))
        with pytest.raises(HostError, match="cannot run QEMU"):
            begin(planned, str(tmp_path), steps, [])
        assert host.machines == []

    run(tmp_path, story)


def test_failed_copy_is_an_error_for_the_waiter(tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"short")
    source, target = os.open(tmp_path / "memory", os.O_RDONLY), ram_file.make(ram_file.MIB)
    copy = Copy(Saved(source, b""), target, Steps("/dev/null", []))
    with pytest.raises(VmError, match="cannot copy the template's memory: the template's memory is cut short"):
        copy.wait()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(source)
    os.close(target)
