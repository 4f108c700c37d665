"""Targets for what a guest and its QEMU send: the link's frames, QEMU's QMP messages, and the text of a console."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

from hawse.errors import HawseError, LinkError, VmError
from hawse.link import messages
from hawse.link.agreed import PROTOCOL
from hawse.link.flow import WINDOW, encode_credit
from hawse.link.frames import CREDIT, DATA, EOF, FROM_GUEST, HEADER, Decoder, encode
from hawse.link.streams import BOTH, STDIO, STREAMS
from hawse.monitor.agent.calls import PrepareTemplate, Statistics
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.machine.bounded_log import FILE_LIMIT, TAIL, BoundedLog, with_console_tail
from hawse.vm.qmp import Qmp
from tests.fuzz.target import BYTES, FRAMES, LINES, Run, Target, check_plain, in_loop


class Reader:
    """The guest's end of the link: the input in pieces, then EOF. Other tasks run before each piece."""

    def __init__(self, data: bytes, *, piece: int = 4096) -> None:
        self._pieces = [data[at : at + piece] for at in range(0, len(data), piece)]

    async def read(self, _most: int) -> bytes:
        await asyncio.sleep(0)
        return self._pieces.pop(0) if self._pieces else b""


class Writer:
    """A connection to the guest or to a proxy that takes everything. ``size``: bytes written."""

    def __init__(self) -> None:
        self.size = 0
        self.closed = False
        self.transport = self

    def set_write_buffer_limits(self, high: int) -> None:
        assert high > 0

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, _name: str) -> Any:
        return self

    def setsockopt(self, *_option: object) -> None:
        assert not self.closed

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        self.size += len(data)

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = close

    async def drain(self) -> None:
        await asyncio.sleep(0)

    async def wait_closed(self) -> None:
        await asyncio.sleep(0)


class _Taker:
    """A proxy that gives no credit: the most that it can be sent is a window for each stream, and one end."""

    directions: tuple[str, ...] = (*STDIO, BOTH)

    def __init__(self) -> None:
        self.data = self.ends = 0

    def send(self, _stream: int, kind: int, payload: bytes) -> None:
        self.data += len(payload) if kind == DATA else 0
        self.ends += kind == EOF


def _decoder(data: bytes) -> None:
    """The first byte is the length of the pieces; that of the frames does not depend on it."""
    whole, cut = Decoder(FROM_GUEST), Decoder(FROM_GUEST)
    length = max(1, data[0]) if data else 1
    frames, errors = [], []
    for decoder, pieces in ((whole, [data[1:]]), (cut, [data[at : at + length] for at in range(1, len(data), length)])):
        decoded = []
        try:
            for piece in pieces:
                decoded += decoder.feed(piece)
                assert decoder.pending < HEADER.size + max(FROM_GUEST.values())
        except LinkError as error:
            errors.append(str(error))
        else:
            assert data[1:].startswith(b"".join(encode(*frame) for frame in decoded))
            frames.append(decoded)
    assert len(frames) in (0, 2)
    assert frames[:1] == frames[1:]
    assert errors[:1] == errors[1:]


def reason_of(link: GuestLink) -> HawseError:
    """Why the link has ended, which is the guest's closing it, or a violation of the protocol."""
    reason = link.ended.result()
    assert isinstance(reason, LinkError) or reason.message == "the guest closed the link", reason.message
    check_plain(reason.sentence(), most=2000)
    return reason


async def _link(data: bytes) -> None:
    """Four processes: with a proxy, with a lost proxy, ended, and a forwarded connection. Two calls are pending."""
    writer = Writer()
    link = GuestLink(cast(asyncio.StreamReader, Reader(data)), cast(asyncio.StreamWriter, writer))
    takers = [_Taker() for _ in range(4)]
    routes = [link.route(number, taker) for number, taker in enumerate(takers, 1)]
    routes[1].discard()
    link.forget(3)
    exits: list[int] = []
    link.on_exit = lambda process, _code: exits.append(process)
    calls = [
        asyncio.ensure_future(link.call(Statistics(container="c1"), seconds=60)),
        asyncio.ensure_future(link.call(PrepareTemplate(), seconds=60)),
    ]
    await asyncio.sleep(0)
    before = writer.size
    await link.run()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    reason_of(link)
    assert not any(isinstance(answer, BaseException) and not isinstance(answer, HawseError) for answer in answers)
    assert set(exits) <= {1, 2, 4}
    assert all(taker.data <= 3 * WINDOW and taker.ends <= 3 for taker in takers)
    assert writer.size - before <= len(data)


@contextmanager
def _console() -> Iterator[Run]:
    """Each case is a piece of a log that takes all of them, and the end of another."""
    with tempfile.TemporaryDirectory() as directory:
        everything = BoundedLog(f"{directory}/everything")

        def run(data: bytes) -> None:
            everything.write(data)
            log = BoundedLog(os.devnull)
            log.write(data)
            log.close()
            tail = log.tail()
            check_plain(tail, most=8 * TAIL)
            assert tail.count("\n") < 15
            with_console_tail(VmError("x"), tail)
            assert os.stat(f"{directory}/everything").st_size <= FILE_LIMIT

        try:
            yield run
        finally:
            everything.close()


class _Qemu:
    """A QEMU that greets, and then sends an input when it is asked something. It serves until it has broken a rule."""

    def __init__(self) -> None:
        self._qmp: Qmp | None = None
        self._end: socket.socket

    async def case(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        if self._qmp is None:
            await self._open()
        assert self._qmp is not None
        with self._qmp.listen("DEVICE_DELETED") as events:
            asking = asyncio.ensure_future(self._qmp.execute("query-status", {}, timeout=60))
            try:
                name = json.loads(await loop.sock_recv(self._end, 4096))["id"]
                closing = json.dumps({"return": {}, "id": name}).encode()
                lines = [*data.replace(b"ID", name.encode()).split(b"\n"), closing]
                await loop.sock_sendall(self._end, b"".join(line + b"\n" for line in lines if line))
                answer = await asking
                assert len(json.dumps(answer)) <= len(data) + 100
                await events.wait(lambda params: params.get("device") == "d0", seconds=0)
                return
            except VmError:
                if not self._qmp.ended:  # it refused the command
                    return
            except (ConnectionError, ValueError):
                await asyncio.wait((asking,))
                asking.exception()
        await self.close()

    async def _open(self) -> None:
        ours, self._end = socket.socketpair()
        self._end.setblocking(False)
        self._end.send(b'{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":0},"package":""},"capabilities":[]}}\n')
        self._qmp = Qmp()
        opening = asyncio.ensure_future(self._qmp.open(ours, seconds=60))
        name = json.loads(await asyncio.get_running_loop().sock_recv(self._end, 4096)).get("id")
        self._end.send(json.dumps({"return": {}} | ({"id": name} if name else {})).encode() + b"\n")
        await opening

    async def close(self) -> None:
        if self._qmp is not None:
            await self._qmp.close()
            self._qmp = None
            self._end.close()


@contextmanager
def _qmp() -> Iterator[Run]:
    qemu, logger = _Qemu(), logging.getLogger("qemu.qmp")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # it logs each message that it cannot read
    try:
        with in_loop(qemu.case, end=qemu.close) as run:
            yield run
    finally:
        logger.setLevel(level)


def event(name: str, **params: Any) -> bytes:
    """The frame of an event, as the agent sends it."""
    return messages.encode_event(name, params)


HELLO = event("hello", protocol=PROTOCOL)
LINK_SEEDS = [
    HELLO + messages.encode_result(1, {"pids.current": "1"}) + messages.encode_error(2, VmError("no", hint="do")),
    HELLO + encode(STREAMS + 1, DATA, b"out") + encode(STREAMS + 2, DATA, b"err") + encode(STREAMS + 1, EOF)
    + encode(STREAMS + 2, EOF) + event("exit", process=1, code=0),
    HELLO + encode(4 * STREAMS + 3, DATA, b"answer") + encode(4 * STREAMS + 3, EOF) + event("exit", process=4, code=0),
    encode(2 * STREAMS + 1, DATA, bytes(3000)) * 2 + encode(3 * STREAMS + 1, DATA, b"x")
    + event("oom", container="c1", kills=1),
    encode(STREAMS, CREDIT, encode_credit(1))
    + event("query", server="127.0.0.11", transport="udp", connection=1)
    + event("notify", container="c1", text="READY=1\nSTATUS=up")
    + event("dial", container="c1", socket="mount1", connection=1),
]  # fmt: skip
_EVENT = {
    "event": "DEVICE_DELETED",
    "data": {"device": "d0", "path": "/x"},
    "timestamp": {"seconds": 1, "microseconds": 2},
}
TARGETS = [
    Target("decoder", FRAMES, [b"\x40" + LINK_SEEDS[0], b"\x03" + LINK_SEEDS[1]], lambda: nullcontext(_decoder)),
    Target("link", FRAMES, LINK_SEEDS, lambda: in_loop(_link)),
    Target("console", BYTES, [b"[    0.1] Linux\r\n", "\x1b[1mé\n\x80".encode()], _console),
    Target("qmp", LINES, [
        json.dumps(_EVENT).encode() + b"\n" + b'{"return": {"status": "running"}, "id": "ID"}\n',
        b'{"error": {"class": "GenericError", "desc": "no such device"}, "id": "ID"}\n',
    ], _qmp),
]  # fmt: skip
