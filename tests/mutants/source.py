"""Small mutations of Python source: a comparison, a condition or an operator is changed, and nothing else.

mutmut and cosmic-ray offer more, but neither draws a random sample over a whole package, and mutmut needs the mutated
code in the test process: the agent and the command run in separate processes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}


@dataclass(frozen=True)
class Mutation:
    """One change of one expression. ``start`` and ``end`` are offsets in the file's UTF-8 bytes."""

    path: str
    line: int
    start: int
    end: int
    original: str
    replacement: str

    def apply(self, source: bytes) -> bytes:
        """Return the mutated source."""
        return source[: self.start] + f"({self.replacement})".encode() + source[self.end :]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {' '.join(self.original.split())}  ->  {self.replacement}"


def mutations(path: str, source: bytes) -> list[Mutation]:
    """All mutations of a file's source, in the order of its expressions."""
    lines = source.splitlines(keepends=True)
    offsets = [sum(map(len, lines[:number])) for number in range(len(lines))]
    collected = []
    for node in _expressions(ast.parse(source)):
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = offsets[node.lineno - 1] + node.col_offset
        end = offsets[node.end_lineno - 1] + node.end_col_offset
        original = source[start:end].decode()
        for changed in _changes(node):
            collected.append(Mutation(path, node.lineno, start, end, original, ast.unparse(changed)))
    return collected


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    """Every expression that runs and can be replaced by its position.

    Annotations do not run. Expressions in f-strings have no usable position before Python 3.12 (bpo-35212).
    """
    for name, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for child in children:
            if name in ("annotation", "returns") or isinstance(child, ast.JoinedStr) or _never_runs(child):
                continue
            if isinstance(child, ast.expr):
                yield _condition(child) if name == "test" else child
            if isinstance(child, ast.AST):
                yield from _expressions(child)


class _Condition(ast.expr):
    """Marks an expression that decides a branch."""

    def __init__(self, expression: ast.expr) -> None:
        super().__init__()
        self.expression = expression


def _condition(expression: ast.expr) -> ast.expr:
    return ast.copy_location(_Condition(expression), expression)


def _never_runs(node: object) -> bool:
    """Type aliases by subscript, the body of `if TYPE_CHECKING` and the last lines of a program."""
    if isinstance(node, ast.If):
        text = ast.unparse(node.test)
        return text == "TYPE_CHECKING" or text.startswith("__name__ ==")
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript) and "Callable" in ast.unparse(node)


def _changes(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, _Condition):
        if not isinstance(node.expression, ast.UnaryOp):  # the same change as the one below
            yield ast.UnaryOp(ast.Not(), node.expression)
        yield from _changes(node.expression)
    elif isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            changed = [*node.ops[:number], _COMPARISONS[type(operator)](), *node.ops[number + 1 :]]
            yield ast.Compare(node.left, changed, node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        yield ast.BinOp(node.left, _OPERATORS[type(node.op)](), node.right)
