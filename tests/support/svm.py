"""QEMU's emulation of AMD's virtualization without a mistake in it that hangs guests of the lab.

helper_vmrun() of target/i386/tcg/system/svm_helper.c, which enters a guest and gives it the interrupt that its
hypervisor asks for, notes the interrupt's vector as an exception to be raised too (``cs->exception_index``), and raises
none: do_interrupt_x86_hardirq() has done all there is to do. The note stays until the guest is left. Whoever has the
processor leave its loop meanwhile (``exit_request``: on a busy machine the thread that has raised an earlier interrupt
and comes to its kick only now) has cpu_handle_exception() of accel/tcg/cpu-exec.c find it, and the guest gets the same
interrupt again, inside the first one's handler: a timer's then waits for ever for the lock that it holds itself
(hrtimer_interrupt() of Linux kernel/time/hrtimer.c). So it was seen, in one of some hundred starts. Where the stop and
cont of QMP kick the processor some hundred times a second, -d int shows a vector with interrupts off within a minute,
the third hung the guest, and there was none in 150 s without the instruction.

There is no setting that avoids it, so the one instruction is taken out of the lab's copy of the program.
"""

from __future__ import annotations

import re
import struct
import subprocess

_FUNCTION, _CALLED = "helper_vmrun", "do_interrupt_x86_hardirq"
#: How far before the call its argument is stored.
_NEAR = 96
#: mov %esi,place(register), whose vector is the call's second argument (System V ABI), behind no prefix.
_STORE = re.compile(rb"(?<![\x40-\x4f])\x89[\xb0-\xb7].{4}", re.DOTALL)
_CALL = 0xE8
_NOTHING = bytes.fromhex("660f1f440000")


def mend(program: str) -> None:
    """Take the instruction out of a QEMU. Raises ValueError where there is not exactly one that looks so."""
    with open(program, "r+b") as file:
        where, size = _symbol(program, _FUNCTION)
        file.seek(where)
        code = file.read(size)
        mended = without_store(code, _symbol(program, _CALLED)[0] - where)
        file.seek(where)
        file.write(mended)


def without_store(code: bytes, called: int) -> bytes:
    """A function's code, whose only call of what is ``called`` bytes from its start stores the vector before. Pure."""
    calls = [
        at for at in range(len(code) - 4)
        if code[at] == _CALL and at + 5 + struct.unpack_from("<i", code, at + 1)[0] == called
    ]  # fmt: skip
    if len(calls) != 1:
        raise ValueError(f"{_FUNCTION} calls {_CALLED} {len(calls)} times")
    first = max(0, calls[0] - _NEAR)
    stores = [first + found.start() for found in _STORE.finditer(code[first : calls[0]])]
    if len(stores) != 1:
        raise ValueError(f"{_FUNCTION} has {len(stores)} stores of a vector before it calls {_CALLED}")
    return code[: stores[0]] + _NOTHING + code[stores[0] + len(_NOTHING) :]


def _symbol(program: str, name: str) -> tuple[int, int]:
    """Where a function is in the file, and its bytes; QEMU exports all of its functions, for its modules."""
    symbols = subprocess.run(["readelf", "-W", "--dyn-syms", program], capture_output=True, text=True, check=True)
    for line in symbols.stdout.splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[7].partition("@")[0] == name:
            address, size = int(fields[1], 16), int(fields[2])
            return address + _slide(program, address), size
    raise ValueError(f"{program} has no {name}")


def _slide(program: str, address: int) -> int:
    """What is to be added to an address for its place in the file."""
    segments = subprocess.run(["readelf", "-W", "-l", program], capture_output=True, text=True, check=True)
    for line in segments.stdout.splitlines():
        fields = line.split()
        if fields[:1] == ["LOAD"]:
            offset, start, _, length = (int(field, 16) for field in fields[1:5])
            if start <= address < start + length:
                return offset - start
    raise ValueError(f"{program} has nothing at {address:#x}")
