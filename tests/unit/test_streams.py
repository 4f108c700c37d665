"""The streams of a process at the monitor: whatever stream number the guest sends, it is checked against a table."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.errors import LinkError
from hawse.link.flow import WINDOW
from hawse.link.frames import CREDIT, DATA, EOF
from hawse.link.streams import MAX_PRESERVED, STDIO, STREAMS, directions
from hawse.monitor.agent.guest_link import GuestLink, Route


class Ends:
    """Both ends of a route, which record what they receive."""

    directions = directions(["in", "out", "both"])

    def __init__(self) -> None:
        self.to_guest: list[bytes] = []
        self.to_proxy: list[tuple[int, int, bytes]] = []

    def send(self, stream: int | bytes, kind: int = 0, payload: bytes = b"") -> None:
        if isinstance(stream, bytes):
            self.to_guest.append(stream)
        else:
            self.to_proxy.append((stream, kind, payload))


def route() -> tuple[Route, Ends]:
    ends = Ends()
    return Route(cast(GuestLink, ends), 1, ends), ends


ONE = (1).to_bytes(4, "big")


@pytest.mark.parametrize("number", [1, 2, 4, 5])
def test_guest_writes_to_streams_that_the_process_writes(number: int) -> None:
    streams, ends = route()
    streams.from_guest(number, DATA, b"x")
    streams.from_guest(number, EOF, b"")
    assert ends.to_proxy == [(number, DATA, b"x"), (number, EOF, b"")]
    streams.from_proxy(number, CREDIT, ONE)
    with pytest.raises(LinkError, match="credit"):
        route()[0].from_guest(number, DATA, bytes(WINDOW + 1))


@pytest.mark.parametrize(("kind", "payload"), [(DATA, b"x"), (EOF, b"")])
def test_data_after_the_end_is_refused(kind: int, payload: bytes) -> None:
    streams, ends = route()
    streams.from_guest(4, EOF, b"")
    with pytest.raises(LinkError, match="stream 4"):
        streams.from_guest(4, kind, payload)
    streams.from_guest(5, EOF, b"")
    assert ends.to_proxy == [(4, EOF, b""), (5, EOF, b"")]


@pytest.mark.parametrize("number", [0, 3, 5])
def test_guest_gives_credit_for_streams_that_the_process_reads(number: int) -> None:
    streams, ends = route()
    streams.from_proxy(number, DATA, b"x")
    streams.from_guest(number, CREDIT, ONE)
    assert ends.to_proxy == [(number, CREDIT, ONE)]
    with pytest.raises(LinkError, match="credit"):
        streams.from_guest(number, CREDIT, ONE)


READ_ONLY, WRITE_ONLY, ABSENT = (0, 3), (1, 2, 4), (6, 63)


@pytest.mark.parametrize(
    ("kind", "payload", "numbers"),
    [(DATA, b"x", READ_ONLY + ABSENT), (EOF, b"", READ_ONLY + ABSENT), (CREDIT, ONE, WRITE_ONLY + ABSENT)],
)
def test_unknown_stream_of_the_guest_ends_the_link(kind: int, payload: bytes, numbers: list[int]) -> None:
    streams, ends = route()
    for number in numbers:
        with pytest.raises(LinkError, match=f"stream {number}"):
            streams.from_guest(number, kind, payload)
    assert ends.to_proxy == []


@pytest.mark.parametrize(
    ("kind", "payload", "numbers"),
    [(DATA, b"x", WRITE_ONLY + ABSENT), (EOF, b"", WRITE_ONLY + ABSENT), (CREDIT, ONE, READ_ONLY + ABSENT)],
)
def test_unknown_stream_of_a_proxy_is_not_forwarded(kind: int, payload: bytes, numbers: list[int]) -> None:
    streams, ends = route()
    for number in numbers:
        with pytest.raises(KeyError):
            streams.from_proxy(number, kind, payload)
    assert ends.to_guest == []


def test_streams_are_drained_after_the_end_of_the_proxy() -> None:
    streams, ends = route()
    streams.from_guest(4, DATA, b"early")
    streams.discard()
    streams.from_guest(5, DATA, bytes(WINDOW // 4))
    assert [frame[3] for frame in ends.to_guest] == [STREAMS + 4, STREAMS + 5]
    assert ends.to_proxy == [(4, DATA, b"early")]


@given(st.lists(st.sampled_from(["in", "out", "both"]), max_size=MAX_PRESERVED))
def test_preserved_descriptors_follow_stdio(preserved: list[str]) -> None:
    assert directions(preserved) == (*STDIO, *preserved)


@pytest.mark.parametrize("preserved", [None, "in", 3, ["sideways"], [None], [["in"]], ["in"] * (MAX_PRESERVED + 1)])
def test_invalid_list_of_directions_is_refused(preserved: object) -> None:
    with pytest.raises(LinkError):
        directions(preserved)
