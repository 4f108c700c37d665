"""Whether QEMU is confined, and what keeps it from being: by the configuration, the share and this process's rights."""

from __future__ import annotations

from typing import Protocol

from hawse.config import Config, user_ids
from hawse.errors import HostError
from hawse.jail import tree
from hawse.sandbox.plan import JailPlan

#: What a jail is made with, by number (Linux include/uapi/linux/capability.h).
_NEEDED = {
    0: "CAP_CHOWN", 6: "CAP_SETGID", 7: "CAP_SETUID", 8: "CAP_SETPCAP", 21: "CAP_SYS_ADMIN", 27: "CAP_MKNOD",
}  # fmt: skip


class Log(Protocol):
    """Where warnings go."""

    def warning(self, text: str) -> None:
        """Say something to the user."""


def plan_jail(
    config: Config, *, share: str, filters: bool, log: Log, status: str = "/proc/self/status"
) -> JailPlan | None:
    """QEMU's jail, None for none. ``filters``: QEMU has a filter of system calls of its own.

    Raises :class:`HostError` where the configuration requires a jail, and none can be made.
    """
    if config.vm.confine == "off":
        return None
    users = user_ids(config.vm.users)
    assert users is not None, "checked when it was read"
    try:
        if share == "9p":
            raise HostError(
                "with 9p QEMU itself gives files their owners, as root", hint="install virtiofsd, or set vm.share"
            )
        if missing := missing_capabilities(status):
            raise HostError(f"hawse lacks {', '.join(missing)}", hint="give its service these capabilities")
        directory = tree.obtain(config.vm.qemu, cache=config.image.cache)
    except HostError as error:
        if config.vm.confine == "required":
            raise HostError(
                f"QEMU cannot be confined, as vm.confine requires: {error.message}",
                hint=error.hint,
                evidence=error.evidence,
            ) from None
        log.warning(f"QEMU is not confined: {error.sentence()}")
        return None
    return JailPlan(tree=directory, first_user=users[0], last_user=users[1], filters=filters)


def missing_capabilities(status: str) -> list[str]:
    """Which of those that a jail is made with this process has not (proc(5), /proc/PID/status, CapEff)."""
    with open(status) as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return [name for number, name in _NEEDED.items() if not effective >> number & 1]
