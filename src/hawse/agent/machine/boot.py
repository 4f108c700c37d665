"""Steps of PID 1 before the link exists: mount file systems, load the link's driver, open the link's port."""

from __future__ import annotations

import os
import resource
import time

from hawse.errors import VmError
from hawse.link.agreed import PORT_NAME
from hawse.linux import mounts

#: The maximum number of open files that the kernel accepts (fs/file.c, sysctl_nr_open_max, on 64 bits).
MOST_FILES = (2**31 - 1) & -64
_RLIMITS = 16  # include/uapi/asm-generic/resource.h, RLIM_NLIMITS
_VIRTIO = "0x1af4"
LINK_MODULES = ("virtio_pci", "virtio_console")
#: Modules that load in the background; the agent waits for them before they are needed.
SHARE_MODULES = {"virtiofs": ("virtiofs",), "9p": ("9p", "9pnet_virtio")}
DISK_MODULES = ("virtio_blk",)
VFIO_MODULES = ("vfio_pci", "vfio_iommu_type1", "virtio_rng")


def prepare_root() -> None:
    """Mount the usual file systems of Linux.

    First, the initial ramfs is bound and moved to the root. crun needs pivot_root(2), which cannot replace the rootfs
    into which the kernel unpacked the archive: that mount has no parent (fs/namespace.c).
    """
    mounts.mount("/", "/mnt", "", mounts.BIND)
    os.chdir("/mnt")
    mounts.mount(".", "/", "", mounts.MOVE)
    os.chroot(".")
    os.chdir("/")
    strict = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC
    mounts.mount("proc", "/proc", "proc", strict)
    mounts.mount("sysfs", "/sys", "sysfs", strict)
    mounts.mount("devtmpfs", "/dev", "devtmpfs", mounts.NOSUID)
    os.makedirs("/dev/pts", exist_ok=True)
    os.makedirs("/dev/shm", exist_ok=True)
    mounts.mount("devpts", "/dev/pts", "devpts", mounts.NOSUID | mounts.NOEXEC, "gid=5,mode=620,ptmxmode=666")
    mounts.mount("tmpfs", "/dev/shm", "tmpfs", mounts.NOSUID | mounts.NODEV)
    mounts.mount("tmpfs", "/run", "tmpfs", mounts.NOSUID | mounts.NODEV, "mode=755")
    mounts.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", strict)


def raise_limits(*, root: str = "") -> None:
    """Raise the guest's limits to the maximum, so that every limit that the host permits can be set in a container.

    Raising a hard limit needs CAP_SYS_RESOURCE in the initial user namespace (kernel/sys.c, do_prlimit()), which crun
    lacks in a container's user namespace. crun inherits these hard limits and lowers them. fs.nr_open limits the open
    files of a process, and fs.file-max those of all; systemd raises both on a host (src/core/main.c,
    bump_file_max_and_nr_open()). Soft limits stay.
    """
    write(f"{root}/proc/sys/fs/nr_open", str(MOST_FILES))
    write(f"{root}/proc/sys/fs/file-max", str(2**63 - 1))
    for number in range(_RLIMITS):
        most = MOST_FILES if number == resource.RLIMIT_NOFILE else resource.RLIM_INFINITY
        resource.setrlimit(number, (resource.getrlimit(number)[0], most))


def stop_autoprobe() -> None:
    """Turn off automatic probing of PCI devices: the agent decides which driver probes each device."""
    write("/sys/bus/pci/drivers_autoprobe", "0")


def open_link(*, root: str = "") -> int:
    """Open the virtio-serial port to the host. LINK_MODULES must be loaded. Raises :class:`VmError`."""
    probe_virtio(root=root)
    ports = f"{root}/sys/class/virtio-ports"
    # A control message of the device announces the port, some milliseconds after the probe of its driver. The node in
    # devtmpfs and the directory in sysfs are created at the same time.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for port in os.listdir(ports) if os.path.isdir(ports) else ():
            try:
                with open(f"{ports}/{port}/name") as file:
                    if file.read().strip() == PORT_NAME:
                        return os.open(f"{root}/dev/{port}", os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
        time.sleep(0.002)
    raise VmError(f"the virtio-serial port {PORT_NAME} did not appear within 30 s")


def probe_virtio(*, root: str = "") -> None:
    """Let virtio's PCI driver probe each virtio device without a driver. The virtio bus probes automatically."""
    for address in os.listdir(f"{root}/sys/bus/pci/devices"):
        device = f"{root}/sys/bus/pci/devices/{address}"
        with open(f"{device}/vendor") as file:
            if file.read().strip() == _VIRTIO and not os.path.exists(f"{device}/driver"):
                write(f"{root}/sys/bus/pci/drivers_probe", address)


def write(path: str, text: str) -> None:
    """Write a sysfs attribute."""
    with open(path, "w") as file:
        file.write(text)
