"""Events of the agent, with the bounds of their fields. The guest is hostile: other fields are ignored."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from hawse.errors import LinkError, printable
from hawse.json_text import Document
from hawse.monitor.agent.calls import INVALID, explain
from hawse.monitor.agent.notifications import MAX_TEXT

#: A number that JSON can express exactly (RFC 8259, section 6).
Identifier = Annotated[int, Meta(gt=0, lt=2**53)]


class Hello(Struct, frozen=True):
    """The agent's first message."""

    protocol: Annotated[int, Meta(ge=0, lt=2**53)]
    kernel: str = ""


class Exit(Struct, frozen=True):
    """The end of a process, after all of its output; or of both directions of a connection."""

    process: int
    code: Annotated[int, Meta(ge=0, le=255)]


class Oom(Struct, frozen=True):
    """How many processes of a container the guest kernel has killed when memory ran out. Sent before the ``exit``."""

    container: str
    kills: Annotated[int, Meta(gt=0, le=2**63 - 1)]


class Notify(Struct, frozen=True):
    """A message of a process in a container to its service manager (sd_notify(3))."""

    container: str
    text: Annotated[str, Meta(max_length=MAX_TEXT)]


class Dial(Struct, frozen=True):
    """A new connection to a socket that represents a socket of the host."""

    container: str
    socket: str
    connection: Identifier


class Query(Struct, frozen=True):
    """A new connection to a name server. For udp it carries one query and its answer, each after two bytes of
    length."""

    server: str
    transport: Literal["udp", "tcp"]
    connection: Identifier


Event = Hello | Exit | Oom | Notify | Dial | Query
#: Every event, by its name.
EVENTS: dict[str, type[Event]] = {
    "hello": Hello,
    "exit": Exit,
    "oom": Oom,
    "notify": Notify,
    "dial": Dial,
    "query": Query,
}


def read_event(name: str, fields: Document) -> Event:
    """An event, checked. Raises :class:`LinkError`."""
    if name not in EVENTS:
        raise LinkError(f"link: unknown event {printable(name)}")
    try:
        event: Event = msgspec.convert(fields, type=EVENTS[name])
    except INVALID as error:
        raise LinkError(f"link: the event {name} is unusable: {explain(error)}") from None
    return event
