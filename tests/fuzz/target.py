"""Fuzz targets: their type, ways to build one, and checks that they share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

Run = Callable[[bytes], None]
"""Parses one input. Errors that the parser documents are caught; any other exception is a finding."""

#: How an input is built, which decides how it is mutated: any bytes, one JSON value, one JSON value a line, or frames.
BYTES, JSON, LINES, FRAMES = "bytes", "JSON", "JSON lines", "frames"
#: The greatest unsigned number that engines, which are written in Go, read.
MAX_UINT64 = 2**64 - 1
#: A loop keeps what its timers refer to until they expire, in some tens of seconds.
_CASES_OF_LOOP = 25


@dataclass(frozen=True)
class Target:
    """One parser of bytes that a guest controls; ``start`` is a context with everything that one run of cases needs."""

    name: str
    form: str
    seeds: Sequence[bytes]
    start: Callable[[], AbstractContextManager[Run]]


def of_value(name: str, parse: Callable[[Any], None], seeds: Sequence[object]) -> Target:
    """A parser of values that the link has decoded already. Text that is not JSON never gets to it."""

    def run(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        parse(value)

    return Target(name, JSON, [json.dumps(seed).encode() for seed in seeds], lambda: nullcontext(run))


def of_bytes(name: str, run: Run, seeds: Sequence[bytes], *, form: str = BYTES) -> Target:
    """A parser that keeps nothing between two cases."""
    return Target(name, form, seeds, lambda: nullcontext(run))


def step(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never suspends."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    work.close()
    raise AssertionError("it waits")


@contextmanager
def in_loop(
    case: Callable[[bytes], Coroutine[Any, Any, None]], *, end: Callable[[], Coroutine[Any, Any, None]] | None = None
) -> Iterator[Run]:
    """Run each case in an event loop, which lives for many of them; ``end`` runs in it after its last.

    An unhandled exception in a task or a callback is a finding, too.
    """
    unheard: list[str] = []
    with ExitStack() as stack:
        count = 0
        loop: asyncio.AbstractEventLoop

        def run(data: bytes) -> None:
            nonlocal count, loop
            if count % _CASES_OF_LOOP == 0:
                stack.close()
                loop = stack.enter_context(asyncio.Runner()).get_loop()
                loop.set_exception_handler(lambda _, context: unheard.append(repr(context)))
                if end is not None:
                    stack.callback(lambda: loop.run_until_complete(end()))
            count += 1
            loop.run_until_complete(case(data))
            if unheard:
                raise AssertionError(unheard.pop())

        yield run


def check_plain(value: object, *, most: int = 1024 * 1024) -> None:
    """Check that a result has at most ``most`` bytes of JSON, that others can read each number, and
    that none of its texts can steer a terminal."""
    assert len(json.dumps(value, allow_nan=False)) <= most, "the result is too large"
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            pending += item
        elif isinstance(item, str):
            assert item.replace("\n", "").isprintable(), f"a text that can steer a terminal: {item!r}"
        elif isinstance(item, int):
            assert 0 <= item <= MAX_UINT64, f"a number that engines do not read: {item}"
