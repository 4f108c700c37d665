"""The system calls that a confined QEMU may make: a classic BPF filter, in addition to QEMU's own ``-sandbox``.

QEMU's filter (softmmu/qemu-seccomp.c) lists the calls that it refuses. It permits many calls that are useful to an
attacker in the process. This filter lists the calls that QEMU 7.2 to 11 needs for hawse's VMs. Other calls fail
with ENOSYS, as on an older kernel, so that libraries use their fallbacks. It exists for x86_64 only; on other
architectures only QEMU's own filter applies.
"""

from __future__ import annotations

import ctypes
import os
import struct

from hawse.linux.libc import failure, libc

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Mapping

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_RET_ALLOW, _RET_ERRNO, _RET_KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_LOAD, _IF_EQUAL, _IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06  # LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, RET|K
#: Offsets in struct seccomp_data (Linux include/uapi/linux/seccomp.h).
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X86_64 = 0xC000003E  # AUDIT_ARCH_X86_64, include/uapi/linux/audit.h
_AF_UNIX = 1
#: Name and number (Linux arch/x86/entry/syscalls/syscall_64.tbl). execve is permitted since the filter is installed
#: before QEMU is executed.
ALLOWED: dict[str, int] = {
    "read": 0, "write": 1, "readv": 19, "writev": 20, "pread64": 17, "pwrite64": 18, "preadv": 295, "pwritev": 296,
    "lseek": 8, "close": 3, "close_range": 436, "dup": 32, "dup2": 33, "dup3": 292, "fcntl": 72, "ioctl": 16,
    "openat": 257, "fstat": 5, "newfstatat": 262, "statx": 332, "fstatfs": 138, "access": 21, "readlink": 89,
    "readlinkat": 267, "getdents64": 217, "getcwd": 79, "mmap": 9, "munmap": 11, "mprotect": 10, "mremap": 25,
    "madvise": 28, "brk": 12, "mlock": 149, "membarrier": 324, "memfd_create": 319, "ftruncate": 77, "fallocate": 285,
    "fsync": 74, "fdatasync": 75, "poll": 7, "ppoll": 271, "pselect6": 270, "epoll_create1": 291, "epoll_ctl": 233,
    "epoll_wait": 232, "epoll_pwait": 281, "eventfd2": 290, "timerfd_create": 283, "timerfd_settime": 286,
    "signalfd4": 289, "pipe2": 293, "futex": 202, "set_robust_list": 273, "rseq": 334, "set_tid_address": 218,
    "clone": 56, "exit": 60, "exit_group": 231, "restart_syscall": 219, "rt_sigaction": 13, "rt_sigprocmask": 14,
    "rt_sigreturn": 15, "rt_sigtimedwait": 128, "rt_sigpending": 127, "sigaltstack": 131, "tgkill": 234, "kill": 62,
    "getpid": 39, "gettid": 186, "getppid": 110, "getuid": 102, "geteuid": 107, "getgid": 104, "getegid": 108,
    "sched_yield": 24, "sched_getaffinity": 204, "nanosleep": 35, "clock_nanosleep": 230, "clock_gettime": 228,
    "gettimeofday": 96, "getrandom": 318, "prctl": 157, "arch_prctl": 158, "prlimit64": 302, "sysinfo": 99, "uname": 63,
    "execve": 59, "sendmsg": 46, "recvmsg": 47, "sendto": 44, "recvfrom": 45, "getsockopt": 55, "setsockopt": 54,
    "getsockname": 51, "getpeername": 52, "shutdown": 48, "socket": 41, "socketpair": 53, "seccomp": 317,
}  # fmt: skip
#: Permitted values of the first argument. Sockets must be UNIX sockets. prctl(2) may set a thread's name and its timer
#: slack, no_new_privs and QEMU's own filter, but not PR_SET_PDEATHSIG, by which QEMU could outlive the monitor.
_FIRST_ARGUMENTS = {"socket": (_AF_UNIX,), "socketpair": (_AF_UNIX,), "prctl": (15, 16, 22, 29, 38)}
#: A call whose first argument is flags: clone may create threads, but not processes. clone3 is not permitted, since its
#: flags are in memory, which a filter cannot read; without it libraries use clone (glibc
#: sysdeps/unix/sysv/linux/clone-internal.c).
_OF_FLAGS, _CLONE_THREAD = "clone", 0x10000


def program(allowed: Mapping[str, int] = ALLOWED) -> bytes:
    """The filter, as an array of struct sock_filter."""
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_IF_EQUAL, 1, 0, _X86_64), (_RETURN, 0, 0, _RET_KILL)]
    # The numbers of x32 calls begin at 2^30, so they match no permitted call.
    code.append((_LOAD, 0, 0, _NUMBER))
    for name, number in allowed.items():
        if name in _FIRST_ARGUMENTS or name == _OF_FLAGS:
            values = _FIRST_ARGUMENTS.get(name, (_CLONE_THREAD,))
            condition = _IF_SET if name == _OF_FLAGS else _IF_EQUAL
            code += [
                (_IF_EQUAL, 0, 3 + len(values), number), (_LOAD, 0, 0, _FIRST_ARGUMENT),
                *((condition, len(values) - index, 0, value) for index, value in enumerate(values)),
                (_RETURN, 0, 0, _RET_ERRNO | _EPERM), (_RETURN, 0, 0, _RET_ALLOW),
            ]  # fmt: skip
        else:
            code += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _RET_ALLOW)]
    code.append((_RETURN, 0, 0, _RET_ERRNO | _ENOSYS))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


#: Built before the fork, so that the child does little.
_PROGRAM = program()


class _Filter(ctypes.Structure):
    """struct sock_fprog (include/uapi/linux/filter.h)."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(filter_program: bytes = _PROGRAM) -> None:
    """Install a filter, by default QEMU's, for this thread and its children. Requires no_new_privs. Raises OSError."""
    if os.uname().machine != "x86_64":
        return
    code = ctypes.create_string_buffer(filter_program, len(filter_program))
    descriptor = _Filter(len(filter_program) // 8, ctypes.addressof(code))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(descriptor), 0, 0):
        raise failure("prctl")
