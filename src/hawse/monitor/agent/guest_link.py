"""The monitor's end of the link: it calls the agent, and forwards the streams of processes to their proxies.

The guest is hostile. The decoder bounds the length of every frame, and credit bounds every stream. Every field is
checked for its type before it is used. A protocol violation ends the link, and with it the sandbox.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Protocol

from hawse.errors import HawseError, LinkError, VmError
from hawse.link import messages
from hawse.link.agreed import PROTOCOL
from hawse.link.flow import ReceiveWindow, SendWindow, decode_credit, encode_credit
from hawse.link.frames import CREDIT, DATA, EOF, EVENT, FROM_GUEST, MAX_DATA, REPLY, Decoder, Frame, encode
from hawse.link.streams import STREAMS, read_by, written_by
from hawse.monitor.agent.calls import Answer, Call, name_of, parameters, read_answer
from hawse.monitor.agent.events import Dial, Event, Exit, Hello, Notify, Oom, Query, read_event

#: Maximum bytes that wait until the guest reads them. A stream needs 256 KiB at most.
MOST_QUEUED = 64 * 1024 * 1024
#: Above this number of waiting bytes, the monitor stops reading from the guest: most frames to the guest answer one of
#: its own.
_HIGH_WATER = 1024 * 1024


class Sink(Protocol):
    """The destination of a process's frames: its proxy. ``directions`` are those of the process's descriptors."""

    directions: tuple[str, ...]

    def send(self, stream: int, kind: int, payload: bytes) -> None:
        """Accept one frame of a descriptor's stream. Never blocks: credit bounds the bytes that it buffers."""


class Route:
    """The streams of one process between guest and proxy. Checks the credit of both sides, and buffers nothing."""

    def __init__(self, link: GuestLink, process: int, sink: Sink) -> None:
        self._link = link
        self._process = process
        self._sink = sink
        self._from_guest = {number: SendWindow() for number in written_by(sink.directions)}
        self._to_guest = {number: SendWindow() for number in read_by(sink.directions)}
        self._ended: set[int] = set()
        self._discard = False
        self._forgotten = False
        self._dropped = {number: ReceiveWindow() for number in self._from_guest}

    def from_guest(self, stream: int, kind: int, payload: bytes) -> None:
        """Forward a frame of the agent. Raises :class:`LinkError` for a protocol violation."""
        if kind == CREDIT:
            if stream not in self._to_guest:
                raise LinkError(f"link: the guest gave credit for stream {stream}")
            self._to_guest[stream].grant(decode_credit(payload))
        elif stream not in self._from_guest or stream in self._ended:
            raise LinkError(f"link: the guest sent data on stream {stream}")
        elif kind == EOF:
            self._ended.add(stream)  # only one is allowed: credit does not limit the number of EOF frames
        elif kind == DATA:
            self._from_guest[stream].spend(len(payload))
            if self._discard:
                # In large steps, as a proxy does: the credit for a small frame would be larger than the frame.
                if credit := self._dropped[stream].consume(len(payload)):
                    self.from_proxy(stream, CREDIT, encode_credit(credit))
                return
        self._sink.send(stream, kind, payload)

    def from_proxy(self, stream: int, kind: int, payload: bytes) -> None:
        """Forward a frame of the proxy. Raises KeyError if the process has no such stream in this direction."""
        if self._forgotten:
            return  # the number may belong to another connection now
        if kind == CREDIT:
            self._from_guest[stream].grant(decode_credit(payload))
        else:
            self._to_guest[stream].spend(len(payload))
        self._link.send(encode(self._process * STREAMS + stream, kind, payload))

    def end(self) -> None:
        """Send nothing to the guest any more: the process has ended."""
        self._forgotten = True

    def discard(self) -> None:
        """Drop further output of the process, whose proxy is gone. It still gets credit, so that it can end."""
        self._discard = True
        for stream, window in self._from_guest.items():
            spent = SendWindow().available - window.available
            if spent:
                self.from_proxy(stream, CREDIT, encode_credit(spent))


class GuestLink:
    """Sends calls, and receives answers, events and streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        writer.transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[object]] = {}
        self._routes: dict[int, Route] = {}
        self._newest = 0
        self._overflowed = False
        loop = asyncio.get_running_loop()
        self.hello: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[HawseError] = loop.create_future()
        #: The host's CLOCK_MONOTONIC minus the guest's, in seconds.
        self.clock_offset = 0.0
        self.on_exit: Callable[[int, int], None] = lambda _process, _code: None
        self.on_oom: Callable[[str, int], None] = lambda _container, _kills: None
        self.on_notify: Callable[[str, str], None] = lambda _container, _text: None
        self.on_dial: Callable[[Dial], None] = lambda _dial: None
        self.on_query: Callable[[Query], None] = lambda _query: None

    async def run(self) -> None:
        """Serve the link until it ends. The reason becomes the result of ``ended`` and the error of every pending
        call."""
        decoder = Decoder(FROM_GUEST)
        reason: HawseError = VmError("the guest closed the link")
        try:
            while piece := await self._reader.read(MAX_DATA):
                for frame in decoder.feed(piece):
                    self._dispatch(frame)
                # The agent's reader never blocks, so this wait is short unless the guest does not read its link.
                await self._writer.drain()
        except LinkError as error:
            reason = LinkError(f"protocol violation by the guest agent: {error.message}")
        except ConnectionError:
            pass  # ECONNRESET or EPIPE: the guest closed the link while the host was writing to it
        except OSError as error:
            reason = VmError(f"the link to the guest failed: {error.strerror}")
        except Exception as error:  # a bug must end the sandbox, not leave it without a link
            reason = VmError(f"the monitor cannot serve the link: {type(error).__name__}: {error}")
        if self._overflowed:
            reason = LinkError(f"the guest does not read its link: more than {MOST_QUEUED >> 20} MiB wait for it")
        self.ended.set_result(reason)
        for call in self._calls.values():
            if not call.done():
                call.set_exception(reason)

    async def call(self, call: Call[Answer], *, seconds: float) -> Answer:
        """Call the agent, and return the checked answer. Raises the agent's error, or :class:`VmError` at the
        deadline."""
        if self.ended.done():
            raise self.ended.result()
        number = next(self._numbers)
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self.send(messages.encode_call(number, name_of(call), parameters(call)))
        try:
            async with asyncio.timeout(seconds):
                return read_answer(call, await answer)
        except TimeoutError:
            raise VmError(f"the agent in the guest did not answer {name_of(call)} within {seconds:g} s") from None
        finally:
            del self._calls[number]

    def route(self, process: int, sink: Sink) -> Route:
        """Forward the streams of a process to ``sink``. Called before the agent is asked to create the process."""
        self._newest = max(self._newest, process)
        route = self._routes[process] = Route(self, process, sink)
        return route

    def forget(self, process: int) -> None:
        """Forget a process that has ended. Further frames for it, of either side, are dropped."""
        if route := self._routes.pop(process, None):
            route.end()

    def send(self, frame: bytes) -> None:
        """Queue a frame. The link ends if more than :data:`MOST_QUEUED` bytes wait for the guest."""
        if self._writer.is_closing():
            return
        self._writer.write(frame)
        if self._writer.transport.get_write_buffer_size() > MOST_QUEUED:
            self._overflowed = True
            self._writer.transport.abort()

    def _dispatch(self, frame: Frame) -> None:
        stream, kind, payload = frame
        if kind == REPLY:
            number, result, error = messages.decode_reply(payload)
            answer = self._calls.get(number)
            if answer is None or answer.done():
                return  # the call has timed out, or did not exist
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)
        elif kind == EVENT:
            self._event(read_event(*messages.decode_event(payload)))
        elif kind in (DATA, CREDIT, EOF):
            route = self._routes.get(stream // STREAMS)
            if route is not None:
                route.from_guest(stream % STREAMS, kind, payload)
            elif stream // STREAMS > self._newest:
                raise LinkError(f"link: frame for the unknown stream {stream}")
        else:
            raise LinkError(f"link: the guest sent a frame of type {kind}")

    def _event(self, event: Event) -> None:
        match event:
            case Hello(protocol=protocol):
                if self.hello.done():
                    raise LinkError("link: a second hello")
                if protocol != PROTOCOL:
                    raise LinkError(f"link: the agent speaks protocol {protocol}, not {PROTOCOL}")
                self.hello.set_result(None)
            case Exit(process=process, code=code):
                if not 0 < process <= self._newest:
                    raise LinkError("link: exit of an unknown process")
                if process in self._routes:  # else its container was deleted meanwhile
                    self.on_exit(process, code)
            case Oom(container=container, kills=kills):
                self.on_oom(container, kills)
            case Notify(container=container, text=text):
                self.on_notify(container, text)
            case Dial():
                self.on_dial(event)
            case Query():
                self.on_query(event)
