"""Calls for the VM: its identity, the shared directory, huge pages, memory and network."""

from __future__ import annotations

import errno
import gc
import os
import time

from hawse.agent.calls.guest import Guest
from hawse.agent.devices import hardware
from hawse.agent.machine import boot, hugepages, identity, network
from hawse.agent.machine.autoload import Autoload
from hawse.agent.machine.boot import SHARE_MODULES, VFIO_MODULES
from hawse.agent.mounts import submounts
from hawse.agent.system import trace
from hawse.errors import VmError
from hawse.linux import mounts

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable

    from hawse.json_text import Document

#: cache=mmap lets programs map files shared and writable. msize is the largest size that QEMU's ring accepts. Linux 6.1
#: ignores directio; since 6.8, without directio the page cache returns zeros for bytes that the host appended to a file
#: after the guest had read its size (zero_point, fs/netfs/buffered_read.c). access=user reports the user who creates a
#: file to the host, which makes that user the file's owner.
_9P_OPTIONS = "trans=virtio,version=9p2000.L,cache=mmap,directio,access=user,msize=512000"


class MachineCalls:
    """Carries out the calls for the VM.

    ``prepare_crun`` waits until the prepared crun can be saved (:meth:`ContainerCalls.prepare_template`).
    """

    def __init__(self, guest: Guest, prepare_crun: Callable[[], None]) -> None:
        self._guest = guest
        self._prepare_crun = prepare_crun

    def wake(self, *, seed: str, time_ns: int) -> dict[str, int]:
        """Apply the host's random seed and time. Returns the guest's clock."""
        return identity.wake(seed=seed, time_ns=time_ns)

    def prepare_template(self) -> None:
        """Load everything that a container may need, and collect garbage, before the VM is saved as a template."""
        for names in (*SHARE_MODULES.values(), VFIO_MODULES, network.MODULES):
            self._guest.load(names)
        self._prepare_crun()
        self._guest.crun(self._guest.run).exec_lacks_setsid()
        gc.collect()
        os.sync()
        trace.clear()

    def trace(self) -> list[dict[str, object]]:
        """The steps of the agent so far."""
        return trace.steps()

    def mount_share(
        self,
        *,
        kind: str,
        tag: str,
        address: str,
        seconds: float,
        protected: dict[str, str],
        modules: str,
        load: list[str],
    ) -> None:
        """Wait for the share's device, and mount the shared directory. ``kind`` is "virtiofs" or "9p".

        ``protected`` are the host's sysctls fs.protected_*, which the guest kernel then applies to shared files.
        ``modules`` is a directory of the share with modules for the guest kernel; those named in ``load`` are loaded
        now.
        """
        guest = self._guest
        guest.share_kind = kind
        deadline = time.monotonic() + seconds
        for name, value in protected.items():
            boot.write(f"{guest.root}/proc/sys/fs/protected_{name}", value)
        with trace.span("share's modules loaded"):
            guest.load(SHARE_MODULES[kind])
        with trace.span("share's device ready"):
            hardware.bind_virtio(guest.uevents, address, seconds=seconds, root=guest.root)
        os.makedirs(guest.share, exist_ok=True)
        with trace.span("share mounted"):
            self._mount(kind, tag, deadline)
        if modules:
            with trace.span("modules offered to the kernel"):
                guest.autoload = Autoload(f"{guest.share}/{modules}", run=guest.run, root=guest.root)
                guest.autoload.require(load)

    def _mount(self, kind: str, tag: str, deadline: float) -> None:
        """Mount the share; retry until the deadline, because the tag is unknown until the driver's probe has finished.

        The driver link appears earlier, at the start of the probe.
        """
        guest, options = self._guest, _9P_OPTIONS if kind == "9p" else ""

        def try_mount() -> bool:
            try:
                guest.mount(tag, guest.share, kind, 0, options)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOENT) or time.monotonic() >= deadline:
                    raise VmError(f"the guest cannot mount the {kind} share {tag}: {error.strerror}") from None
                return False
            return True

        while not guest.uevents.wait_until(try_mount, deadline=deadline):
            continue

    def automount(self, *, paths: list[str]) -> None:
        """Open directories of the share, so that the kernel mounts the file systems at these directories."""
        submounts.trigger(self._guest.share, paths)

    def unmount(self, *, paths: list[str]) -> None:
        """Unmount all file systems at and below directories of the share."""
        for path in paths:
            submounts.release(f"{self._guest.share}/{path}", mountinfo=self._guest.mountinfo)
        self._guest.drop_inodes()

    def configure_network(self, *, interfaces: list[Document], seconds: float) -> None:
        """Configure interfaces like the host's."""
        self._guest.load(network.MODULES)
        network.configure(self._guest.uevents, interfaces, seconds=seconds, root=self._guest.root)

    def set_sysctls(self, *, values: dict[str, str]) -> None:
        """Set network sysctls."""
        network.set_sysctls(values, root=self._guest.root)

    def reserve_hugepages(self, *, kib: int, count: int) -> None:
        """Reserve huge pages, or release them."""
        hugepages.reserve(kib=kib, count=count, directory=self._guest.root + hugepages.SYSFS)

    def share_hugepages(self, *, name: str, kib: int, mode: int, uid: int, gid: int) -> None:
        """Mount a hugetlbfs, which containers then bind."""
        hugepages.share(name=name, kib=kib, mode=mode, uid=uid, gid=gid, run=self._guest.run)

    def share_memory(self, *, name: str, size: int) -> None:
        """Mount a tmpfs of ``size`` bytes, which containers then bind."""
        target = f"{self._guest.run}/shm/{name}"
        try:
            os.makedirs(target)
        except FileExistsError:
            return
        flags = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC
        mounts.mount("shm", target, "tmpfs", flags, f"mode=1777,size={size}")
