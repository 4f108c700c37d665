"""JSON from users, engines, the guest and files: parsed with a bound on its nesting. Standard library only.

Python's own bound is the depth of its stack: a document that it parses may then end any function that walks or encodes
it with a RecursionError (https://docs.python.org/3/library/json.html, "Implementation Limitations"). No document of the
OCI specification has more than ten levels.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from typing import Any

#: Levels of objects and lists in a document.
MAX_DEPTH = 100
#: And in a message between hawse's own programs, which has a document in it.
MAX_MESSAGE_DEPTH = 150


def parse(data: bytes | bytearray | str, *, depth: int = MAX_DEPTH, constants: bool = False) -> Any:
    """The value. Raises :class:`json.JSONDecodeError`, which has the place, and ValueError for everything else.

    ``constants``: NaN and Infinity are accepted, which Python's encoder writes.
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
    """They are not of JSON (RFC 8259, section 6), and runc refuses them."""
    raise _NoJsonError(f"{name} is not a number of JSON")


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
