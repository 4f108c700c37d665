"""Capabilities of the guest kernel, and warnings about unknown ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: The capabilities of Linux 6.1, the guest kernel, in the order of their numbers (linux/capability.h).
CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
        "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
        "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
        "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL",
        "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
        "PERFMON", "BPF", "CHECKPOINT_RESTORE",
    )
]  # fmt: skip


def unknown(sets: Mapping[str, Sequence[str] | None]) -> list[str]:
    """Return a warning for each capability that the guest kernel lacks; ``sets`` are capability sets by their names.

    As under runc, a container starts without such a capability (libcontainer/capabilities, New()). crun reports it only
    in a log in the guest.
    """
    first: dict[str, str] = {}
    for kind, names in sets.items():
        for name in names or ():
            first.setdefault(name, kind)
    return [
        f"process.capabilities.{kind}: {name[:80]!r} is unknown to the guest kernel and ignored [remove it]"
        for name, kind in first.items()
        if name.upper() not in CAPABILITIES
    ]
