"""The limits of the link (docs/link.md): the last value that is allowed and the first that is refused.

The tests contain the numbers as literals: both ends of the link, and every implementation, rely on them.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from hawse.errors import DeviceError, HawseError, LinkError, from_wire
from hawse.link import flow, frames, messages, streams
from hawse.link.frames import CALL, CREDIT, DATA, EOF, EVENT, FROM_GUEST, HEADER, REPLY, Decoder


def decoded(stream: int, kind: int, length: int) -> list[frames.Frame]:
    return Decoder().feed(HEADER.pack(stream, kind, length) + bytes(length))


@pytest.mark.parametrize(
    ("stream", "kind", "least", "greatest"),
    [
        (0, CALL, 2, 4_194_304), (0, EVENT, 2, 4_194_304), (1, DATA, 1, 65_536), (1, CREDIT, 4, 4), (1, EOF, 0, 0),
        (268_435_456, DATA, 1, 65_536),
    ],
)  # fmt: skip
def test_minimum_and_maximum_frame_lengths(stream: int, kind: int, least: int, greatest: int) -> None:
    for length in (least, greatest):
        assert decoded(stream, kind, length) == [(stream, kind, bytes(length))]
        assert frames.encode(stream, kind, bytes(length))[:9] == HEADER.pack(stream, kind, length)
    for length in (least - 1, greatest + 1):
        if length >= 0:
            with pytest.raises(LinkError, match=f"with {length} bytes, allowed are {least} to {greatest}"):
                frames.encode(stream, kind, bytes(length))


def test_maximum_stream_id() -> None:
    with pytest.raises(LinkError, match="on stream 2147483649"):
        decoded(2_147_483_649, DATA, 1)


def test_sender_has_a_window_of_256_kib() -> None:
    sender = flow.SendWindow()
    assert sender.available == 262_144
    sender.spend(262_144)
    assert sender.available == 0
    with pytest.raises(LinkError, match="1 bytes sent with a credit of 0"):
        sender.spend(1)
    sender.grant(262_144)
    assert sender.available == 262_144


def test_receiver_returns_credit_for_a_quarter_of_the_window() -> None:
    receiver = flow.ReceiveWindow()
    receiver.receive(262_144)
    assert receiver.consume(65_535) == 0
    assert receiver.consume(1) == 65_536
    assert receiver.consume(65_536) == 65_536
    receiver.receive(131_072)
    with pytest.raises(LinkError):
        receiver.receive(1)


def test_a_process_has_64_streams() -> None:
    assert len(streams.directions(["both"] * 61)) == 64
    for wrong in (["in"] * 62, "in", None, ["in", "sideways"]):
        with pytest.raises(LinkError):
            streams.directions(wrong)


def test_descriptors_are_read_or_written_by_direction() -> None:
    directions = streams.directions(["in", "out", "both"])
    assert streams.read_by(directions) == [0, 3, 5]
    assert streams.written_by(directions) == [1, 2, 4, 5]


def call(**other: Any) -> bytes:
    return json.dumps({"id": 1, "method": "start", "params": {}} | other).encode()


@pytest.mark.parametrize("other", [{"id": 0}, {"id": 2**53 - 1}, {"method": "m"}, {"method": "m" * 64}])
def test_calls_at_their_limits(other: dict[str, Any]) -> None:
    messages.decode_call(call(**other))


@pytest.mark.parametrize(
    "other", [{"id": -1}, {"id": 2**53}, {"id": 1.0}, {"method": ""}, {"method": "m" * 65}, {"method": 7},
              {"method": ["m"]}, {"params": None}]
)  # fmt: skip
def test_calls_beyond_their_limits(other: dict[str, Any]) -> None:
    with pytest.raises(LinkError):
        messages.decode_call(call(**other))


def test_results_and_events_arrive() -> None:
    [(_, _, payload)] = Decoder().feed(messages.encode_result(9, ["a"]))
    assert messages.decode_reply(payload) == (9, ["a"], None)
    [(_, _, payload)] = Decoder().feed(messages.encode_event("exit", {"code": 3}))
    assert messages.decode_event(payload) == ("exit", {"code": 3})


@pytest.mark.parametrize(
    ("code", "expected"),
    [(1, 1), (255, 255), (0, 127), (256, 127), (-1, 127), (True, 127), ("3", 127), (7.0, 127), (None, 127)],
)
def test_exit_codes_of_a_peers_error(code: object, expected: int) -> None:
    """An impossible code is replaced by that of the error's class."""
    assert from_wire({"kind": "CommandError", "message": "m", "exit_code": code}).exit_code == expected


def test_texts_of_a_peers_error_have_no_terminal_control_characters() -> None:
    wire = {"kind": "DeviceError", "message": "a\x1b[2Jb\nc", "hint": "h\td", "evidence": "one\ntwo\r\x07"}
    error = from_wire(wire)
    assert isinstance(error, DeviceError)
    assert (error.message, error.hint, error.evidence) == ("a?[2Jb?c", "h?d", "one\ntwo??")
    assert len(from_wire({"message": "m" * 20_000}).message) == 16_384
    assert from_wire({"message": 7, "kind": ["x"]}).message == "unknown error"


def test_hint_is_in_brackets() -> None:
    assert HawseError("it failed", hint="try again").sentence() == "it failed [try again]"
    assert HawseError("it failed").sentence() == "it failed"


@pytest.mark.parametrize(("kind", "most"), [(REPLY, 1024 * 1024), (EVENT, 128 * 1024)])
def test_monitor_accepts_smaller_messages_than_the_guest(kind: int, most: int) -> None:
    """The header decides, before any payload has arrived."""
    assert Decoder(FROM_GUEST).feed(HEADER.pack(0, kind, most)) == []
    with pytest.raises(LinkError, match=f"frame of type {kind} with {most + 1} bytes, allowed are {most}"):
        Decoder(FROM_GUEST).feed(HEADER.pack(0, kind, most + 1))
    assert Decoder().feed(HEADER.pack(0, kind, most + 1)) == []
