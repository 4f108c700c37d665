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
        value = json.loads(data, parse_constant=None if constants else _refuse)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise ValueError(_too_deep(depth)) from None
    except ValueError as error:
        if isinstance(error, _NoJsonError):
            raise
        raise ValueError("a number has more digits than Python converts") from None  # sys.get_int_max_str_digits()
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


def _too_deep(depth: int) -> str:
    return f"objects and lists are nested more than {depth} levels deep"
