"""The system call filter of a confined QEMU, tested by an interpreter of its BPF program."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.jail.seccomp import ALLOWED, program
from hawse.proxy import system_calls

X86_64, I386 = 0xC000003E, 0x40000003
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026
SOCKET = 41
UNIX, INET, NETLINK, VSOCK = 1, 2, 16, 40


def judge(number: int, *, architecture: int = X86_64, first: int = 0, code: bytes = b"") -> int:
    """The filter's verdict on a system call (seccomp(2), struct seccomp_data)."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, first, *[0] * 5)
    instructions = list(struct.iter_unpack("HBBI", code or program()))
    at, accumulator = 0, 0
    while True:
        operation, yes, no, value = instructions[at]
        at += 1
        if operation == 0x20:
            [accumulator] = struct.unpack_from("=I", data, value)
        elif operation in (0x15, 0x45):
            at += yes if (accumulator == value if operation == 0x15 else accumulator & value) else no
        else:
            assert operation == 0x06, "an instruction that the filter does not need"
            return int(value)


@pytest.mark.parametrize("name", sorted(set(ALLOWED) - {"clone", "prctl", "socket", "socketpair"}))
def test_calls_that_qemu_needs_are_allowed(name: str) -> None:
    assert judge(ALLOWED[name], first=INET) == ALLOW


@given(st.integers(0, 2**32 - 1))
def test_all_other_calls_fail_with_enosys(number: int) -> None:
    if number not in ALLOWED.values():
        assert judge(number) == ENOSYS


OF_USE = {
    "ptrace": 101, "bpf": 321, "mount": 165, "pivot_root": 155, "unshare": 272, "setns": 308, "init_module": 175,
    "finit_module": 313, "fork": 57, "clone3": 435, "vfork": 58, "setuid": 105, "setresuid": 117, "mknod": 133,
    "mknodat": 259,
    "perf_event_open": 298, "open_by_handle_at": 304, "process_vm_readv": 310, "io_uring_setup": 425,
    "write of x32": 0x40000000 | 1,
}  # fmt: skip


@pytest.mark.parametrize("number", OF_USE.values(), ids=OF_USE)
def test_calls_that_are_useful_to_an_attacker_fail_with_enosys(number: int) -> None:
    assert judge(number) == ENOSYS


@pytest.mark.parametrize(("family", "answer"), [(UNIX, ALLOW), (INET, EPERM), (NETLINK, EPERM), (VSOCK, EPERM)])
def test_only_unix_sockets_are_allowed(family: int, answer: int) -> None:
    assert judge(SOCKET, first=family) == answer


@pytest.mark.parametrize(
    ("flags", "answer"),
    [(0x3D0F00, ALLOW), (0x1200011, EPERM), (0x11, EPERM), (0x4111, EPERM), (0x10000000, EPERM)],
    ids=["thread", "fork", "fork by hand", "vfork", "user namespace"],
)
def test_clone_can_create_threads_but_no_processes(flags: int, answer: int) -> None:
    assert judge(ALLOWED["clone"], first=flags) == answer
    assert judge(435) == ENOSYS, "clone3"


PRCTL = {
    "set the signal for the parent's death": (1, EPERM), "be dumpable": (4, EPERM), "keep capabilities": (8, EPERM),
    "name a thread": (15, ALLOW), "install a filter": (22, ALLOW), "set the timer slack": (29, ALLOW),
    "give up privileges": (38, ALLOW), "raise an ambient capability": (47, EPERM),
}  # fmt: skip


@pytest.mark.parametrize(("option", "answer"), PRCTL.values(), ids=PRCTL)
def test_prctl_cannot_undo_the_jail(option: int, answer: int) -> None:
    """Without its parent-death signal, QEMU could outlive its monitor."""
    assert judge(ALLOWED["prctl"], first=option) == answer


PROXY_HAS_NOT = (
    "openat", "socket", "socketpair", "execve", "prctl", "kill", "tgkill", "newfstatat", "memfd_create", "seccomp",
    "prlimit64",
)  # fmt: skip


@pytest.mark.parametrize("name", PROXY_HAS_NOT)
def test_proxys_filter_allows_fewer_calls_than_qemus(name: str) -> None:
    assert judge(ALLOWED[name], first=UNIX, code=program(system_calls.ALLOWED)) == ENOSYS


def test_proxy_cannot_connect_or_create_namespaces() -> None:
    filter_program = program(system_calls.ALLOWED)
    for number in (42, 49, 272, 308, 321, 250, 435):  # connect, bind, unshare, setns, bpf, keyctl, clone3
        assert judge(number, code=filter_program) == ENOSYS
    assert judge(ALLOWED["clone"], first=0x3D0F00, code=filter_program) == ALLOW
    assert judge(ALLOWED["clone"], first=0x1200011, code=filter_program) == EPERM


def test_calls_of_another_architecture_kill_the_process() -> None:
    assert judge(ALLOWED["read"], architecture=I386) == KILL


def test_number_of_allowed_calls_is_small() -> None:
    assert len(ALLOWED) == len(set(ALLOWED.values())) < 100
