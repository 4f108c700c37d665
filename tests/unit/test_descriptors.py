"""--preserve-fds: the descriptors that are passed, their directions, and the errors about others."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.commands.descriptors import Descriptor, activated, direction, inspect, preserve, refuse
from hawse.errors import UsageError
from hawse.link.streams import BOTH, IN, MAX_PRESERVED, OUT

R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
SOCKET = Descriptor(3, "socket:[7]", stat.S_IFSOCK, RW, inode=(8, 7), stream=True, connected=True)
PIPE = Descriptor(3, "pipe:[7]", stat.S_IFIFO, R, inode=(13, 7))
NULL = Descriptor(3, "/dev/null", stat.S_IFCHR, RW, inode=(5, 4), device=(1, 3))
TERMINAL = Descriptor(3, "/dev/pts/0", stat.S_IFCHR, RW, inode=(24, 3), device=(136, 0), terminal=True)
FILE = Descriptor(3, "/srv/file", stat.S_IFREG, R, inode=(1, 7))


def anonymous(target: str) -> Descriptor:
    return Descriptor(3, target, 0, RW)


@pytest.mark.parametrize(
    ("descriptor", "answer"),
    [
        (PIPE, IN),
        (replace(PIPE, flags=W), OUT),
        (replace(PIPE, flags=W | os.O_NONBLOCK), OUT),
        (SOCKET, BOTH),
        (NULL, BOTH),
        (replace(NULL, flags=W), OUT),
        (replace(NULL, device=(1, 9), flags=R), IN),
        (TERMINAL, BOTH),
        (replace(TERMINAL, flags=W), OUT),
        (FILE, IN),
        (replace(FILE, flags=W), OUT),
        (replace(FILE, flags=W | os.O_APPEND), OUT),
    ],
)
def test_byte_stream_is_passed_in_the_direction_of_its_access_mode(descriptor: Descriptor, answer: str) -> None:
    assert refuse(descriptor) is None
    assert direction(descriptor) == answer


@pytest.mark.parametrize(
    ("descriptor", "words"),
    [
        (replace(SOCKET, listening=True, connected=False), "a listening socket"),
        (replace(SOCKET, stream=False), "a socket with message boundaries"),
        (replace(SOCKET, connected=False), "a socket that is not connected"),
        (replace(PIPE, flags=RW), "a pipe open for reading and writing"),
        (replace(FILE, flags=RW), "a file open for reading and writing"),
        (replace(FILE, flags=R | os.O_PATH), "an O_PATH descriptor"),
        (replace(FILE, target="/memfd:x (deleted)"), "a memfd"),
        (replace(FILE, mode=stat.S_IFDIR), "a directory"),
        (replace(FILE, mode=stat.S_IFBLK), "not a byte stream (/srv/file)"),
        (replace(NULL, target="/dev/full", device=(1, 7)), "the device /dev/full"),
        (replace(NULL, target="/dev/fuse", device=(10, 229)), "the device /dev/fuse"),
        (anonymous("anon_inode:[eventpoll]"), "an object of the host kernel (eventpoll)"),
        (anonymous("anon_inode:bpf-prog"), "an object of the host kernel (bpf-prog)"),
        (replace(FILE, target="net:[4026531840]"), "an object of the host kernel (net:[4026531840])"),
        (replace(FILE, target="pidfd:[12]"), "an object of the host kernel (pidfd:[12])"),
    ],
)
def test_other_descriptors_are_refused_with_their_kind(descriptor: Descriptor, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        preserve(1, look=lambda number: descriptor if number == 3 else None)
    assert caught.value.message == (f"--preserve-fds: descriptor 3 cannot be passed into a VM: it is {words}")
    assert caught.value.hint


def among(*descriptors: Descriptor) -> Callable[[int], Descriptor | None]:
    """Only these descriptors are open."""
    return {each.number: each for each in descriptors}.get


STDIN = replace(PIPE, number=0, inode=(13, 1))


@pytest.mark.parametrize(
    ("count", "listening", "descriptors", "words"),
    [
        (-1, 0, (), "--preserve-fds -1: negative number"),
        (1, 0, (), "--preserve-fds: descriptor 3 is not open"),
        (2, 0, (SOCKET,), "--preserve-fds: descriptor 4 is not open"),
        (0, 1, (), "LISTEN_FDS: descriptor 3 is not open"),
        (1, 1, (SOCKET,), "--preserve-fds: descriptor 4 is not open"),
        (0, 1, (replace(SOCKET, listening=True),), "LISTEN_FDS: descriptor 3 cannot be passed into a VM"),
        (62, 0, (), "--preserve-fds 62: at most 61 descriptors can be passed"),
        (2**70, 0, (), f"--preserve-fds {2**70}: at most 61 descriptors can be passed"),
        (31, 31, (), "--preserve-fds 31 and LISTEN_FDS 31: at most 61 descriptors can be passed"),
        (1, 0, (replace(STDIN, inode=PIPE.inode), PIPE), "descriptor 3 reads from the same source as descriptor 0"),
        (2, 0, (SOCKET, replace(SOCKET, number=4)), "descriptor 4 reads from the same source as descriptor 3"),
        (
            1, 0, (replace(TERMINAL, number=0, inode=(5, 9), device=(5, 0)), TERMINAL),
            "descriptor 3 reads from the same source as descriptor 0",
        ),
    ],
)  # fmt: skip
def test_descriptor_that_cannot_be_passed_is_named(
    count: int, listening: int, descriptors: tuple[Descriptor, ...], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        preserve(count, listening=listening, look=among(*descriptors))
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("descriptors", "answer"),
    [
        ((), ()),
        ((STDIN, PIPE, replace(PIPE, number=4, flags=W)), (IN, OUT)),
        ((TERMINAL, replace(TERMINAL, number=4, flags=W)), (BOTH, OUT)),
        ((replace(NULL, number=0), NULL, replace(NULL, number=4)), (BOTH, BOTH)),
        (tuple(replace(PIPE, number=3 + n, inode=(13, n)) for n in range(MAX_PRESERVED)), (IN,) * MAX_PRESERVED),
    ],
)
def test_several_descriptors_are_passed(descriptors: tuple[Descriptor, ...], answer: tuple[str, ...]) -> None:
    assert preserve(len(answer), look=among(*descriptors)) == answer


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 0),
        ({"LISTEN_FDS": "2"}, 0),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "8"}, 0),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "7"}, 2),
        ({"LISTEN_FDS": "-2", "LISTEN_PID": "7"}, 0),
        ({"LISTEN_FDS": "two", "LISTEN_PID": "7"}, 0),
    ],
)
def test_descriptors_of_systemd_belong_to_one_process(environment: dict[str, str], count: int) -> None:
    assert activated(environment, 7) == count


@given(st.builds(Descriptor, st.integers(3, 63), st.text(), st.integers(0, 2**16 - 1), st.integers(0, 2**31 - 1)))
def test_any_descriptor_is_accepted_or_refused(descriptor: Descriptor) -> None:
    refusal = refuse(descriptor)
    assert direction(descriptor) in (IN, OUT, BOTH) if refusal is None else all(refusal)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_inspected_descriptors_match_the_kernel(opened: ExitStack) -> None:
    def look(fd: int, *, owned: bool = False) -> Descriptor:
        if not owned:
            opened.callback(os.close, fd)
        os.set_inheritable(fd, True)
        descriptors = inspect(fd)
        assert descriptors is not None
        return descriptors

    ours, theirs = (opened.enter_context(end) for end in socket.socketpair())
    idle = opened.enter_context(socket.socket())
    messages = opened.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    reading, writing = os.pipe()
    master, slave = os.openpty()
    directory = opened.enter_context(tempfile.TemporaryDirectory())
    handed = {
        look(reading): IN, look(writing): OUT, look(ours.fileno(), owned=True): BOTH, look(slave): BOTH,
        look(master): BOTH, look(os.open("/dev/null", W)): OUT, look(os.open(f"{directory}/new", W | os.O_CREAT)): OUT,
        look(os.open(f"{directory}/new", R)): IN,
    }  # fmt: skip
    for descriptor, answer in handed.items():
        assert (refuse(descriptor), direction(descriptor)) == (None, answer)
    refused = {
        look(idle.fileno(), owned=True): "not connected", look(messages.fileno(), owned=True): "message boundaries",
        look(listener.fileno(), owned=True): "listening", look(os.open(directory, R)): "directory",
        look(os.memfd_create("x")): "memfd", look(os.eventfd(0)): "eventfd", look(os.pidfd_open(os.getpid())): "pidfd",
        look(os.open("/proc/self/ns/net", R)): "net:", look(os.open(directory, os.O_PATH)): "O_PATH",
        look(os.open("/dev/full", W)): "/dev/full", look(os.open(f"{directory}/new", RW)): "reading and writing",
    }  # fmt: skip
    for descriptor, words in refused.items():
        refusal = refuse(descriptor)
        assert refusal is not None
        assert words in refusal[0]
    assert inspect(theirs.fileno()) is None, "a descriptor that execve(2) closes was not inherited"
    assert inspect(1000) is None
