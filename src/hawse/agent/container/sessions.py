"""A process of `crun exec` leads its session, as under runc, also where crun before 1.20 does not have it do so.

The older crun calls setsid(2) for a process with a terminal only (src/libcrun/linux.c, libcrun_join_process()), and
only the process itself can call it. So crun is traced (ptrace(2)) until it has forked the process, and the process
makes the call before it does anything else, by the system call instruction that it has just returned from. Processes
with their own session are what `kill -- -$$` and job control rely on.

x86-64 only: on another architecture the process has the session of crun's child.
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
#: Places in struct user_regs_struct (arch/x86/include/asm/user_64.h), and the number of setsid(2).
_RAX, _ORIG_RAX, _RIP, _REGISTERS = 10, 15, 16, 27
_SETSID = 112
_SYSCALL_INSTRUCTION = b"\x0f\x05"
#: crun's own process is 0 forks away; it forks one that enters the namespaces, and that one forks the process.
_PROCESS = 2
_VERSION = re.compile(rb"crun version (\d+)\.(\d+)")
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


@cache
def needs_help(program: str, reaper: Reaper) -> bool:
    """Whether this crun, by its version, leaves a process without a terminal in another session."""
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
    return is_old(text)


def is_old(text: bytes) -> bool:
    """Whether the output of `crun --version` is of one before 1.20; unknown output is not. Pure."""
    found = _VERSION.search(text)
    return found is not None and (int(found[1]), int(found[2])) < (1, 20)


def hand_over(crun: int, path: str, text: str, reaper: Reaper) -> None:
    """Trace a crun that waits for what it reads from the FIFO ``path``, and write it."""
    with suppress(OSError):  # the kernel does not let it be traced: the process has another session
        Tracer(crun)
    while True:
        try:
            fifo = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        # Nothing tells that it has opened the other end. One that ends before says why in its log.
        with reaper.hold(crun) as lives:
            if not lives:
                return
        time.sleep(0.002)
    os.set_blocking(fifo, True)
    with suppress(BrokenPipeError), open(fifo, "w") as stream:
        stream.write(text)


class Tracer:
    """Traces a crun that waits, from the call on until it has ended, in a thread."""

    def __init__(self, crun: int) -> None:
        """Raises OSError where the kernel does not let it be traced."""
        self._crun = crun
        self._forks = {crun: 0}
        self._early: set[int] = set()
        self._ready = threading.Event()
        self._failure: OSError | None = None
        # Requests are a matter of one thread; those that it traces go on untraced when it ends.
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
        with suppress(OSError):  # what was traced has ended
            while self._step():
                pass

    def _step(self) -> bool:
        """Handle one stop of a traced process; whether there is more to come."""
        stopped = os.waitid(os.P_ALL, 0, os.WSTOPPED | _WALL | _WNOTHREAD)
        assert stopped is not None, "only with WNOHANG"
        pid, event, number = stopped.si_pid, stopped.si_status >> 8, stopped.si_status & 0xFF
        if event == _EXIT:
            if pid == self._crun:
                return False
        elif event in (_FORK, _VFORK, _CLONE):
            child = _event_message(pid)
            self._forks[child] = self._forks[pid] + 1
            if child in self._early:
                self._begin(child)
        elif event == _STOP and number == _SIGTRAP:
            # The kernel may report a process before it reports that it was forked.
            if pid in self._forks:
                return self._begin(pid)
            self._early.add(pid)
            return True
        _ptrace(_CONT, pid, 0, number if event == 0 else 0)
        return True

    def _begin(self, pid: int) -> bool:
        """Let a process begin, the one that is looked for with a session of its own."""
        if self._forks[pid] == _PROCESS:
            _call_setsid(pid)
            _ptrace(_DETACH, pid, 0, 0)
        else:
            _ptrace(_CONT, pid, 0, 0)
        return True


def _call_setsid(pid: int) -> None:
    """Have a process that has just returned from its fork call setsid(2), and go back to where it was."""
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
    """A struct iovec. Whoever passes it on keeps it and the buffer for the length of the call."""
    return (ctypes.c_size_t * 2)(ctypes.addressof(buffer), len(buffer))


def _event_message(pid: int) -> int:
    message = ctypes.c_ulong()
    _ptrace(_GETEVENTMSG, pid, 0, ctypes.addressof(message))
    return message.value


def _ptrace(request: int, pid: int, address: int, data: int) -> None:
    if libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"ptrace of {pid}")
