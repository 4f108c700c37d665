"""The root directory of one confined QEMU: mounts in the monitor's mount namespace, which end with it.

It contains the tree of QEMU's files and the guest's kernel and initrd, all read-only, and ``/dev`` and ``/sys`` with a
few entries each. The monitor keeps file descriptors of these two directories and changes their entries. QEMU, which is
not root, can only use them.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress

from hawse.errors import DeviceError, HostError
from hawse.linux import mounts
from hawse.vfio import sysfs

#: The paths of the guest's kernel and initrd: empty files of the tree, on which the image's files are mounted.
KERNEL, INITRD = "/boot/kernel", "/boot/initrd"
_DEV, _SYS = "size=64k,nr_inodes=256,mode=755", "size=64k,nr_inodes=1024,mode=755"
_READONLY = mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV
_TMPFS = mounts.NOSUID | mounts.NOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Numbers of nodes (Linux Documentation/admin-guide/devices.txt; include/linux/miscdevice.h, VFIO_MINOR).
_NULL, _KVM, _VFIO = (1, 3), (10, 232), (10, 196)


class Root:
    """The mounts at ``directory``, for a QEMU that runs as ``user``."""

    def __init__(self, directory: str, *, tree: str, kernel: str, initrd: str, user: int, root: str = "") -> None:
        """Mount it. Raises :class:`HostError`. The host's sysfs is read below ``root``."""
        self.directory = directory
        self._user = user
        self._root = root
        #: The device nodes that each function needs, by its address; functions of a group share the group's node.
        self._needs: dict[str, set[str]] = {}
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            mounts.bind(tree, directory, _READONLY)
            for source, target in ((kernel, KERNEL), (initrd, INITRD)):
                mounts.bind(source, directory + target, _READONLY | mounts.ATTR_NOEXEC)
            mounts.mount("hawse", f"{directory}/dev", "tmpfs", _TMPFS, _DEV)
            mounts.mount("hawse", f"{directory}/sys", "tmpfs", _TMPFS | mounts.NODEV, _SYS)
            self._dev = os.open(f"{directory}/dev", _DIRECTORY)
            self._sys = os.open(f"{directory}/sys", _DIRECTORY)
            self._node("null", _NULL, user=0, mode=0o666)
        except OSError as error:
            raise HostError(
                f"cannot mount QEMU's root at {directory}: {error.strerror}: {error.filename}",
                hint="hawse needs Linux 5.12 or newer, with CAP_SYS_ADMIN and CAP_MKNOD; or set vm.confine to off",
            ) from None

    def admit_kvm(self) -> None:
        """Let QEMU open /dev/kvm. Raises :class:`HostError`."""
        try:
            with suppress(FileExistsError):  # from a restore that failed; now the VM boots
                self._node("kvm", _KVM)
        except OSError as error:
            raise HostError(f"cannot create /dev/kvm for QEMU: {error.strerror}") from None

    def dismiss_kvm(self) -> None:
        """Remove /dev/kvm: QEMU has opened it."""
        with suppress(FileNotFoundError):
            os.unlink("kvm", dir_fd=self._dev)

    def admit(self, address: str, *, by_file: bool) -> None:
        """Let QEMU open the VFIO nodes of a function of the host: its group's, or with ``by_file`` its device file.

        From sysfs QEMU reads only the function's group, or the numbers of its device file (QEMU hw/vfio/pci.c,
        vfio_realize(); hw/vfio/iommufd.c, iommufd_cdev_getfd()). Raises :class:`DeviceError`.
        """
        device = f"bus/pci/devices/{address}"
        self.dismiss(address)
        try:
            os.makedirs(f"{self.directory}/sys/{device}", mode=0o755, exist_ok=True)
            group = sysfs.iommu_group(address, root=self._root)
            if group is None:
                raise DeviceError(f"{address} is no longer in an IOMMU group")
            os.symlink(f"../../../../kernel/iommu_groups/{group}", f"{device}/iommu_group", dir_fd=self._sys)
            nodes = self._file_nodes(address) if by_file else self._group_nodes(group)
            self._needs[address] = set(nodes)
            for path, numbers in nodes.items():
                with suppress(FileExistsError):
                    self._node(path, numbers)
            if by_file:
                self._describe_file(device, nodes)
        except OSError as error:
            raise DeviceError(
                f"{address}: cannot create its device nodes for QEMU: {error.strerror}: {error.filename}"
            ) from None

    def dismiss(self, address: str) -> None:
        """Remove the nodes that no other function needs. Descriptors that QEMU has opened stay open."""
        # The address may be used again by another device, in another group.
        shutil.rmtree(f"{self.directory}/sys/bus/pci/devices/{address}", ignore_errors=True)
        nodes = self._needs.pop(address, set())
        for path in nodes.difference(*self._needs.values()):
            with suppress(FileNotFoundError):
                os.unlink(path, dir_fd=self._dev)

    def _group_nodes(self, group: int) -> dict[str, tuple[int, int]]:
        numbers = sysfs.group_numbers(group, root=self._root)
        if numbers is None:
            raise DeviceError(f"group {group} no longer has a device node: none of its functions has a VFIO driver")
        return {"vfio/vfio": _VFIO, f"vfio/{group}": numbers}

    def _file_nodes(self, address: str) -> dict[str, tuple[int, int]]:
        file, iommu = sysfs.device_file(address, root=self._root), sysfs.iommu_numbers(root=self._root)
        if file is None or iommu is None:
            raise DeviceError(f"{address} no longer has a device file: it is not bound to a VFIO driver")
        return {"iommu": iommu, f"vfio/devices/vfio{file[0]}": (file[1], file[2])}

    def _describe_file(self, device: str, nodes: dict[str, tuple[int, int]]) -> None:
        for path, (major, minor) in nodes.items():
            name = os.path.basename(path)
            if name == "iommu":
                continue
            os.makedirs(f"{self.directory}/sys/{device}/vfio-dev/{name}", mode=0o755, exist_ok=True)
            with open(f"{self.directory}/sys/{device}/vfio-dev/{name}/dev", "w") as file:
                file.write(f"{major}:{minor}\n")

    def _node(self, path: str, numbers: tuple[int, int], *, user: int | None = None, mode: int = 0o600) -> None:
        """Create a character device below /dev, and the directories of its path."""
        owner = self._user if user is None else user
        for parent in _parents(path):
            with suppress(FileExistsError):
                os.mkdir(parent, 0o755, dir_fd=self._dev)
        os.mknod(path, stat.S_IFCHR | mode, os.makedev(*numbers), dir_fd=self._dev)
        # chmod(2) comes after mknod(2), which applies the umask, and before chown(2), after which it needs CAP_FOWNER.
        os.chmod(path, mode, dir_fd=self._dev)
        os.chown(path, owner, owner, dir_fd=self._dev, follow_symlinks=False)


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: index + 1]) for index in range(len(parts))]
