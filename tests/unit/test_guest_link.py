"""The monitor's end of the link with a hostile guest: messages that are forwarded, dropped, or end the sandbox."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from hawse.errors import ConfigError, HawseError, LinkError, VmError
from hawse.link import messages
from hawse.link.flow import WINDOW, encode_credit
from hawse.link.frames import CALL, CREDIT, DATA, EOF, MAX_DATA, Decoder, Frame, encode
from hawse.link.streams import BOTH, IN, OUT, STDIO, STREAMS
from hawse.monitor.agent.calls import PrepareTemplate, Start, Statistics, Trace
from hawse.monitor.agent.events import Query
from hawse.monitor.agent.guest_link import MOST_QUEUED, GuestLink, Route
from tests.support.patience import patience

FIRST = STREAMS
#: A call whose answer is null.
PING = PrepareTemplate()
QUERY = {"server": "127.0.0.11", "transport": "udp", "connection": 1}
NONSENSE = "protocol violation by the guest agent: "


@dataclass
class Taker:
    """A proxy that records what is sent to it."""

    directions: tuple[str, ...] = STDIO
    frames: list[Frame] = field(default_factory=list)

    def send(self, stream: int, kind: int, payload: bytes) -> None:
        self.frames.append((stream, kind, payload))


class Ends:
    """The monitor's end of the link, and the guest's end as a socket."""

    def __init__(self, link: GuestLink, guest: socket.socket) -> None:
        self.link, self.guest = link, guest
        self.decoder = Decoder()
        self.exits: list[tuple[int, int]] = []
        self.kills: list[tuple[str, int]] = []
        self.queries: list[Query] = []
        link.on_exit = lambda process, code: self.exits.append((process, code))
        link.on_oom = lambda container, kills: self.kills.append((container, kills))
        link.on_query = self.queries.append

    def send(self, *frames: bytes) -> None:
        self.guest.sendall(b"".join(frames))

    async def passed(self) -> None:
        """Wait until everything that the guest has sent was dispatched: a later call was answered."""
        asking = asyncio.create_task(self.link.call(PING, seconds=20))
        number = 0
        while not number:
            for _, kind, payload in await self.received():
                if kind == CALL:
                    number = messages.decode_call(payload)[0]
        self.send(messages.encode_result(number, None))
        await asking

    async def received(self) -> list[Frame]:
        """The next frame at the guest."""
        return self.decoder.feed(await asyncio.get_running_loop().sock_recv(self.guest, 65536))

    async def reason(self) -> HawseError:
        async with asyncio.timeout(patience(7)):
            return await asyncio.shield(self.link.ended)


def run(story: Callable[[Ends], Awaitable[None]]) -> None:
    async def whole() -> None:
        ours, guest = socket.socketpair()
        guest.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours)
        ends = Ends(GuestLink(reader, writer), guest)
        serving = asyncio.create_task(ends.link.run())
        try:
            async with asyncio.timeout(patience(7)):
                await story(ends)
        finally:
            guest.close()
            await serving
            writer.close()
            with suppress(ConnectionError):  # data that was on its way to the guest
                await writer.wait_closed()

    asyncio.run(whole())


def event(name: str, **params: Any) -> bytes:
    return messages.encode_event(name, params)


def unusable(name: str, why: str) -> str:
    return f"link: the event {name} is unusable: {why}"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (event("hello", protocol=1), "link: the agent speaks protocol 1, not 2"),
        (event("hello", protocol=2**53 - 1), "link: the agent speaks protocol 9007199254740991, not 2"),
        (event("hello"), unusable("hello", "Object missing required field `protocol`")),
        (event("hello", protocol=True), unusable("hello", "protocol: Expected `int`, got `bool`")),
        (event("hello", protocol=2.0), unusable("hello", "protocol: Expected `int`, got `float`")),
        (event("hello", protocol=-2), unusable("hello", "protocol: Expected `int` >= 0")),
        (event("hello", protocol=2**64), unusable("hello", "protocol: Expected `int` <= 9007199254740991")),
        (event("hello", protocol="\x1b[2J\n"), unusable("hello", "protocol: Expected `int`, got `str`")),
        (event("hello", protocol=2, kernel=6), unusable("hello", "kernel: Expected `str`, got `int`")),
        (event("exit", process=1, code=256), unusable("exit", "code: Expected `int` <= 255")),
        (event("exit", process=1, code=-1), unusable("exit", "code: Expected `int` >= 0")),
        (event("exit", process="1", code=0), unusable("exit", "process: Expected `int`, got `str`")),
        (event("exit", process=1, code=True), unusable("exit", "code: Expected `int`, got `bool`")),
        (event("exit", process=1), unusable("exit", "Object missing required field `code`")),
        (event("exit", process=0, code=0), "link: exit of an unknown process"),
        (event("exit", process=3, code=0), "link: exit of an unknown process"),
        (event("exit", process=2**70, code=0), "link: exit of an unknown process"),
        (event("exit", process=1, code=0, **{"\ud800": 1}), unusable("exit", "a name or a text is not Unicode")),
        (event("oom", container="c1", kills=0), unusable("oom", "kills: Expected `int` >= 1")),
        (event("oom", container="c1", kills=2**63), unusable("oom", "kills: Expected `int` <= 9223372036854775807")),
        (event("oom", container="c1", kills=True), unusable("oom", "kills: Expected `int`, got `bool`")),
        (event("oom", container=1, kills=1), unusable("oom", "container: Expected `str`, got `int`")),
        (event("notify", container="c1"), unusable("notify", "Object missing required field `text`")),
        (event("notify", text="READY=1"), unusable("notify", "Object missing required field `container`")),
        (event("notify", container=1, text="READY=1"), unusable("notify", "container: Expected `str`, got `int`")),
        (event("notify", container="c1", text=["READY=1"]), unusable("notify", "text: Expected `str`, got `array`")),
        (
            event("notify", container="c1", text="x" * 4097),
            unusable("notify", "text: Expected `str` of length <= 4096"),
        ),
        (event("news"), "link: unknown event news"),
        (event("\x1b[2J\n\ud800"), "link: unknown event ?[2J??"),
        (messages.encode_call(1, "create", {}), "link: the guest sent a frame of type 1"),
        (encode(3 * STREAMS + 1, DATA, b"x"), f"link: frame for the unknown stream {3 * STREAMS + 1}"),
        (encode(3 * STREAMS, EOF), f"link: frame for the unknown stream {3 * STREAMS}"),
        (encode(FIRST, DATA, b"x"), "link: the guest sent data on stream 0"),
        (encode(FIRST, EOF), "link: the guest sent data on stream 0"),
        (encode(FIRST + 3, DATA, b"x"), "link: the guest sent data on stream 3"),
        (encode(FIRST + 1, CREDIT, encode_credit(1)), "link: the guest gave credit for stream 1"),
        (encode(FIRST, CREDIT, encode_credit(1)), "link: credit of 1 bytes for a window"),
        (encode(FIRST + 1, EOF) + encode(FIRST + 1, DATA, b"x"), "link: the guest sent data on stream 1"),
        (encode(FIRST + 1, EOF) * 2, "link: the guest sent data on stream 1"),
        (encode(FIRST + 1, DATA, bytes(MAX_DATA)) * 5, "link: 65536 bytes sent with a credit of 0"),
    ],
)
def test_violation_of_the_protocol_closes_the_link(frame: bytes, message: str) -> None:
    async def story(ends: Ends) -> None:
        for process in (1, 2):
            ends.link.route(process, Taker())
        ends.guest.setblocking(True)
        await asyncio.to_thread(ends.send, frame)
        reason = await ends.reason()
        assert isinstance(reason, LinkError)
        assert reason.message.startswith(NONSENSE + message)
        assert (ends.exits, ends.kills) == ([], [])
        with pytest.raises(LinkError):
            await ends.link.call(PING, seconds=20)

    run(story)


def test_calls_fail_when_the_guest_closes_the_link() -> None:
    async def story(ends: Ends) -> None:
        waiting = [asyncio.create_task(ends.link.call(Start(container="c1"), seconds=20)) for _ in range(2)]
        while not await ends.received():
            pass
        ends.guest.shutdown(socket.SHUT_RDWR)
        for call in waiting:
            with pytest.raises(VmError, match=r"^the guest closed the link$"):
                await call
        with pytest.raises(VmError, match=r"^the guest closed the link$"):
            await ends.link.call(PING, seconds=20)

    run(story)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), BrokenPipeError(32, "broken pipe")])
def test_link_that_closes_while_the_host_writes_is_reported_as_closed(error: OSError) -> None:
    """asyncio raises the writer's error, ECONNRESET or EPIPE, from the reader as well."""

    async def story(ends: Ends) -> None:
        ends.link._reader.set_exception(error)
        assert (await ends.reason()).message == "the guest closed the link"

    run(story)


def test_bug_of_the_monitor_ends_the_sandbox() -> None:
    async def story(ends: Ends) -> None:
        def fail(_query: Query) -> None:
            raise ZeroDivisionError("a bug")

        ends.link.on_query = fail
        ends.send(event("query", **QUERY))
        assert (await ends.reason()).message == "the monitor cannot serve the link: ZeroDivisionError: a bug"

    run(story)


def test_events_reach_their_subscribers() -> None:
    async def story(ends: Ends) -> None:
        for process in (1, 2, 3):
            ends.link.route(process, Taker())
        notices: list[tuple[str, str]] = []
        ends.link.on_notify = lambda container, text: notices.append((container, text))
        ends.link.forget(2)  # its container was deleted
        ends.send(
            event("hello", protocol=2, more="x"), event("exit", process=1, code=0), event("exit", process=2, code=1),
            event("exit", process=3, code=255), event("oom", container="c1", kills=1),
            event("oom", container="c2", kills=2**63 - 1), event("query", **QUERY),
            event("notify", container="c1", text="x" * 4096),
        )  # fmt: skip
        await ends.passed()
        assert ends.link.hello.result() is None, "no data of it is kept"
        assert ends.exits == [(1, 0), (3, 255)]
        assert ends.kills == [("c1", 1), ("c2", 2**63 - 1)]
        assert ends.queries == [Query("127.0.0.11", "udp", 1)]
        assert notices == [("c1", "x" * 4096)]

    run(story)


def test_second_hello_of_the_agent_is_refused() -> None:
    async def story(ends: Ends) -> None:
        ends.send(event("hello", protocol=2), event("hello", protocol=2))
        assert (await ends.reason()).message == NONSENSE + "link: a second hello"

    run(story)


def test_answers_are_matched_by_number_and_others_dropped() -> None:
    async def story(ends: Ends) -> None:
        first = asyncio.create_task(ends.link.call(Statistics(container="c1"), seconds=20))
        second = asyncio.create_task(ends.link.call(Trace(), seconds=20))
        numbers: dict[str, int] = {}
        while len(numbers) < 2:
            numbers |= {messages.decode_call(p)[1]: messages.decode_call(p)[0] for _, _, p in await ends.received()}
        ends.send(
            messages.encode_result(99, "never asked for"),
            messages.encode_error(numbers["trace"], ConfigError("no")),
            messages.encode_result(numbers["trace"], "too late"),
            messages.encode_result(numbers["statistics"], {"pids.current": "1"}),
        )
        assert await first == {"pids.current": "1"}
        with pytest.raises(ConfigError, match=r"^no$"):
            await second
        await ends.passed()

    run(story)


def test_invalid_answer_fails_only_its_call() -> None:
    async def story(ends: Ends) -> None:
        asking = asyncio.create_task(ends.link.call(Statistics(container="c1"), seconds=20))
        [(_, _, payload)] = await ends.received()
        assert messages.decode_call(payload) == (1, "statistics", {"container": "c1"})
        ends.send(messages.encode_result(1, {"pids.current": 1}))
        with pytest.raises(VmError, match=r"^the guest's answer to statistics is unusable: .*: Expected `str`"):
            await asking
        await ends.passed()

    run(story)


def test_call_without_an_answer_times_out() -> None:
    async def story(ends: Ends) -> None:
        with pytest.raises(VmError, match=r"^the agent in the guest did not answer prepare_template within 0\.01 s$"):
            await ends.link.call(PrepareTemplate(), seconds=0.01)
        ends.send(messages.encode_result(1, "too late"))
        await ends.received()
        await ends.passed()

    run(story)


def test_data_of_streams_is_forwarded_within_the_credit() -> None:
    async def story(ends: Ends) -> None:
        takers = [Taker((*STDIO, BOTH)), Taker()]
        routes = [ends.link.route(number, taker) for number, taker in enumerate(takers, 1)]
        both = FIRST + 3
        ends.send(
            encode(FIRST + 1, DATA, b"out"), encode(FIRST + 2, DATA, b"err"), encode(both, DATA, b"socket"),
            encode(2 * STREAMS + 1, DATA, b"other"), encode(FIRST + 1, EOF),
        )  # fmt: skip
        await ends.passed()
        assert takers[0].frames == [(1, DATA, b"out"), (2, DATA, b"err"), (3, DATA, b"socket"), (1, EOF, b"")]
        assert takers[1].frames == [(1, DATA, b"other")]
        routes[0].from_proxy(0, DATA, b"in")
        routes[0].from_proxy(3, DATA, b"in")
        routes[0].from_proxy(1, CREDIT, encode_credit(3))
        frames = await ends.received()
        while len(frames) < 3:
            frames += await ends.received()
        assert frames == [(FIRST, DATA, b"in"), (both, DATA, b"in"), (FIRST + 1, CREDIT, encode_credit(3))]
        ends.send(encode(FIRST, CREDIT, encode_credit(2)), encode(both, CREDIT, encode_credit(2)))
        await ends.passed()
        assert takers[0].frames[4:] == [(0, CREDIT, encode_credit(2)), (3, CREDIT, encode_credit(2))]
        ends.link.forget(1)
        ends.send(encode(FIRST + 2, DATA, b"after its end"))
        await ends.passed()
        assert len(takers[0].frames) == 6

    run(story)


@pytest.mark.parametrize(
    ("stream", "kind", "payload"),
    [
        (1, DATA, b"x"),
        (0, CREDIT, encode_credit(1)),
        (4, DATA, b"x"),
    ],
)
def test_proxy_cannot_use_a_stream_in_the_other_direction(stream: int, kind: int, payload: bytes) -> None:
    async def story(ends: Ends) -> None:
        route = ends.link.route(1, Taker((IN, OUT, OUT, IN)))
        with pytest.raises(KeyError):
            route.from_proxy(stream, kind, payload)

    run(story)


def test_proxy_that_exceeds_its_credit_is_refused() -> None:
    async def story(ends: Ends) -> None:
        route = ends.link.route(1, Taker())
        for _ in range(WINDOW // MAX_DATA):
            route.from_proxy(0, DATA, bytes(MAX_DATA))
        with pytest.raises(LinkError, match="1 bytes sent with a credit of 0"):
            route.from_proxy(0, DATA, b"x")

    run(story)


def test_output_without_a_proxy_is_dropped_and_credited() -> None:
    """Otherwise a process whose proxy was killed would wait for credit and never end."""

    async def story(ends: Ends) -> None:
        taker = Taker()
        route: Route = ends.link.route(1, taker)
        ends.send(encode(FIRST + 1, DATA, b"12345"))
        await ends.passed()
        route.discard()
        assert await ends.received() == [(FIRST + 1, CREDIT, encode_credit(5))]
        ends.send(encode(FIRST + 2, DATA, bytes(WINDOW // 4)))
        assert await ends.received() == [(FIRST + 2, CREDIT, encode_credit(WINDOW // 4))]
        assert taker.frames == [(1, DATA, b"12345")]
        ends.send(encode(FIRST + 2, EOF))
        await ends.passed()
        assert taker.frames[1:] == [(2, EOF, b"")]

    run(story)


def test_credit_for_small_dropped_frames_is_returned_in_batches() -> None:
    """An answer to each frame would be larger than the frame: a guest that does not read could fill the monitor's
    memory."""

    async def story(ends: Ends) -> None:
        ends.link.route(1, Taker()).discard()
        frames, answers = WINDOW // 4 - 1, []
        ends.send(*[encode(FIRST + 1, DATA, b"x")] * 1000)
        await ends.passed()
        for _ in range(1000, frames):
            await asyncio.get_running_loop().sock_sendall(ends.guest, encode(FIRST + 1, DATA, b"x"))
        await ends.passed()
        ends.send(encode(FIRST + 1, DATA, b"x"))
        answers += await ends.received()
        assert answers == [(FIRST + 1, CREDIT, encode_credit(WINDOW // 4))]

    run(story)


def test_guest_that_does_not_read_is_not_read_from() -> None:
    async def story(ends: Ends) -> None:
        for _ in range(4):
            ends.link.send(encode(FIRST, DATA, bytes(MAX_DATA)) * (2**20 // MAX_DATA))
        frame, taken, idle = event("oom", container="c1", kills=1) * 500, 0, 0
        while taken < 32 * 2**20 and idle < 500:
            try:
                taken += ends.guest.send(frame)
                idle = 0
            except BlockingIOError:
                idle += 1
            await asyncio.sleep(0)
        assert taken < 4 * 2**20, "only data in buffers, and data that was read before"
        before = len(ends.kills)
        while len(ends.kills) <= before + 500:  # now the guest reads, and the monitor reads again
            await ends.received()

    run(story)


def test_link_ends_if_the_guest_leaves_too_much_unread() -> None:
    async def story(ends: Ends) -> None:
        piece = encode(FIRST, DATA, bytes(MAX_DATA)) * (2**20 // MAX_DATA)
        for _ in range(MOST_QUEUED // 2**20 + 8):
            ends.link.send(piece)
        assert (await ends.reason()).message == "the guest does not read its link: more than 64 MiB wait for it"

    run(story)
