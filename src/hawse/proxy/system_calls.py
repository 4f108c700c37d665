"""The system calls that a confined proxy may use: they move data, wait for signals and end threads.

Their numbers are those of x86_64 (Linux arch/x86/entry/syscalls/syscall_64.tbl), as in :mod:`hawse.jail.seccomp`. The
proxy cannot open files, connect sockets, create namespaces, or signal processes, which root may without a capability.
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
    """Restrict this thread, and the threads that it starts, to these calls. Requires no_new_privs. Raises OSError."""
    seccomp.install(seccomp.program(ALLOWED))
