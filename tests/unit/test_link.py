"""The link's frames, credit and control messages: every size is limited and every field is checked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.errors import DeviceError, LinkError, from_wire
from hawse.link import frames, messages
from hawse.link.flow import WINDOW, ReceiveWindow, SendWindow, decode_credit, encode_credit
from hawse.link.frames import CALL, CREDIT, DATA, EOF, EVENT, HEADER, MAX_CONTROL, MAX_DATA, MAX_STREAM, REPLY, Decoder

data_frames = st.tuples(st.integers(1, MAX_STREAM), st.just(DATA), st.binary(min_size=1, max_size=2000))
control_frames = st.tuples(st.just(0), st.sampled_from((CALL, REPLY, EVENT)), st.binary(min_size=2, max_size=2000))
some_frames = st.lists(st.one_of(data_frames, control_frames), max_size=20)


@given(some_frames, st.lists(st.integers(1, 50), min_size=1))
def test_frames_are_decoded_from_pieces_of_any_size(sent: list[frames.Frame], cuts: list[int]) -> None:
    wire = b"".join(frames.encode(*frame) for frame in sent)
    decoder, received, at, turn = Decoder(), [], 0, 0
    while at < len(wire):
        step = cuts[turn % len(cuts)]
        received += decoder.feed(wire[at : at + step])
        at, turn = at + step, turn + 1
    assert received == sent
    assert decoder.pending == 0


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_wait_for_more(noise: bytes) -> None:
    decoder = Decoder()
    try:
        decoder.feed(noise)
    except LinkError:
        return
    assert decoder.pending <= len(noise)


@pytest.mark.parametrize(
    ("stream", "kind", "length"),
    [
        (0, DATA, 1),
        (1, CALL, 2),
        (1, 0, 1),
        (1, 99, 1),
        (1, DATA, 0),
        (1, DATA, MAX_DATA + 1),
        (0, CALL, MAX_CONTROL + 1),
        (0, CALL, 1),
        (1, CREDIT, 5),
        (1, EOF, 1),
        (MAX_STREAM + 1, DATA, 1),
    ],
)
def test_invalid_header_is_refused_before_its_payload_arrives(stream: int, kind: int, length: int) -> None:
    with pytest.raises(LinkError):
        Decoder().feed(HEADER.pack(stream, kind, length))


@given(st.lists(st.integers(1, MAX_DATA), max_size=60))
def test_sender_and_receiver_agree_on_the_credit(sizes: list[int]) -> None:
    sender, receiver = SendWindow(), ReceiveWindow()
    for size in sizes:
        if size > sender.available:
            break
        sender.spend(size)
        receiver.receive(size)
        grant = receiver.consume(size)
        if grant:
            sender.grant(decode_credit(encode_credit(grant)))
    assert 0 <= sender.available <= WINDOW


def test_sender_that_exceeds_its_credit_is_detected() -> None:
    receiver = ReceiveWindow()
    receiver.receive(WINDOW)
    with pytest.raises(LinkError, match="credit"):
        receiver.receive(1)


def test_credit_that_was_not_spent_cannot_be_granted() -> None:
    sender = SendWindow()
    sender.spend(10)
    with pytest.raises(LinkError):
        sender.grant(11)
    with pytest.raises(LinkError):
        sender.grant(0)


def test_all_consumed_bytes_are_granted_again() -> None:
    receiver, back = ReceiveWindow(), 0
    for _ in range(WINDOW // 1024):
        receiver.receive(1024)
        back += receiver.consume(1024)
    assert back > WINDOW // 2


@given(st.integers(0, 2**53 - 1), st.text(min_size=1, max_size=64), st.dictionaries(st.text(), st.integers()))
def test_calls_are_decoded_as_they_were_encoded(number: int, method: str, params: dict[str, int]) -> None:
    [(_, kind, payload)] = Decoder().feed(messages.encode_call(number, method, params))
    assert kind == CALL
    assert messages.decode_call(payload) == (number, method, params)


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"nonsense",
        b"\xff\xff",
        b"{}",
        b'{"id": true, "method": "a", "params": {}}',
        b'{"id": -1, "method": "a", "params": {}}',
        b'{"id": 1, "method": "", "params": {}}',
        b'{"id": 1, "method": "' + b"x" * 65 + b'", "params": {}}',
        b'{"id": 1, "method": "a", "params": []}',
        b"[" * 100_000,
    ],
)
def test_invalid_call_is_refused(payload: bytes) -> None:
    with pytest.raises(LinkError):
        messages.decode_call(payload)


def test_error_is_decoded_as_the_same_class() -> None:
    error = DeviceError("0000:01:00.0 is gone", hint="look", evidence="log", exit_code=3)
    [(_, _, payload)] = Decoder().feed(messages.encode_error(7, error))
    number, _, arrived = messages.decode_reply(payload)
    assert number == 7
    assert isinstance(arrived, DeviceError)
    assert (arrived.message, arrived.hint, arrived.evidence, arrived.exit_code) == (
        "0000:01:00.0 is gone", "look", "log", 3,
    )  # fmt: skip


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=5)
)
def test_any_error_object_of_a_guest_becomes_an_error(wire: object) -> None:
    error = from_wire(wire)
    assert 1 <= error.exit_code <= 255
    assert len(error.message) <= 16 * 1024
    assert error.sentence().isprintable()


def test_error_in_an_unknown_form_has_no_terminal_control_characters() -> None:
    error = from_wire("\x1b[2J\n\ud800" + "x" * 1000)
    assert error.message == "a peer reported an error in an unknown form: ?[2J??" + "x" * 194
