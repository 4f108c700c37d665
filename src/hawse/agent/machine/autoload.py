"""Modules that the guest kernel requests. They are in the share, not in the image; busybox's modprobe loads them.

The kernel starts modprobe as root, in the agent's mount namespace and root directory, regardless of the process that
caused the request (Linux kernel/module/kmod.c, kernel/umh.c). So a container needs neither a file of the image nor
CAP_SYS_MODULE, as on a host.
"""

from __future__ import annotations

import os
import threading

from hawse.agent.system import syscalls
from hawse.agent.system.modules import Modules

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable

    from hawse.json_text import Document

_MODPROBE = "/usr/lib/hawse/modprobe"
_SETTING = "/proc/sys/kernel/modprobe"
#: Modules that legacy iptables loads by running modprobe itself: the kernel does not request a module for an unknown
#: socket option (net/netfilter/nf_sockopt.c). A container has neither modprobe nor these modules. On a host that runs
#: containers, they are usually loaded.
_FIREWALL = ("ip_tables", "ip6_tables")


class Autoload:
    """The modules in the share, after it is mounted."""

    def __init__(
        self, directory: str, *, run: str, root: str = "", load: Callable[[str], None] = syscalls.load_module
    ) -> None:
        """Let the kernel load modules from ``directory``.

        modprobe reads /usr/lib/modules/<release>, which is a symbolic link of the initial ramfs to ``run``/modules;
        that link is created here. ``load`` calls finit_module(2).
        """
        self._directory, self._load = directory, load
        self._table: Modules | None = None
        self._lock = threading.Lock()  # containers are created concurrently
        os.symlink(directory, f"{run}/modules")
        with open(f"{root}{_SETTING}", "w") as file:
            file.write(_MODPROBE)

    def require(self, names: list[str]) -> None:
        """Load the modules that an administrator configured for each guest. Raises :class:`VmError` for a failure."""
        if names:
            self._modules().require(tuple(names))

    def begin(self, spec: Document) -> None:
        """Start loading the modules that a container may need and the kernel does not request."""
        if may_configure_network(spec):
            self._modules().begin(_FIREWALL)

    def wait(self) -> None:
        """Wait until the modules of :meth:`begin` are loaded."""
        if self._table is not None:
            self._table.wait()

    def _modules(self) -> Modules:
        # Most guests do not need the table. Reading it from the share takes longer than everything else here.
        with self._lock:
            if self._table is None:
                self._table = Modules(self._directory, load=self._load)
            return self._table


def may_configure_network(spec: Document) -> bool:
    """Whether processes of the container may have CAP_NET_ADMIN, which firewall rules require."""
    capabilities = spec["process"].get("capabilities") or {}
    return "CAP_NET_ADMIN" in (capabilities.get("bounding") or ())
