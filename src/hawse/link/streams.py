"""The streams of one process: one for each of its descriptors that the host serves, under the descriptor's number.

A direction is the process's own: it reads what comes "in" and writes what goes "out"; "both" is one descriptor for
the two, a socket. Every process has the three of its stdio; those that follow are what --preserve-fds hands on.
"""

from __future__ import annotations

from hawse.errors import LinkError

#: Streams per process: its n-th stream is ``process * STREAMS + n``, so process 0 is the control stream's.
STREAMS = 64
IN, OUT, BOTH = "in", "out", "both"
STDIO = (IN, OUT, OUT)
MAX_PRESERVED = STREAMS - len(STDIO)


def directions(preserved: object) -> tuple[str, ...]:
    """Those of all descriptors of a process, stdio's and the preserved ones. Raises :class:`LinkError`."""
    if not isinstance(preserved, list) or len(preserved) > MAX_PRESERVED:
        raise LinkError(f"link: preserved descriptors that are no list of at most {MAX_PRESERVED}")
    if not all(direction in (IN, OUT, BOTH) for direction in preserved):
        raise LinkError("link: a preserved descriptor of an unknown direction")
    return (*STDIO, *preserved)


def read_by(process: tuple[str, ...]) -> list[int]:
    """The descriptors that a process of these directions reads."""
    return [number for number, direction in enumerate(process) if direction in (IN, BOTH)]


def written_by(process: tuple[str, ...]) -> list[int]:
    """The descriptors that a process of these directions writes."""
    return [number for number, direction in enumerate(process) if direction in (OUT, BOTH)]
