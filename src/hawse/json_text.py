"""Parse JSON of users, engines, the guest and files, with a limit on its nesting. Standard library only.

Python's parser is limited only by the depth of its stack: a document that it accepts can cause a RecursionError in
every function that walks or encodes it (https://docs.python.org/3/library/json.html, "Implementation Limitations").
Documents of the OCI specification are nested at most ten levels deep.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from typing import Any

    Document = dict[str, Any]
else:
    #: A JSON object whose fields another program or specification defines: config.json, or a part of it.
    Document = dict

#: Maximum nesting of objects and lists in a document.
MAX_DEPTH = 100
#: Maximum nesting in a message between hawse's programs, which may contain a document.
MAX_MESSAGE_DEPTH = 150


def parse(data: bytes | bytearray | str, *, depth: int = MAX_DEPTH, constants: bool = False) -> Any:
    """Parse a value. Raises :class:`json.JSONDecodeError` with the position, and ValueError for other faults.

    ``constants``: accept NaN and Infinity, which Python's encoder writes.
    """
    try:
        value = json.loads(data) if constants else json.loads(data, parse_constant=_refuse, parse_float=_finite)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise ValueError(_too_deep(depth)) from None
    except ValueError as error:
        if isinstance(error, _NoJsonError):
            raise
        raise ValueError("a number has more digits than Python converts") from None  # sys.get_int_max_str_digits()
    if _brackets(data) <= depth:
        return value  # most messages: a walk takes as long as the parsing
    level = [value]
    for _ in range(depth + 1):
        parents = [each for each in level if isinstance(each, (dict, list))]
        if not parents:
            return value
        level = [child for each in parents for child in (each.values() if isinstance(each, dict) else each)]
    raise ValueError(_too_deep(depth))


class _NoJsonError(ValueError):
    pass


def _refuse(name: str) -> None:
    """Refuse constants that are not JSON (RFC 8259, section 6), as runc does."""
    raise _NoJsonError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    """Python makes infinity of a number beyond its floats; Go, and so runc, refuses it."""
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _NoJsonError(f"{text[:40]} is more than a number of 64 bits can hold")
    return number


def _brackets(data: bytes | bytearray | str) -> int:
    """How many brackets open objects and lists; those in texts count, too."""
    if isinstance(data, str):
        return data.count("{") + data.count("[")
    return data.count(b"{") + data.count(b"[")


def _too_deep(depth: int) -> str:
    return f"objects and lists are nested more than {depth} levels deep"
