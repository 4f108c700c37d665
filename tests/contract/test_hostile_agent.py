"""An agent that violates the link's protocol towards the real monitor, in every way and in every phase of a container.

The monitor continues, or ends the sandbox with a reason. In both cases its log contains no traceback, the state is
valid JSON, and `delete --force` leaves nothing. QEMU and the guest are fakes; floods are in test_hostile_guest.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import VmError
from hawse.link import messages
from hawse.link.flow import WINDOW, encode_credit
from hawse.link.frames import CALL, CREDIT, DATA, EOF, EVENT, HEADER, MAX_DATA, REPLY, encode
from hawse.link.streams import STREAMS
from tests.support.hostile import INIT, SERVER, Scene, play
from tests.support.monitor import new_network

STDIN, STDOUT, STDERR = (INIT * STREAMS + number for number in range(3))
NONSENSE = "protocol violation by the guest agent: link: "
CLOSED = "the guest closed the link"
QUERY = {"server": SERVER, "transport": "udp", "connection": 1}


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    with new_network() as path:
        yield path


def event(name: str, **params: Any) -> bytes:
    return messages.encode_event(name, params)


def message(kind: int, value: object) -> bytes:
    return encode(0, kind, value if isinstance(value, bytes) else json.dumps(value).encode())


def header(stream: int, kind: int, length: int) -> bytes:
    return HEADER.pack(stream, kind, length)


def unusable(name: str, why: str) -> str:
    return f"the event {name} is unusable: {why}"


VIOLATIONS = {
    "frame of type 0": (header(0, 0, 2) + b"{}", "frame of unknown type 0"),
    "frame of type 255": (header(0, 255, 0), "frame of unknown type 255"),
    "frame that only the host sends": (message(CALL, {"id": 1, "method": "x", "params": {}}), "the guest sent a frame"),
    "reply that is too long": (header(0, REPLY, 2**20 + 1), "frame of type 2 with 1048577 bytes"),
    "event that is too long": (header(0, EVENT, 2**17 + 1), "frame of type 3 with 131073 bytes"),
    "frame of 4 GiB": (header(STDOUT, DATA, 2**32 - 1), "frame of type 4 with 4294967295 bytes"),
    "data without bytes": (header(STDOUT, DATA, 0), "frame of type 4 with 0 bytes"),
    "end with bytes": (header(STDOUT, EOF, 1), "frame of type 6 with 1 bytes"),
    "credit of three bytes": (header(STDIN, CREDIT, 3), "frame of type 5 with 3 bytes"),
    "data on the control stream": (header(0, DATA, 1), "frame of type 4 on stream 0"),
    "event on a data stream": (header(STDOUT, EVENT, 2), "frame of type 3 on stream 65"),
    "stream that no process can have": (header(2**31 + 1, DATA, 1), "frame of type 4 on stream 2147483649"),
    "stream of a process that was never made": (encode(9 * STREAMS, DATA, b"x"), "frame for the unknown stream 576"),
    "data on stdin": (encode(STDIN, DATA, b"x"), "the guest sent data on stream 0"),
    "data on a descriptor that was not passed": (encode(STDIN + 3, DATA, b"x"), "the guest sent data on stream 3"),
    "data after its end": (encode(STDOUT, EOF) + encode(STDOUT, DATA, b"x"), "the guest sent data on stream 1"),
    "end twice": (encode(STDERR, EOF) * 2, "the guest sent data on stream 2"),
    "data without credit": (encode(STDOUT, DATA, bytes(MAX_DATA)) * 9, "65536 bytes sent with a credit of 0"),
    "credit of zero": (encode(STDIN, CREDIT, encode_credit(0)), "credit of 0 bytes"),
    "credit that was not spent": (encode(STDIN, CREDIT, encode_credit(1)), "credit of 1 bytes"),
    "credit of 4 GiB": (encode(STDIN, CREDIT, encode_credit(2**32 - 1)), "credit of 4294967295 bytes"),
    "credit for stdout": (encode(STDOUT, CREDIT, encode_credit(1)), "the guest gave credit for stream 1"),
    "text": (message(EVENT, b"hello, world"), "control message that is not JSON"),
    "bytes that are no text": (message(EVENT, b"\xff\xfe\xfd"), "control message that is not JSON"),
    "nesting that can be parsed": (message(EVENT, b"[" * 900 + b"]" * 900), "control message that is not JSON"),
    "deep nesting": (message(EVENT, b"[" * 100_000), "control message that is not JSON"),
    "number of 5000 digits": (message(EVENT, b'{"kills":' + b"9" * 5000 + b"}"), "control message that is not JSON"),
    "list as an event": (message(EVENT, [1]), "control message that is not a JSON object"),
    "event without a name": (message(EVENT, {"params": {}}), "control message without a usable event"),
    "event with a long name": (message(EVENT, {"event": "x" * 65, "params": {}}), "control message without a usable"),
    "event without parameters": (message(EVENT, {"event": "oom"}), "control message whose params are not an object"),
    "event with an escape sequence": (event("\x1b]0;owned\x07\n"), "unknown event ?]0;owned??"),
    "event with a lone surrogate": (event("\ud800"), "unknown event ?"),
    "hello again": (event("hello", protocol=2), "a second hello"),
    "reply without a number": (message(REPLY, {"result": 1}), "control message without a usable id"),
    "reply with a negative number": (message(REPLY, {"id": -1}), "control message without a usable id"),
    "reply with a number that is true": (message(REPLY, {"id": True}), "control message without a usable id"),
    "reply with a fraction as its number": (message(REPLY, {"id": 1.0}), "control message without a usable id"),
    "exit of a process that was never made": (event("exit", process=7, code=0), "exit of an unknown process"),
    "exit of process 0": (event("exit", process=0, code=0), "exit of an unknown process"),
    "exit of a negative process": (event("exit", process=-1, code=0), "exit of an unknown process"),
    "exit with code 256": (event("exit", process=INIT, code=256), unusable("exit", "code: Expected `int` <= 255")),
    "exit with code -1": (event("exit", process=INIT, code=-1), unusable("exit", "code: Expected `int` >= 0")),
    "exit with NaN": (
        event("exit", process=INIT, code=float("nan")), unusable("exit", "code: Expected `int`, got `float`")
    ),
    "exit with a text": (event("exit", process=INIT, code="0"), unusable("exit", "code: Expected `int`, got `str`")),
    "exit with true": (event("exit", process=INIT, code=True), unusable("exit", "code: Expected `int`, got `bool`")),
    "exit without a code": (event("exit", process=INIT), unusable("exit", "Object missing required field `code`")),
    "oom with a negative count": (
        event("oom", container="c1", kills=-1), unusable("oom", "kills: Expected `int` >= 1")
    ),
    "oom with a huge count": (
        event("oom", container="c1", kills=2**63), unusable("oom", "kills: Expected `int` <= 9223372036854775807")
    ),
    "oom with infinity": (
        event("oom", container="c1", kills=float("inf")), unusable("oom", "kills: Expected `int`, got `float`")
    ),
    "oom of a list": (
        event("oom", container=["c1"], kills=1), unusable("oom", "container: Expected `str`, got `array`")
    ),
    "query with another transport": (
        event("query", **QUERY | {"transport": "http"}), unusable("query", "transport: Invalid enum value 'http'")
    ),
    "query with a list as transport": (
        event("query", **QUERY | {"transport": []}), unusable("query", "transport: Expected `str`, got `array`")
    ),
    "query with number 0": (
        event("query", **QUERY | {"connection": 0}), unusable("query", "connection: Expected `int` >= 1")
    ),
    "query with a huge number": (
        event("query", **QUERY | {"connection": 2**53}),
        unusable("query", "connection: Expected `int` <= 9007199254740991"),
    ),
    "query with a server that is no text": (
        event("query", **QUERY | {"server": None}), unusable("query", "server: Expected `str`, got `null`")
    ),
    "query with a number of more than 64 bits": (
        event("query", **QUERY | {"connection": 2**70}),
        unusable("query", "connection: Expected `int` <= 9007199254740991"),
    ),
    "query with a transport that is no text": (
        event("query", **QUERY | {"transport": "\ud800"}), unusable("query", "a name or a text is not Unicode")
    ),
    "exit of a process of more than 64 bits": (event("exit", process=2**70, code=0), "exit of an unknown process"),
    "event with a field that is no text": (
        event("exit", process=INIT, code=0, **{"\ud800": 1}), unusable("exit", "a name or a text is not Unicode")
    ),
    "too many queries": (event("query", **QUERY) * 65, "more than 64 connections to name servers at once"),
}  # fmt: skip


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violation_of_the_protocol_ends_the_sandbox(tmp_path: Path, network: str, name: str) -> None:
    """The reason is in the state, the proxy exits with 255, and QEMU has ended."""
    frames, reason = VIOLATIONS[name]

    async def story(scene: Scene) -> None:
        machine = await scene.start()
        with suppress(ConnectionError):  # the monitor may close the link before it has read everything
            machine.write(frames)
        await scene.prove_ended(NONSENSE + reason)

    play(tmp_path, network, story)


TOLERATED = {
    "reply that nobody waits for": messages.encode_result(2**53 - 1, None),
    "second reply to a call": messages.encode_result(1, None) + messages.encode_error(1, VmError("x")),
    "reply with an error of another form": message(REPLY, {"id": 1, "error": [[]]}),
    "oom of an unknown container": event("oom", container="../c2\0\n", kills=1),
    "oom of a container with a lone surrogate": event("oom", container="\ud800", kills=1),
    "oom counts that fall": event("oom", container="c1", kills=2**63 - 1) + event("oom", container="c1", kills=1),
    "query for another server": event("query", **QUERY | {"server": "8.8.8.8"}),
    "query for a server that is a path": event("query", **QUERY | {"server": "/etc/passwd\0"}),
    "queries with the same number": event("query", **QUERY) * 60,
    "stream of process 0": encode(STREAMS - 1, DATA, b"x"),
    "as much data as there is credit": encode(STDOUT, DATA, bytes(MAX_DATA)) * (WINDOW // MAX_DATA),
    "escape sequences as data": encode(STDERR, DATA, b"\x1b[2J\0\xff"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLERATED)
def test_message_without_a_meaning_changes_nothing(tmp_path: Path, network: str, name: str) -> None:
    async def story(scene: Scene) -> None:
        machine = await scene.start()
        machine.write(TOLERATED[name])
        await scene.prove_running()
        state = scene.monitor.store.read()
        assert (state["status"], "failure" in state) == ("running", False)
        assert state.get("oomKills", 0) == (2**63 - 1 if name == "oom counts that fall" else 0)

    play(tmp_path, network, story)
