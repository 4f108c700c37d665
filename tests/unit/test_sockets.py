"""UNIX sockets in directories whose path exceeds the maximum length of a socket address."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hawse.state import sockets


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def directory(tmp_path: Path) -> str:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    return str(directory)


def test_socket_is_reached_through_a_descriptor_of_its_directory(directory: str) -> None:
    before = descriptors()
    with sockets.bind(directory, "s") as listener, sockets.connect(directory, "s") as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"hello")
            assert server.recv(5) == b"hello"
            assert descriptors() == before + 3, "the descriptor of the directory is closed"


@pytest.mark.parametrize("act", [sockets.bind, sockets.connect])
def test_socket_that_cannot_be_created_leaves_no_descriptor(directory: str, act: object) -> None:
    before = descriptors()
    assert callable(act)
    for place in (f"{directory}/none", f"{directory}/file", directory if act is sockets.connect else "/proc"):
        Path(f"{directory}/file").touch()
        with pytest.raises(OSError, match=r"\[Errno"):
            act(place, "s")
    assert descriptors() == before
