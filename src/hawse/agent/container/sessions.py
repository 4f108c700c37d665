"""Make each process of `crun exec` the leader of its session, as under runc, also with crun before 1.20.

`kill -- -$$` and job control require that a process leads a session. crun before 1.20 calls setsid(2) only for a
process with a terminal (src/libcrun/linux.c, libcrun_join_process()), and no other process can call it for that
process. So the agent traces crun (ptrace(2)) until crun has forked the process. The process then calls setsid(2) before
anything else, by the system call instruction that it has just returned from.

This works only on x86-64. On other architectures the process stays in the session of crun's child.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import threading
import time
from contextlib import suppress
from functools import cache

from hawse.linux.libc import libc

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.agent.system.reaper import Reaper

# include/uapi/linux/ptrace.h
_CONT, _DETACH, _SYSCALL, _GETEVENTMSG, _GETREGSET, _SETREGSET, _SEIZE = 7, 17, 24, 0x4201, 0x4204, 0x4205, 0x4206
_FORK, _VFORK, _CLONE, _EXIT, _STOP = 1, 2, 3, 6, 128
_OPTIONS = 1 << _FORK | 1 << _VFORK | 1 << _CLONE | 1 << _EXIT
_NT_PRSTATUS = 1
_WALL, _WNOTHREAD = 0x40000000, 0x20000000  # include/uapi/linux/wait.h
_SIGTRAP = 5
#: Indexes of registers in struct user_regs_struct (arch/x86/include/asm/user_64.h) and their count; setsid(2).
_RAX, _ORIG_RAX, _RIP, _REGISTERS = 10, 15, 16, 27
_SETSID = 112
_SYSCALL_INSTRUCTION = b"\x0f\x05"
#: The number of forks from crun to the process: crun forks a child that enters the namespaces, which forks the process.
_FORKS_TO_PROCESS = 2
_VERSION = re.compile(rb"crun version (\d+)\.(\d+)")
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


@cache
def lacks_setsid(program: str, reaper: Reaper) -> bool:
    """Whether this crun, judged by its version, does not call setsid(2) for a process without a terminal."""
    if os.uname().machine != "x86_64":
        return False
    read, write = os.pipe()
    try:
        pid = reaper.spawn([program, "--version"], environment={}, descriptors={1: write})
    finally:
        os.close(write)
    with open(read, "rb") as output:
        text = output.read(4096)
    reaper.wait(pid)
    return is_before_1_20(text)


def is_before_1_20(text: bytes) -> bool:
    """Whether the output of `crun --version` shows a version before 1.20; False for unknown output. Pure."""
    version = _VERSION.search(text)
    return version is not None and (int(version[1]), int(version[2])) < (1, 20)


def trace_and_write(crun: int, path: str, text: str, reaper: Reaper) -> None:
    """Trace a crun that is about to open the FIFO ``path`` for reading, then write ``text`` to the FIFO."""
    with suppress(OSError):  # the kernel refuses tracing: the process stays in the session of crun's child
        Tracer(crun)
    while True:
        try:
            fifo = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        # No event reports that crun has opened the FIFO, so poll. If crun has ended, its log contains the reason.
        with reaper.hold(crun) as lives:
            if not lives:
                return
        time.sleep(0.002)
    os.set_blocking(fifo, True)
    with suppress(BrokenPipeError), open(fifo, "w") as stream:
        stream.write(text)


class Tracer:
    """Traces a crun that waits at its FIFO, in a thread, until that crun has ended."""

    def __init__(self, crun: int) -> None:
        """Start tracing. Raises OSError if the kernel refuses it."""
        self._crun = crun
        self._forks = {crun: 0}
        self._early: set[int] = set()
        self._ready = threading.Event()
        self._failure: OSError | None = None
        # All ptrace requests must come from one thread. When the thread ends, its tracees run on untraced.
        threading.Thread(target=self._run, daemon=True).start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            _ptrace(_SEIZE, self._crun, 0, _OPTIONS)
        except OSError as error:
            self._failure = error
            return
        finally:
            self._ready.set()
        with suppress(OSError):  # the traced processes have ended
            while self._step():
                pass

    def _step(self) -> bool:
        """Handle one stop of a traced process. Returns False when crun has ended."""
        stopped = os.waitid(os.P_ALL, 0, os.WSTOPPED | _WALL | _WNOTHREAD)
        assert stopped is not None, "only with WNOHANG"
        pid, event, signal_number = stopped.si_pid, stopped.si_status >> 8, stopped.si_status & 0xFF
        if event == _EXIT:
            if pid == self._crun:
                return False
        elif event in (_FORK, _VFORK, _CLONE):
            child = _event_message(pid)
            self._forks[child] = self._forks[pid] + 1
            if child in self._early:
                self._begin(child)
        elif event == _STOP and signal_number == _SIGTRAP:
            # The kernel may report a process before it reports that it was forked.
            if pid in self._forks:
                return self._begin(pid)
            self._early.add(pid)
            return True
        # Deliver the signal of an ordinary stop; a stop of ptrace has none.
        _ptrace(_CONT, pid, 0, signal_number if event == 0 else 0)
        return True

    def _begin(self, pid: int) -> bool:
        """Let a new process run. The process of the exec first calls setsid(2), and is not traced any longer."""
        if self._forks[pid] == _FORKS_TO_PROCESS:
            _call_setsid(pid)
            _ptrace(_DETACH, pid, 0, 0)
        else:
            _ptrace(_CONT, pid, 0, 0)
        return True


def _call_setsid(pid: int) -> None:
    """Make a process call setsid(2) when it has just returned from fork(2), then restore its registers."""
    before = _registers(pid)
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(before[_RIP] - len(_SYSCALL_INSTRUCTION))
        if memory.read(len(_SYSCALL_INSTRUCTION)) != _SYSCALL_INSTRUCTION:
            return
    changed = list(before)
    changed[_RIP] -= len(_SYSCALL_INSTRUCTION)
    changed[_RAX], changed[_ORIG_RAX] = _SETSID, 2**64 - 1
    _set_registers(pid, changed)
    for _ in ("entered", "left"):
        _ptrace(_SYSCALL, pid, 0, 0)
        os.waitid(os.P_PID, pid, os.WSTOPPED | _WALL)
    _set_registers(pid, list(before))


def _registers(pid: int) -> tuple[int, ...]:
    buffer = ctypes.create_string_buffer(8 * _REGISTERS)
    vector = _vector(buffer)
    _ptrace(_GETREGSET, pid, _NT_PRSTATUS, ctypes.addressof(vector))
    return struct.unpack(f"{_REGISTERS}Q", buffer.raw)


def _set_registers(pid: int, values: list[int]) -> None:
    buffer = ctypes.create_string_buffer(struct.pack(f"{_REGISTERS}Q", *values), 8 * _REGISTERS)
    vector = _vector(buffer)
    _ptrace(_SETREGSET, pid, _NT_PRSTATUS, ctypes.addressof(vector))


def _vector(buffer: ctypes.Array[ctypes.c_char]) -> ctypes.Array[ctypes.c_size_t]:
    """A struct iovec. The caller must keep a reference to it and to the buffer during the system call."""
    return (ctypes.c_size_t * 2)(ctypes.addressof(buffer), len(buffer))


def _event_message(pid: int) -> int:
    message = ctypes.c_ulong()
    _ptrace(_GETEVENTMSG, pid, 0, ctypes.addressof(message))
    return message.value


def _ptrace(request: int, pid: int, address: int, data: int) -> None:
    if libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"ptrace of {pid}")
