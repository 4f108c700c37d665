"""A process that enters QEMU's jail, and the files, calls and processes that it can still reach."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import DeviceError, HostError
from hawse.jail import before_exec
from hawse.jail.root_directory import Root
from hawse.linux import libc, mounts, processes
from hawse.linux.process_capabilities import keep_only
from hawse.linux.processes import ChildrenApart
from hawse.monitor.privileges import KEPT
from tests.support.forked import in_child, outcome
from tests.support.mount_table import mounts_of
from tests.support.processes import all_pids
from tests.support.sysfs import FakeSysfs

USER = 2130706440
ADDRESS, OTHER = "0000:3b:00.0", "0000:3b:00.1"


@pytest.fixture
def jail(tmp_path: Path) -> Path:
    """A directory with the files of a jail, and the files that are mounted on some of them."""
    tree = tmp_path / "tree"
    for name in ("dev", "proc", "sys", "boot", "usr/bin"):
        (tree / name).mkdir(parents=True)
    for name in ("boot/kernel", "boot/initrd"):
        (tree / name).touch()
    (tree / "usr/bin/qemu").write_text("QEMU")
    (tmp_path / "vmlinux").write_text("kernel")
    (tmp_path / "initrd.cpio").write_text("initrd")
    return tmp_path


def root_of(tmp_path: Path, host: str = "") -> Root:
    return Root(
        f"{tmp_path}/jail", tree=f"{tmp_path}/tree", kernel=f"{tmp_path}/vmlinux", initrd=f"{tmp_path}/initrd.cpio",
        user=USER, root=host,
    )  # fmt: skip


def confined(
    tmp_path: Path,
    act: Callable[[], Any],
    *,
    host: str = "",
    prepare: Callable[[Root], object] = id,
    file_bytes: int = 0,
) -> Any:
    """Call ``act`` in a confined process and return its value."""

    def monitor() -> Any:
        mounts.unshare(mounts.SLAVE)
        root = root_of(tmp_path, host)
        prepare(root)
        parent = os.pidfd_open(os.getpid())

        def qemu() -> Any:
            before_exec.enter(
                root.directory, user=USER, limits=before_exec.Limits(file_bytes=file_bytes), parent=parent
            )
            return act()

        with ChildrenApart():
            return in_child(qemu)

    return in_child(monitor)


def test_confined_process_is_another_user_without_privileges(jail: Path) -> None:
    def look() -> Any:
        status = Path("/proc/self/status").read_text()
        return {key: value.split() for key, value in re.findall(r"(\w+):\t(.*)", status)}

    results = confined(jail, look)
    assert results["Uid"] == results["Gid"] == [str(USER)] * 4
    assert results["Groups"] == []
    assert {results[f"Cap{kind}"][0] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (results["NoNewPrivs"], results["Seccomp"]) == (["1"], ["2"])
    assert results["Pid"] == ["1"]


def test_confined_process_reaches_only_the_trees_files(jail: Path) -> None:
    def look() -> Any:
        files = {
            f"{directory}/{name}".replace("//", "/")
            for directory, _, names in os.walk("/") if not directory.startswith("/proc") for name in names
        }  # fmt: skip
        interfaces = [line.split(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]]
        points = sorted(mount.point for mount in mounts_of())
        return sorted(files), interfaces, all_pids(), points, Path("/boot/kernel").read_text()

    files, interfaces, processes, points, kernel = confined(jail, look)
    assert files == ["/boot/initrd", "/boot/kernel", "/dev/null", "/usr/bin/qemu"]
    assert interfaces == ["lo"]
    assert processes == [1]
    assert points == ["/", "/boot/initrd", "/boot/kernel", "/dev", "/proc", "/sys"]
    assert kernel == "kernel"


def test_confined_process_cannot_change_anything(jail: Path) -> None:
    def attempt() -> Any:
        acts: dict[str, Callable[[], object]] = {
            "write to its program": lambda: os.open("/usr/bin/qemu", os.O_WRONLY),
            "write to the kernel": lambda: os.open("/boot/kernel", os.O_WRONLY),
            "write to /dev": lambda: os.open("/dev/new", os.O_CREAT | os.O_WRONLY),
            "write to /sys": lambda: os.open("/sys/new", os.O_CREAT | os.O_WRONLY),
            "make a directory": lambda: os.mkdir("/new"),
            "be root": lambda: os.setresuid(0, 0, 0),
            "leave the root": lambda: os.chroot("/usr"),
            "fork": os.fork,
            "reach the network": lambda: socket.socket(socket.AF_INET),
            "trace": lambda: libc.check(libc.libc.ptrace(0, 0, 0, 0), ""),
            "create namespaces": lambda: libc.check(libc.libc.unshare(0x10000000), ""),
            "mount": lambda: mounts.mount("none", "/sys", "tmpfs", 0),
            "make a node": lambda: os.mknod("/dev/mem", 0o600 | 0o020000, os.makedev(1, 1)),
            "open /dev/null": lambda: os.open("/dev/null", os.O_RDWR),
        }
        return {name: outcome(act) for name, act in acts.items()}

    results = confined(jail, attempt)
    assert results.pop("open /dev/null") == "done"
    assert [name for name, what in results.items() if what == "done"] == []


def test_confined_process_has_resource_limits(jail: Path) -> None:
    def look() -> Any:
        lines = Path("/proc/self/limits").read_text().splitlines()[1:]
        return {line[:25].strip(): line[25:].split()[:2] for line in lines}

    results = confined(jail, look)
    assert results["Max core file size"] == results["Max file size"] == ["0", "0"]
    assert int(results["Max open files"][1]) <= 8192
    assert results["Max processes"] == ["1024", "1024"]
    results = confined(jail, look, file_bytes=7)
    assert results["Max file size"] == ["7", "7"], "for the disks of emulated devices"


def test_confined_process_dies_with_its_parent(jail: Path) -> None:
    """It dies also if the parent has died before the child requests the signal."""
    reading, writing = os.pipe()
    monitor = os.fork()
    if monitor == 0:
        try:
            mounts.unshare(mounts.SLAVE)
            root = root_of(jail)
            parent = os.pidfd_open(os.getpid())
            with ChildrenApart():
                if os.fork() == 0:
                    before_exec.enter(root.directory, user=USER, limits=before_exec.Limits(), parent=parent)
                    os.write(writing, b"confined")
                    while True:
                        signal.sigwait({signal.SIGUSR1})
            os.close(writing)
            while True:
                signal.sigwait({signal.SIGUSR1})
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 65536).decode() == "confined"
    os.kill(monitor, signal.SIGKILL)
    os.waitpid(monitor, 0)
    assert os.read(reading, 64) == b"", "the child has ended"
    os.close(reading)
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    descriptor = os.pidfd_open(gone)
    os.waitpid(gone, 0)
    assert "No such process" in in_child(lambda: outcome(lambda: processes.die_with(descriptor)))
    os.close(descriptor)


def test_failed_step_is_named_in_the_error(tmp_path: Path) -> None:
    def attempt() -> str:
        with pytest.raises(before_exec.Failure) as caught:
            before_exec.enter(f"{tmp_path}/none", user=USER, limits=before_exec.Limits(), parent=0)
        return str(caught.value.strerror)

    assert in_child(attempt) == "cannot change the root directory: No such file or directory"


def host_with_devices(tmp_path: Path) -> str:
    host = FakeSysfs(str(tmp_path / "host"))
    for index, address in enumerate((ADDRESS, OTHER)):
        host.function(address, group=12)
        host.device_file(address, index, 244, index)
    host.node(12, 245, 7)
    return host.root


def test_group_node_stays_until_the_last_device_of_the_group_is_dismissed(jail: Path) -> None:
    host = host_with_devices(jail)

    def monitor() -> Any:
        mounts.unshare(mounts.SLAVE)
        root = root_of(jail, host)
        keep_only(KEPT)  # as in the monitor that plugs devices later

        def nodes() -> list[Any]:
            listings = []
            for directory, _, names in os.walk(f"{root.directory}/dev"):
                for name in names:
                    status = os.stat(f"{directory}/{name}")
                    numbers = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
                    listings.append([name, numbers, oct(status.st_mode & 0o777), status.st_uid])
            return sorted(listings)

        seen = [nodes()]
        for address in (ADDRESS, OTHER):
            root.admit(address, by_file=False)
            seen.append(nodes())
        group = os.readlink(f"{root.directory}/sys/bus/pci/devices/{ADDRESS}/iommu_group")
        for address in (ADDRESS, OTHER):
            root.dismiss(address)
            seen.append(nodes())
        root.admit(ADDRESS, by_file=True)
        seen.append(nodes())
        numbers = Path(f"{root.directory}/sys/bus/pci/devices/{ADDRESS}/vfio-dev/vfio0/dev").read_text()
        root.dismiss(ADDRESS)
        root.dismiss(ADDRESS)
        root.admit_kvm()
        root.admit_kvm()
        seen.append(nodes())
        root.dismiss_kvm()
        root.dismiss_kvm()
        return seen, group, numbers

    seen, group, numbers = in_child(monitor)
    null = ["null", "1:3", "0o666", 0]
    both = [["12", "245:7", "0o600", USER], null, ["vfio", "10:196", "0o600", USER]]
    files = [["iommu", "10:126", "0o600", USER], null, ["vfio0", "244:0", "0o600", USER]]
    assert seen == [[null], both, both, both, [null], files, [["kvm", "10:232", "0o600", USER], null]]
    assert os.path.basename(group) == "12"
    assert numbers == "244:0\n"


@pytest.mark.parametrize("by_file", [False, True])
def test_reused_address_has_no_entries_of_the_former_device(jail: Path, by_file: bool) -> None:
    """A virtual function that was removed and created again has another group, and another device file."""
    host = FakeSysfs(str(jail / "host"))
    host.function(ADDRESS, group=12)
    host.device_file(ADDRESS, 0, 244, 0)
    host.node(12, 245, 7)
    host.node(25, 245, 8)

    def monitor() -> Any:
        mounts.unshare(mounts.SLAVE)
        root = root_of(jail, host.root)
        root.admit(ADDRESS, by_file=by_file)
        root.dismiss(ADDRESS)
        device = f"{host.root}/sys/bus/pci/devices/{ADDRESS}"
        os.unlink(f"{device}/iommu_group")
        os.symlink("../../../../kernel/iommu_groups/25", f"{device}/iommu_group")
        shutil.rmtree(f"{device}/vfio-dev")
        host.device_file(ADDRESS, 3, 244, 3)
        root.admit(ADDRESS, by_file=by_file)
        own = f"{root.directory}/sys/bus/pci/devices/{ADDRESS}"
        files = os.listdir(f"{own}/vfio-dev") if by_file else []
        return os.path.basename(os.readlink(f"{own}/iommu_group")), files

    assert in_child(monitor) == ["25", ["vfio3"] if by_file else []]


@pytest.mark.parametrize(
    ("by_file", "words"), [(False, "group 12 no longer has a device node"), (True, "no longer has a device file")]
)
def test_device_without_a_vfio_node_is_refused(jail: Path, by_file: bool, words: str) -> None:
    host = FakeSysfs(str(jail / "host"))
    host.function(ADDRESS, group=12, driver="e1000e")

    def monitor() -> str:
        mounts.unshare(mounts.SLAVE)
        with pytest.raises(DeviceError) as caught:
            root_of(jail, host.root).admit(ADDRESS, by_file=by_file)
        return caught.value.message

    assert words in in_child(monitor)


def test_missing_tree_is_named_in_the_error(tmp_path: Path) -> None:
    def monitor() -> str:
        mounts.unshare(mounts.SLAVE)
        with pytest.raises(HostError) as caught:
            root_of(tmp_path)
        return caught.value.message

    assert f"cannot mount QEMU's root at {tmp_path}/jail: No such file or directory" in in_child(monitor)
