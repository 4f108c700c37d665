"""Two sockets that accept connections to every TCP port of a network namespace's loopback.

A BPF program for the socket lookup (Linux Documentation/bpf/prog_sk_lookup.rst, since 5.9) redirects connections to
127.0.0.1 and ::1 to these sockets, for all ports. It does not affect other addresses of the loopback, such as that of
Docker's name server. The program stays attached while its descriptor is open, so it is detached when this process ends.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from contextlib import ExitStack, suppress

from hawse.host import network_namespace
from hawse.linux.libc import libc

_SYS_BPF = 321  # x86-64: arch/x86/entry/syscalls/syscall_64.tbl
# include/uapi/linux/bpf.h: commands, a map type, a program type and an attach type, helpers.
_MAP_CREATE, _MAP_UPDATE, _PROG_LOAD, _LINK_CREATE = 0, 2, 5, 28
_SOCKMAP = 15
_SK_LOOKUP, _ATTACH_SK_LOOKUP = 30, 36
_MAP_LOOKUP_ELEM, _SK_RELEASE, _SK_ASSIGN = 1, 86, 124
# struct bpf_sk_lookup, offsets in bytes.
_FAMILY, _PROTOCOL, _LOCAL_IP4, _LOCAL_IP6 = 8, 12, 40, 44
_PASS = 1
_ATTRIBUTES = 128
_BACKLOG = 64


class Loopback:
    """The two sockets, as a context manager. ``sockets`` listen and are non-blocking.

    The local port of an accepted connection is the port that the client connected to. Without IPv6 in the namespace
    there is one socket.
    """

    def __init__(self, namespace: int) -> None:
        """Listen. Raises OSError if the kernel refuses, and HostError if ``namespace`` is not a network namespace."""
        with ExitStack() as undo:
            self.sockets = network_namespace.within(namespace, _listen)
            for listening in self.sockets:
                undo.callback(listening.close)
            sockets = _bpf(_MAP_CREATE, struct.pack("<IIII", _SOCKMAP, 4, 8, 2))
            undo.callback(os.close, sockets)
            for listening in self.sockets:
                _put(sockets, int(listening.family == socket.AF_INET6), listening.fileno())
            program = _load(_program(sockets))
            undo.callback(os.close, program)
            undo.callback(os.close, _bpf(_LINK_CREATE, struct.pack("<IIII", program, namespace, _ATTACH_SK_LOOKUP, 0)))
            self._undo = undo.pop_all()

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets, and detach the program."""
        self._undo.close()


def _listen() -> list[socket.socket]:
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)]
    with suppress(OSError):  # a namespace may have no IPv6
        listeners.append(socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=_BACKLOG))
    for listening in listeners:
        listening.setblocking(False)
    return listeners


def _put(sockets: int, key: int, listening: int) -> None:
    at, value = ctypes.c_uint32(key), ctypes.c_uint64(listening)
    _bpf(_MAP_UPDATE, struct.pack("<I4xQQQ", sockets, ctypes.addressof(at), ctypes.addressof(value), 0))


def _load(code: bytes) -> int:
    text, license_ = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"Apache-2.0")
    where = struct.pack("<IIQQ", _SK_LOOKUP, len(code) // 8, ctypes.addressof(text), ctypes.addressof(license_))
    # No verifier log; no version; no flags; a name; no interface; the attach type.
    return _bpf(_PROG_LOAD, where + struct.pack("<IIQII16sII", 0, 0, 0, 0, 0, b"hawse_loopback", 0, _ATTACH_SK_LOOKUP))


def _bpf(command: int, attributes: bytes) -> int:
    memory = ctypes.create_string_buffer(attributes, _ATTRIBUTES)
    answer: int = libc.syscall(_SYS_BPF, command, memory, _ATTRIBUTES)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "bpf")
    return answer


def _program(sockets: int) -> bytes:
    """The instructions (Linux Documentation/bpf/standardization/instruction-set.rst): the map's socket of the address's
    family for TCP to 127.0.0.1 or ::1, else the kernel's usual lookup. Pure."""
    load, store, move, set_, add, load_map = 0x61, 0x62, 0xBF, 0xB7, 0x07, 0x18
    equal, unequal = 0x16, 0x56  # comparisons of the lower 32 bits, the size of the loaded values
    null, go, call, leave = 0x15, 0x05, 0x85, 0x95
    one, loopback4 = (int.from_bytes(socket.inet_aton(ip), "little") for ip in ("0.0.0.1", "127.0.0.1"))
    ours = [
        _step(load, 2, 1, _PROTOCOL), _step(unequal, 2, value=socket.IPPROTO_TCP, jump="pass"),
        _step(load, 2, 1, _FAMILY), _step(equal, 2, value=socket.AF_INET6, jump="six"),
        _step(load, 2, 1, _LOCAL_IP4), _step(unequal, 2, value=loopback4, jump="pass"),
        _step(store, 10, offset=-4, value=0), _step(go, jump="choose"),
    ]  # fmt: skip
    six = [
        step
        for word, value in enumerate((0, 0, 0, one))
        for step in (_step(load, 2, 1, _LOCAL_IP6 + 4 * word), _step(unequal, 2, value=value, jump="pass"))
    ]
    six += [_step(store, 10, offset=-4, value=1)]
    choose = [
        _step(move, 6, 1),
        _step(load_map, 1, 1, value=sockets), _step(0),  # the instruction has 16 bytes, the size of two
        _step(move, 2, 10), _step(add, 2, value=-4), _step(call, value=_MAP_LOOKUP_ELEM),
        _step(null, 0, value=0, jump="pass"),
        _step(move, 7, 0),
        _step(move, 1, 6), _step(move, 2, 0), _step(set_, 3, value=0), _step(call, value=_SK_ASSIGN),
        _step(move, 1, 7), _step(call, value=_SK_RELEASE),
    ]  # fmt: skip
    steps = [*ours, *six, *choose, _step(set_, 0, value=_PASS), _step(leave)]
    labels = {"six": len(ours), "choose": len(ours) + len(six), "pass": len(steps) - 2}
    code = b""
    for number, (operation, registers, offset, value, jump) in enumerate(steps):
        code += struct.pack("<BBhi", operation, registers, labels[jump] - number - 1 if jump else offset, value)
    return code


def _step(
    operation: int, target: int = 0, source: int = 0, offset: int = 0, *, value: int = 0, jump: str = ""
) -> tuple[int, int, int, int, str]:
    return operation, target | source << 4, offset, value, jump
