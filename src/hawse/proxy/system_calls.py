"""The system calls of a proxy that has everything open: data is moved, signals are awaited, threads end.

By number, for x86_64 (Linux arch/x86/entry/syscalls/syscall_64.tbl), as in :mod:`hawse.jail.seccomp`. No file is
opened, no socket connected, no process signalled (as root it might, without a capability), and no namespace made.
"""

from __future__ import annotations

from hawse.jail import seccomp

_NAMES = (
    "read", "write", "readv", "writev", "lseek", "close", "dup", "dup2", "dup3", "fcntl", "ioctl", "fstat", "mmap",
    "munmap", "mprotect", "mremap", "madvise", "brk", "membarrier", "poll", "ppoll", "pselect6", "epoll_wait", "futex",
    "set_robust_list", "rseq", "clone", "exit", "exit_group", "restart_syscall", "rt_sigaction", "rt_sigprocmask",
    "rt_sigreturn", "rt_sigtimedwait", "rt_sigpending", "sigaltstack", "getpid", "gettid", "getppid", "getuid",
    "geteuid", "getgid", "getegid", "sched_yield", "sched_getaffinity", "nanosleep", "clock_nanosleep",
    "clock_gettime", "gettimeofday", "getrandom", "sendmsg", "recvmsg", "sendto", "recvfrom", "getsockopt",
    "setsockopt", "getsockname", "getpeername", "shutdown",
)  # fmt: skip
ALLOWED = {name: seccomp.ALLOWED[name] for name in _NAMES}


def install() -> None:
    """Permit this thread and those that it starts only these. It needs no_new_privs. Raises OSError."""
    seccomp.install(seccomp.program(ALLOWED))
