"""Capabilities of the calling thread: capset(2), prctl(2), capabilities(7). Standard library only.

Other running threads keep their capabilities; threads that the calling thread starts later inherit the reduced set.
"""

from __future__ import annotations

import ctypes

from hawse.linux.libc import check, libc

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Collection

#: By name (Linux include/uapi/linux/capability.h).
NUMBERS = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "DAC_READ_SEARCH": 2, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8,
    "NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "SYS_MODULE": 16, "SYS_CHROOT": 18, "SYS_PTRACE": 19, "SYS_ADMIN": 21,
    "SYS_RESOURCE": 24, "MKNOD": 27,
}  # fmt: skip
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 23, 24, 47, 4
_PR_GET_SECUREBITS, _PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP = 27, 28, 4
_VERSION_3 = 0x20080522


def keep_only(names: Collection[str]) -> None:
    """Drop all capabilities except the named ones from every set, permanently; no capability is added.

    Reducing the bounding set requires CAP_SETPCAP; a thread without it keeps its bounding set. Raises OSError.
    """
    kept = sum(1 << NUMBERS[name] for name in names)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    check(libc.capget(header, data), "")
    effective = data[0] | data[3] << 32
    if effective >> NUMBERS["SETPCAP"] & 1:
        drop_bounding(kept)
    left = effective & kept
    low, high = left & 0xFFFFFFFF, left >> 32
    check(libc.capset(header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)), "")
    check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "")


def keep_through_user_changes() -> None:
    """Keep the thread's capabilities when its user ids change, also in programs that it executes.

    Sets SECBIT_NO_SETUID_FIXUP (capabilities(7)). To create a file, virtiofsd assumes the user id and the group id of
    the request, so that the file gets them (QEMU 7.2 tools/virtiofsd/passthrough_ll.c, lo_change_cred(); the Rust
    virtiofsd src/passthrough/credentials.rs). Without this bit it loses CAP_DAC_OVERRIDE while it does so, and the host
    refuses accesses that a supplementary group, a capability or the user namespace permits to the process in the guest.
    The guest kernel has checked the permission already (FUSE default_permissions), with all credentials of the process.

    Needs CAP_SETPCAP. Raises OSError.
    """
    bits = check(libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0), "")
    check(libc.prctl(_PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "")


def effective(status: str = "/proc/self/status") -> int:
    """The effective capabilities of a process as a bit mask (proc(5), /proc/PID/status, CapEff)."""
    with open(status) as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))


def drop_bounding(kept: int = 0) -> None:
    """Drop all capabilities except those in the bit mask ``kept`` from the bounding set.

    Raises OSError without CAP_SETPCAP.
    """
    # Stop at the first capability that the kernel does not know (EINVAL).
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) < 0:
            return
        if not kept >> capability & 1:
            check(libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "")
