"""Decide whether QEMU is confined: by the configuration, the share and the capabilities of this process."""

from __future__ import annotations

from hawse.config import Config, user_ids
from hawse.errors import HostError
from hawse.jail import tree
from hawse.linux import process_capabilities
from hawse.notes import Note, warning
from hawse.plan.model import JailPlan
from hawse.vm import nvme_disks

#: The capabilities needed to create a jail.
_NEEDED = ("CHOWN", "KILL", "SETGID", "SETUID", "SETPCAP", "SYS_CHROOT", "SYS_ADMIN", "MKNOD")


def plan_jail(
    config: Config, *, share: str, filters: bool, status: str = "/proc/self/status"
) -> tuple[JailPlan | None, list[Note]]:
    """Plan QEMU's jail; None if QEMU is not confined. Also returns warnings. ``filters``: QEMU supports -sandbox.

    Raises :class:`HostError` if the configuration requires a jail and none is possible.
    """
    if config.vm.confine == "off":
        return None, []
    users = user_ids(config.vm.users)
    assert users is not None, "checked when the configuration was read"
    try:
        directory = jail_tree(config, share=share, status=status)
    except HostError as error:
        if config.vm.confine == "required":
            raise HostError(
                f"QEMU cannot be confined, as vm.confine requires: {error.message}",
                hint=error.hint,
                evidence=error.evidence,
            ) from None
        return None, [warning(f"QEMU is not confined: {error.sentence()}")]
    # An emulated NVMe disk may be attached to any sandbox; without one, QEMU writes no files.
    has_disks = any("nvme" in models for models in config.emulated.values())
    plan = JailPlan(
        tree=directory,
        first_user=users[0],
        last_user=users[1],
        filters=filters,
        required=config.vm.confine == "required",
        file_bytes=nvme_disks.DISK_BYTES if has_disks else 0,
    )
    return plan, []


def jail_tree(config: Config, *, share: str, status: str = "/proc/self/status") -> str:
    """The directory of QEMU's files. Raises :class:`HostError` with the reason if QEMU cannot be confined."""
    if share == "9p":
        remedy = 'set vm.share = "auto"' if config.vm.share == "9p" else "install the package with virtiofsd"
        raise HostError("with 9p, QEMU sets the owners of files itself, and must run as root", hint=remedy)
    if missing := missing_capabilities(status):
        raise HostError(f"hawse lacks {', '.join(missing)}", hint="grant these capabilities to its service")
    return tree.obtain(config.vm.qemu, cache=config.image.cache)


def missing_capabilities(status: str) -> list[str]:
    """The capabilities needed to create a jail that this process lacks."""
    effective = process_capabilities.effective(status)
    return [f"CAP_{name}" for name in _NEEDED if not effective >> process_capabilities.NUMBERS[name] & 1]
