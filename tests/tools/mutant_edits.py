"""Small faults of Python code: each mutant differs from its module in one expression."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Mutant:
    """One small change of one function."""

    path: str
    line: int
    function: str
    change: str
    """`before => after`, each as source of the smallest changed expression."""
    number: int
    """Position among the equal changes of the function, from 0."""

    @property
    def name(self) -> str:
        """File, line, function and change."""
        return f"{self.path}:{self.line} {self.function}: {self.change} ({self.number})"


class Edit(NamedTuple):
    """A mutant with the source of its module."""

    mutant: Mutant
    source: str


COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Pow: ast.Mult,
}  # fmt: skip


OWN_MUTANTS = ast.Compare, ast.UnaryOp, ast.BoolOp
"""Conditions whose own mutants include the negation or something close to it."""


def _is_none(node: ast.AST | None) -> bool:
    return node is None or (isinstance(node, ast.Constant) and node.value is None)


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Every mutant of one node, without those of its parts."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield _with(node, ops=[COMPARISONS[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield _with(node, op=OPERATORS[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield _with(node, body=node.orelse, orelse=node.body)
    elif isinstance(node, ast.If | ast.While) and not isinstance(node.test, OWN_MUTANTS):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Return) and not _is_none(node.value):
        yield _with(node, value=ast.Constant(None))
    elif isinstance(node, ast.Constant):
        yield from _other_constants(node.value)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _other_constants(value: object) -> Iterator[ast.Constant]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(2 * value if value else 1.0)


def edits(path: str, source: str, functions: tuple[str, ...] = ()) -> list[Edit]:
    """All mutants of a module's functions, in the order of its source."""
    tree = ast.parse(source)
    found: list[Edit] = []
    seen: dict[tuple[str, str], int] = {}
    for function in _functions(tree):
        if functions and function.name not in functions:
            continue
        for place in list(_places(function)):
            for new in changes(place.node):
                change = f"{_code(place.node)} => {_code(new)}"
                number = seen.get((function.name, change), 0)
                seen[function.name, change] = number + 1
                line = getattr(place.node, "lineno", function.lineno)
                mutant = Mutant(path, line, function.name, change, number)
                place.put(new)
                found.append(Edit(mutant, ast.unparse(ast.fix_missing_locations(tree))))
                place.put(place.node)
    return found


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


class Place(NamedTuple):
    """A node, and a function that puts another one in its place."""

    node: ast.AST
    put: Callable[[ast.AST], None]


def _places(parent: ast.AST) -> Iterator[Place]:
    """Every expression and statement inside a function, without annotations and docstrings."""
    for name, value in ast.iter_fields(parent):
        if name in ("annotation", "returns", "decorator_list", "type_params", "exc"):
            continue
        many = isinstance(value, list)
        for position, child in enumerate(value if many else [value]):
            if not isinstance(child, ast.AST) or _is_text(child):
                continue
            if isinstance(child, ast.FunctionDef):  # a function of its own in the walk
                continue
            yield Place(child, _setter(parent, name, position if many else None))
            yield from _places(child)


def _setter(parent: ast.AST, name: str, position: int | None) -> Callable[[ast.AST], None]:
    def put(new: ast.AST) -> None:
        if position is None:
            setattr(parent, name, new)
        else:
            getattr(parent, name)[position] = new

    return put


def _is_text(node: ast.AST) -> bool:
    """Docstrings, messages and statements that raise one."""
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return text or isinstance(node, ast.JoinedStr | ast.Raise)


def _code(node: ast.AST) -> str:
    """The source of a node; of a compound statement its first line."""
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split("\n")[0]
