"""Calls about the VM: its identity, the shared directory, huge pages, memory and network."""

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

#: cache=mmap lets programs map files shared and writable; msize is the largest that QEMU's ring takes at once.
#: directio, which Linux 6.1 ignores: from 6.8 on, the page cache returns zeros for bytes that the host appended to a
#: file after the guest had read its size (zero_point, fs/netfs/buffered_read.c). access=user: the host learns who
#: creates a file, and gives it to that user.
_9P_OPTIONS = "trans=virtio,version=9p2000.L,cache=mmap,directio,access=user,msize=512000"


class MachineCalls:
    """``settle_crun`` waits until the crun that waits for the first container needs nothing more."""

    def __init__(self, guest: Guest, settle_crun: Callable[[], None]) -> None:
        self._guest = guest
        self._settle_crun = settle_crun

    def wake(self, *, seed: str, time_ns: int) -> dict[str, int]:
        """Take the host's random seed and time; the guest's clock."""
        return identity.wake(seed=seed, time_ns=time_ns)

    def settle(self) -> None:
        """Load everything that a container may need, and collect garbage: the VM is about to be saved."""
        for names in (*SHARE_MODULES.values(), VFIO_MODULES, network.MODULES):
            self._guest.load(names)
        self._settle_crun()
        self._guest.crun(self._guest.run).leaves_sessions()
        gc.collect()
        os.sync()
        trace.forget()

    def trace(self) -> list[dict[str, object]]:
        """The steps so far."""
        return trace.taken()

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
        """Mount the directory that the host shares, kind "virtiofs" or "9p", once its device has appeared.

        ``protected`` are the host's settings fs.protected_*: this kernel decides what may be done with shared files.
        ``modules`` is a directory in it, of modules for the guest's kernel; those of the names ``load`` are loaded now.
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
        """The driver's link appears before its probe has found the share: until then there is no share of that tag."""
        guest, options = self._guest, _9P_OPTIONS if kind == "9p" else ""

        def mounted() -> bool:
            try:
                guest.mount(tag, guest.share, kind, 0, options)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOENT) or time.monotonic() >= deadline:
                    raise VmError(f"the guest cannot mount the {kind} share {tag}: {error.strerror}") from None
                return False
            return True

        while not guest.uevents.wait_until(mounted, deadline=deadline):
            continue

    def look_at_mounts(self, *, paths: list[str]) -> None:
        """Open directories of the share, so that the file systems that are there are mounted."""
        submounts.look_at(self._guest.share, paths)

    def forget_mounts(self, *, paths: list[str]) -> None:
        """Unmount what was mounted at and below directories of the share."""
        for path in paths:
            submounts.release(f"{self._guest.share}/{path}", mountinfo=self._guest.mountinfo)
        self._guest.drop_inodes()

    def configure_network(self, *, interfaces: list[Document], seconds: float) -> None:
        """Configure interfaces like the host's."""
        self._guest.load(network.MODULES)
        network.configure(self._guest.uevents, interfaces, seconds=seconds, root=self._guest.root)

    def set_sysctls(self, *, values: dict[str, str]) -> None:
        """Set settings of the network."""
        network.set_sysctls(values, root=self._guest.root)

    def reserve_hugepages(self, *, kib: int, count: int) -> None:
        """Reserve huge pages, or release them."""
        hugepages.reserve(kib=kib, count=count, directory=self._guest.root + hugepages.SYSFS)

    def share_hugepages(self, *, name: str, kib: int, mode: int, uid: int, gid: int) -> None:
        """Mount a file system of huge pages for the containers that are bound to it."""
        hugepages.share(name=name, kib=kib, mode=mode, uid=uid, gid=gid, run=self._guest.run)

    def share_memory(self, *, name: str, size: int) -> None:
        """Mount a tmpfs of ``size`` bytes for the containers that are bound to it."""
        target = f"{self._guest.run}/shm/{name}"
        try:
            os.makedirs(target)
        except FileExistsError:
            return
        flags = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC
        mounts.mount("shm", target, "tmpfs", flags, f"mode=1777,size={size}")
