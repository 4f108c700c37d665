"""Modules that the guest's kernel asks for: beside the image, in the share, loaded by busybox's modprobe.

The kernel starts modprobe as root in the agent's own mount namespace and root directory, whichever process of a
container was the cause (Linux kernel/module/kmod.c, kernel/umh.c). So a container needs neither a file of the image nor
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
#: What iptables of the legacy kind has loaded by a modprobe of its own, since the kernel asks for no module when a
#: socket option is unknown (net/netfilter/nf_sockopt.c). A container has no such modprobe, nor the modules. A host that
#: runs containers has usually loaded them.
_FIREWALL = ("ip_tables", "ip6_tables")


class Autoload:
    """The modules beside the image, once the share is mounted."""

    def __init__(
        self, directory: str, *, run: str, root: str = "", load: Callable[[str], None] = syscalls.load_module
    ) -> None:
        """Let the kernel load modules from the directory. ``run``/modules is where /usr/lib/modules/<release> of the
        initial ramfs points to, which is the directory that modprobe reads. ``load``: calls finit_module(2)."""
        self._directory, self._load = directory, load
        self._table: Modules | None = None
        self._lock = threading.Lock()  # containers are created at the same time
        os.symlink(directory, f"{run}/modules")
        with open(f"{root}{_SETTING}", "w") as file:
            file.write(_MODPROBE)

    def require(self, names: list[str]) -> None:
        """Load modules that an administrator wants in each guest. Raises :class:`VmError` for one that cannot be."""
        if names:
            self._modules().require(tuple(names))

    def begin(self, spec: Document) -> None:
        """Start to load what a container of this specification may need and the kernel does not ask for."""
        if may_configure_network(spec):
            self._modules().begin(_FIREWALL)

    def wait(self) -> None:
        """Wait for what was begun."""
        if self._table is not None:
            self._table.wait()

    def _modules(self) -> Modules:
        # Most guests need no table: reading it from the share takes longer than what else is done here.
        with self._lock:
            if self._table is None:
                self._table = Modules(self._directory, load=self._load)
            return self._table


def may_configure_network(spec: Document) -> bool:
    """Whether processes of the container may have CAP_NET_ADMIN, which firewall rules take."""
    capabilities = spec["process"].get("capabilities") or {}
    return "CAP_NET_ADMIN" in (capabilities.get("bounding") or ())
