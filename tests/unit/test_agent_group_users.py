"""Processes that use a VFIO group of the guest are found, named, and killed on request."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hawse.agent.devices.hardware import end_users, open_once
from hawse.errors import DeviceError
from tests.support.guest_kernel import FakeUevents
from tests.support.patience import patience
from tests.support.sysfs import FakeSysfs

ADDRESS = "0000:01:00.0"
GROUP, FILE, OTHER = os.makedev(1, 7), os.makedev(1, 5), os.makedev(1, 3)


class Guest(FakeSysfs):
    """Group 6 with one function and its device file. The nodes are those of harmless devices."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.function(ADDRESS, group=6)
        self.device_file(ADDRESS, 0, 244, 0)
        os.unlink(f"{root}/dev/vfio/devices/vfio0")
        for path, device in (("dev/vfio/6", GROUP), ("dev/vfio/devices/vfio0", FILE), ("dev/null", OTHER)):
            os.mknod(f"{root}/{path}", stat.S_IFCHR | 0o600, device)
        self.write("dev/file", "")
        os.mknod(f"{root}/dev/disk", stat.S_IFBLK | 0o600, GROUP)
        self.write("proc/uptime", "")
        self.programs: list[subprocess.Popen[bytes]] = []
        self.open(os.getpid(), "dev/vfio/6", words=b"the agent")

    def open(self, pid: int, *paths: str, words: bytes = b"/bin/dpdk\0-l\0001\0") -> None:
        """Add a process to the fake /proc that has opened these files."""
        for number, path in enumerate(paths):
            self.link(f"proc/{pid}/fd/{number}", f"{self.root}/{path}")
        Path(self.root, f"proc/{pid}/cmdline").write_bytes(words)

    def run(self, *paths: str) -> subprocess.Popen[bytes]:
        """A program that has opened these files."""
        program = subprocess.Popen(["sleep", "1000"])
        self.programs.append(program)
        self.open(program.pid, *paths)
        return program

    def claim(self, path: str) -> None:
        """Open the node as VFIO does: only if no other running program has it open (drivers/vfio/group.c)."""
        assert path == f"{self.root}/dev/vfio/6"
        for program in self.programs:
            held = [os.readlink(entry.path) for entry in os.scandir(f"{self.root}/proc/{program.pid}/fd")]
            if path in held and program.poll() is None:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def forget_the_dead(self) -> None:
        """Remove programs that have ended from the fake /proc."""
        for program in self.programs:
            if program.wait(patience(3)) is not None:
                os.rename(f"{self.root}/proc/{program.pid}", f"{self.root}/gone-{program.pid}")
        self.programs = []


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(str(tmp_path))
    yield guest
    for program in guest.programs:
        program.kill()
        program.wait()


def end(guest: Guest, *, force: bool = False, uevents: FakeUevents | None = None) -> None:
    end_users(uevents or FakeUevents(), 6, force=force, seconds=9, root=guest.root, try_open=guest.claim)


@pytest.mark.parametrize("node", ["dev/vfio/6", "dev/vfio/devices/vfio0"])
def test_group_in_use_is_refused_with_the_name_of_its_user(guest: Guest, node: str) -> None:
    """A bound device file keeps its device open, though the group itself can be opened."""
    guest.run("dev/file", "dev/null", "dev/disk")
    program = guest.run("dev/file", node)
    with pytest.raises(DeviceError) as caught:
        end(guest)
    assert caught.value.message == (
        f"group 6 of the guest is in use: '/bin/dpdk -l 1' (process {program.pid} of the guest) has it open"
    )
    assert program.poll() is None


def test_user_that_is_not_found_is_called_a_process(guest: Guest) -> None:
    program = guest.run("dev/vfio/6")
    os.unlink(f"{guest.root}/proc/{program.pid}/cmdline")
    with pytest.raises(DeviceError, match=r"^group 6 of the guest is in use: a process has it open"):
        end(guest)


def test_users_are_killed_on_request_and_other_processes_are_not(guest: Guest) -> None:
    bystander = guest.run("dev/null", "dev/file", "dev/disk")
    guest.programs.remove(bystander)
    with ExitStack() as stack:
        stack.callback(bystander.wait)
        stack.callback(bystander.kill)
        users = [guest.run("dev/vfio/6"), guest.run("dev/vfio/devices/vfio0")]
        end(guest, force=True, uevents=FakeUevents(guest.forget_the_dead))
        assert [user.returncode for user in users] == [-9, -9]
        assert bystander.poll() is None


def test_users_that_do_not_end_are_an_error(guest: Guest) -> None:
    guest.run("dev/vfio/devices/vfio0")
    with pytest.raises(DeviceError, match=r"^group 6 of the guest is still in use 9 s after its users were killed"):
        end(guest, force=True)


def test_group_without_users_is_free(guest: Guest) -> None:
    guest.run("dev/null", "dev/file", "dev/disk")
    end(guest)


def test_removed_group_is_free(guest: Guest) -> None:
    end_users(FakeUevents(), 7, force=False, seconds=9, root=guest.root)


def test_node_is_opened_for_reading_and_writing_and_closed(guest: Guest) -> None:
    before = os.listdir("/proc/self/fd")
    open_once(f"{guest.root}/dev/vfio/6")
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(IsADirectoryError):
        open_once(f"{guest.root}/dev")
    os.mkdir(f"{guest.root}/dev/vfio/8")
    with pytest.raises(DeviceError, match="dev/vfio/8 in the guest: Is a directory"):
        end_users(FakeUevents(), 8, force=True, seconds=9, root=guest.root)
