"""Patch a bug in QEMU's emulation of AMD's virtualization that hangs guests of the lab.

helper_vmrun() in target/i386/tcg/system/svm_helper.c enters a guest and injects the interrupt that the hypervisor
requests. It also stores the interrupt's vector as a pending exception (``cs->exception_index``), although
do_interrupt_x86_hardirq() has already delivered the interrupt. The stored vector remains until the guest exits. If the
CPU leaves its loop meanwhile (``exit_request``: on a busy host the thread that raised an earlier interrupt may kick the
CPU only now), cpu_handle_exception() in accel/tcg/cpu-exec.c finds the vector. The guest then receives the same
interrupt again, inside the handler of the first one: a timer's handler waits forever for the lock that it holds itself
(hrtimer_interrupt() in Linux kernel/time/hrtimer.c).

This was observed in one of some hundred starts. When stop and cont of QMP kick the CPU some hundred times a second,
-d int shows a vector with interrupts off within a minute, and the third one hung the guest. Without the instruction
none appeared in 150 s. No setting avoids the bug, so the instruction is removed from the lab's copy of the program.
"""

from __future__ import annotations

import re
import struct
import subprocess

_FUNCTION, _CALLED = "helper_vmrun", "do_interrupt_x86_hardirq"
#: Maximum distance in bytes between the store of the vector and the call.
_NEAR = 96
#: mov %esi,offset(register) without a REX prefix; %esi is the second argument of the call (System V ABI), the vector.
_STORE = re.compile(rb"(?<![\x40-\x4f])\x89[\xb0-\xb7].{4}", re.DOTALL)
_CALL = 0xE8
_NOTHING = bytes.fromhex("660f1f440000")


def patch(program: str) -> None:
    """Remove the instruction from a QEMU. Raises ValueError unless exactly one instruction matches."""
    with open(program, "r+b") as file:
        where, size = _symbol(program, _FUNCTION)
        file.seek(where)
        code = file.read(size)
        patched = without_store(code, _symbol(program, _CALLED)[0] - where)
        file.seek(where)
        file.write(patched)


def without_store(code: bytes, called: int) -> bytes:
    """A function's code without the store of the vector. ``called``: the offset of the called function. Pure.

    The function must call it once, and store one vector shortly before.
    """
    calls = [
        at for at in range(len(code) - 4)
        if code[at] == _CALL and at + 5 + struct.unpack_from("<i", code, at + 1)[0] == called
    ]  # fmt: skip
    if len(calls) != 1:
        raise ValueError(f"{_FUNCTION} calls {_CALLED} {len(calls)} times")
    first = max(0, calls[0] - _NEAR)
    stores = [first + match.start() for match in _STORE.finditer(code[first : calls[0]])]
    if len(stores) != 1:
        raise ValueError(f"{_FUNCTION} has {len(stores)} stores of a vector before it calls {_CALLED}")
    return code[: stores[0]] + _NOTHING + code[stores[0] + len(_NOTHING) :]


def _symbol(program: str, name: str) -> tuple[int, int]:
    """The position of a function in the file, and its size; QEMU exports all its functions, for its modules."""
    symbols = subprocess.run(["readelf", "-W", "--dyn-syms", program], capture_output=True, text=True, check=True)
    for line in symbols.stdout.splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[7].partition("@")[0] == name:
            address, size = int(fields[1], 16), int(fields[2])
            return address + _slide(program, address), size
    raise ValueError(f"{program} has no {name}")


def _slide(program: str, address: int) -> int:
    """The difference between a position in the file and its address."""
    segments = subprocess.run(["readelf", "-W", "-l", program], capture_output=True, text=True, check=True)
    for line in segments.stdout.splitlines():
        fields = line.split()
        if fields[:1] == ["LOAD"]:
            offset, start, _, length = (int(field, 16) for field in fields[1:5])
            if start <= address < start + length:
                return offset - start
    raise ValueError(f"{program} has nothing at {address:#x}")
