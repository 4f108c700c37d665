"""Drop privileges of the monitor after its sandbox was created."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from hawse.linux import process_capabilities, processes

#: The capabilities that the monitor needs after the creation: SYS_ADMIN and SYS_CHROOT to enter network namespaces and
#: to mount the files of containers that join; NET_ADMIN for taps and redirects; CHOWN and MKNOD for nodes in QEMU's
#: jail; SYS_PTRACE for the namespaces and descriptors of proxies; KILL for QEMU, which has another user; SYS_MODULE for
#: drivers that a joining container's devices are bound to; DAC_OVERRIDE for files below directories of other users.
KEPT = (
    "CHOWN", "DAC_OVERRIDE", "KILL", "MKNOD", "NET_ADMIN", "SYS_ADMIN", "SYS_CHROOT", "SYS_MODULE", "SYS_PTRACE",
)  # fmt: skip


class Workers:
    """The threads for blocking work of the event loop."""

    def __init__(self) -> None:
        """Create it in the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(thread_name_prefix="monitor")
        self._loop.set_default_executor(self._threads)

    def drop_privileges(self) -> None:
        """Drop all capabilities except :data:`KEPT`, and set no_new_privs. Raises OSError.

        Capabilities are per thread. New threads inherit them from the calling thread, so the old threads are ended.
        """
        process_capabilities.keep_only(KEPT)
        processes.give_up_privileges()
        old, self._threads = self._threads, ThreadPoolExecutor(thread_name_prefix="monitor")
        self._loop.set_default_executor(self._threads)
        old.shutdown(wait=False)
