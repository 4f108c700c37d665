"""The tables in docs/link.md of the agent's calls and events: ``python -m tests.support.link_page`` writes them.

They are made from the types in hawse.monitor.agent. The rest of the page is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import inspect

from hawse.monitor.agent.calls import CALLS, answer_type
from hawse.monitor.agent.events import EVENTS

PAGE = Path(__file__).parents[2] / "docs" / "link.md"
_MARKERS = "<!-- generated: {} -->\n", "<!-- end -->\n"


def page() -> str:
    """The page with the tables of the present types."""
    text = PAGE.read_text()
    for name, lines in (("calls", _calls()), ("objects", _objects()), ("events", _events())):
        begin, end = _MARKERS[0].format(name), _MARKERS[1]
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        assert after, f"docs/link.md has no part {begin!r}"
        text = before + begin + "\n" + "\n".join(lines) + "\n\n" + end + after
    return text


def _calls() -> list[str]:
    rows = [
        f"| `{name}` | {_fields(_info(call))} | {_type(inspect.type_info(answer_type(call)), nested=False)} | "
        f"{_text(call)} |"
        for name, call in CALLS.items()
    ]
    return ["| call | fields | answer | does |", "|---|---|---|---|", *rows]


def _events() -> list[str]:
    rows = [f"| `{name}` | {_fields(_info(event))} | {_text(event)} |" for name, event in EVENTS.items()]
    return ["| event | fields | reports |", "|---|---|---|", *rows]


def _objects() -> list[str]:
    objects: dict[str, inspect.StructType] = {}
    for call in CALLS.values():
        for field in _info(call).fields:
            objects |= {struct.cls.__name__: struct for struct in _structs(field.type)}
        objects |= {struct.cls.__name__: struct for struct in _structs(inspect.type_info(answer_type(call)))}
    rows = [f"| `{name}` | {_fields(struct)} | {_text(struct.cls)} |" for name, struct in objects.items()]
    return ["| object | fields | is |", "|---|---|---|", *rows]


def _structs(info: inspect.Type) -> Iterator[inspect.StructType]:
    """The objects in a type, outer ones first."""
    if isinstance(info, inspect.StructType):
        yield info
        for field in info.fields:
            yield from _structs(field.type)
    elif isinstance(info, inspect.ListType):
        yield from _structs(info.item_type)
    elif isinstance(info, inspect.UnionType):
        for each in info.types:
            yield from _structs(each)


def _info(kind: type[Any]) -> inspect.StructType:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return info


def _fields(info: inspect.StructType) -> str:
    return ", ".join(f"`{field.name}` {_type(field.type)}" for field in info.fields)


def _type(info: inspect.Type, *, nested: bool = True) -> str:
    """A type in words. ``nested``: null is written out."""
    match info:
        case inspect.NoneType():
            return "null" if nested else ""
        case inspect.BoolType():
            return "boolean"
        case inspect.IntType():
            return "integer" + _range(info)
        case inspect.FloatType():
            return "number"
        case inspect.StrType(max_length=most):
            return "text" + ("" if most is None else f" of at most {most} characters")
        case inspect.LiteralType(values=values):
            return " or ".join(f'"{value}"' for value in values)
        case inspect.ListType(item_type=item, max_length=most):
            words = f"({_type(item)})" if isinstance(item, inspect.UnionType) else _type(item)
            return f"list of {words}" if most is None else f"list of at most {most}: {words}"
        case inspect.DictType(value_type=inspect.AnyType()):
            return "object"
        case inspect.DictType(value_type=value):
            return f"object of {_type(value)}"
        case inspect.UnionType(types=types):
            return " or ".join(map(_type, types))
        case inspect.StructType(cls=cls):
            return f"`{cls.__name__}`"
    raise AssertionError(f"a type without words: {info}")


def _range(info: inspect.IntType) -> str:
    least = info.ge if info.ge is not None else None if info.gt is None else info.gt + 1
    most = info.le if info.le is not None else None if info.lt is None else info.lt - 1
    if least is None or most is None:
        return ""
    bits = (most + 1).bit_length() - 1
    words = f"2^{bits} - 1" if bits > 8 and most + 1 == 2**bits else str(most)
    return f" ({least} to {words})"


def _text(kind: type[Any]) -> str:
    """A docstring as one line of Markdown."""
    text = " ".join((kind.__doc__ or "").split()).replace("``", "`").replace("|", "\\|")
    return re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)


if __name__ == "__main__":
    PAGE.write_text(page())
