"""The streams of one process: one for each file descriptor that the host serves, with the descriptor's number.

Directions are the process's: it reads from "in" and writes to "out"; "both" is a socket, which it reads and writes.
Every process has the three streams of its stdio; the streams of the descriptors of --preserve-fds follow.
"""

from __future__ import annotations

from hawse.errors import LinkError

#: Streams per process. The id of the n-th stream is ``process * STREAMS + n``; process 0 is reserved for the control
#: stream.
STREAMS = 64
IN, OUT, BOTH = "in", "out", "both"
STDIO = (IN, OUT, OUT)
MAX_PRESERVED = STREAMS - len(STDIO)


def directions(preserved: object) -> tuple[str, ...]:
    """The directions of all streams of a process: stdio, then the preserved descriptors. Raises :class:`LinkError`."""
    if not isinstance(preserved, list) or len(preserved) > MAX_PRESERVED:
        raise LinkError(f"link: preserved descriptors that are not a list of at most {MAX_PRESERVED}")
    if not all(direction in (IN, OUT, BOTH) for direction in preserved):
        raise LinkError("link: preserved descriptor of unknown direction")
    return (*STDIO, *preserved)


def read_by(process: tuple[str, ...]) -> list[int]:
    """The descriptors from which a process with these directions reads."""
    return [number for number, direction in enumerate(process) if direction in (IN, BOTH)]


def written_by(process: tuple[str, ...]) -> list[int]:
    """The descriptors to which a process with these directions writes."""
    return [number for number, direction in enumerate(process) if direction in (OUT, BOTH)]
