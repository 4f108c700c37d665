"""Sockets in directories whose path is longer than a socket's may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hawse.state import sockets


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def directory(tmp_path: Path) -> str:
    made = tmp_path / ("d" * 120)
    made.mkdir()
    return str(made)


def test_a_socket_is_reached_by_its_directory(directory: str) -> None:
    before = descriptors()
    with sockets.bind(directory, "s") as listener, sockets.connect(directory, "s") as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"hello")
            assert server.recv(5) == b"hello"
            assert descriptors() == before + 3, "the directory is closed"


@pytest.mark.parametrize("act", [sockets.bind, sockets.connect])
def test_a_socket_that_cannot_be_made_leaves_no_descriptor(directory: str, act: object) -> None:
    before = descriptors()
    assert callable(act)
    for place in (f"{directory}/none", f"{directory}/file", directory if act is sockets.connect else "/proc"):
        Path(f"{directory}/file").touch()
        with pytest.raises(OSError, match=r"\[Errno"):
            act(place, "s")
    assert descriptors() == before
