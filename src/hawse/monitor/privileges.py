"""The rights that the monitor gives up once its sandbox has been created."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from hawse.linux import capabilities, processes

#: The capabilities that the monitor keeps, for what comes after the creation: SYS_ADMIN and SYS_CHROOT to enter network
#: namespaces and to mount the files of containers that join; NET_ADMIN for taps and redirects; CHOWN and MKNOD for
#: nodes in QEMU's jail; SYS_PTRACE for the namespaces and descriptors of proxies; KILL for QEMU, which is another user;
#: SYS_MODULE for drivers that a joining container's devices are bound to; DAC_OVERRIDE for files below directories of
#: other users.
KEPT = (
    "CHOWN", "DAC_OVERRIDE", "KILL", "MKNOD", "NET_ADMIN", "SYS_ADMIN", "SYS_CHROOT", "SYS_MODULE", "SYS_PTRACE",
)  # fmt: skip


class Workers:
    """The threads that the event loop hands blocking work to."""

    def __init__(self) -> None:
        """To be created in the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(thread_name_prefix="monitor")
        self._loop.set_default_executor(self._threads)

    def give_up_privileges(self) -> None:
        """Keep :data:`KEPT`, and let no program that is started gain more. Raises OSError.

        Capabilities belong to a thread. New threads inherit those of the calling one, so the old ones are ended.
        """
        capabilities.keep_only(KEPT)
        processes.give_up_privileges()
        old, self._threads = self._threads, ThreadPoolExecutor(thread_name_prefix="monitor")
        self._loop.set_default_executor(self._threads)
        old.shutdown(wait=False)
