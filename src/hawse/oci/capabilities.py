"""Capabilities of the guest's kernel, and what to say of others. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Of Linux 6.1, the guest's, by their numbers (linux/capability.h).
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
    """What to warn of sets by their names: as under runc, a container starts without a capability that its kernel has
    not (libcontainer/capabilities, New()), and crun says so in a log of the guest only."""
    first: dict[str, str] = {}
    for kind, names in sets.items():
        for name in names or ():
            first.setdefault(name, kind)
    return [
        f"process.capabilities.{kind}: {name[:80]!r} is unknown to the guest's kernel, and ignored [remove it]"
        for name, kind in first.items()
        if name.upper() not in CAPABILITIES
    ]
