"""The mutations that `make mutants` makes."""

from __future__ import annotations

import ast

import pytest

from tests.mutants.source import mutations


@pytest.mark.parametrize(
    ("source", "replacements"),
    [
        ("a = b == c", ["b != c"]),
        ("a = b < c <= d", ["b <= c <= d", "b < c < d"]),
        ("a = b in c", ["b not in c"]),
        ("a = b is None", ["b is not None"]),
        ("a = b and c", ["b or c"]),
        ("a = not b", ["b"]),
        ("a = b + c", ["b - c"]),
        ("a = b << 2 | c", ["b << 2 & c", "b >> 2"]),
        ("if a:\n    pass", ["not a"]),
        ("if not a:\n    pass", ["a"]),
        ("if a < b:\n    pass", ["not a < b", "a <= b"]),
        ("while a:\n    pass", ["not a"]),
        ("a = b if c else d", ["not c"]),
        ("def f(a: int | None) -> str | None: ...", []),
        ("a: int | None = b", []),
        ("if TYPE_CHECKING:\n    a = b == c", []),
        ("if __name__ == '__main__':\n    main()", []),
        ("a = f'{b == c}'", []),
        ("a = 'ü' if b else c", ["not b"]),
    ],
)
def test_source_has_these_mutations(source: str, replacements: list[str]) -> None:
    mutants = mutations("file.py", source.encode())
    assert [mutation.replacement for mutation in mutants] == replacements
    for mutation in mutants:
        changed = mutation.apply(source.encode()).decode()
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
        assert changed.startswith(source[:2])
