"""Single changes to a module's syntax tree that a test should notice.

Left out: nodes that no test of behaviour can or need notice: annotations, decorators, docstrings,
log calls, the words of errors, and module-level constants, which are figures rather than logic.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
# Applies one change: takes the node to change, and the tree in which it stands.
Change = Callable[[Any, ast.AST], None]
NAMES = {"min": "max", "max": "min", "all": "any", "any": "all", "ceil": "floor", "floor": "ceil"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed module: its source, and where and what the change is."""

    line: int
    change: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of ``source``, in the order of its syntax tree."""
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        node.number = number
    skipped = _skipped(tree)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        for change, mutate in _changes(node):
            changed = copy.deepcopy(tree)
            target = next(
                one for one in ast.walk(changed) if getattr(one, "number", -1) == node.number
            )
            mutate(target, changed)
            yield Mutant(
                getattr(node, "lineno", 0), change, ast.unparse(ast.fix_missing_locations(changed))
            )


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """Yield (description, change) for a node; most nodes have none."""
    for kinds, changes in _BY_KIND:
        if isinstance(node, kinds):
            yield from changes(node)


def _compared(node: ast.Compare) -> Iterator[tuple[str, Change]]:
    other = COMPARISONS.get(type(node.ops[0]))
    if len(node.ops) == 1 and other is not None:
        yield f"{_text(node)}: {other.__name__}", lambda one, _: _set(one, "ops", [other()])


def _combined(node: ast.BoolOp) -> Iterator[tuple[str, Change]]:
    other = ast.Or if isinstance(node.op, ast.And) else ast.And
    yield f"{_text(node)}: {other.__name__}", lambda one, _: _set(one, "op", other())


def _calculated(node: ast.BinOp) -> Iterator[tuple[str, Change]]:
    other = ARITHMETIC.get(type(node.op))
    if other is not None:
        yield f"{_text(node)}: {other.__name__}", lambda one, _: _set(one, "op", other())


def _inverted(node: ast.UnaryOp) -> Iterator[tuple[str, Change]]:
    if isinstance(node.op, ast.Not):
        yield f"{_text(node)}: without not", lambda one, tree: _replace(tree, one, one.operand)


def _branched(node: ast.If | ast.IfExp | ast.While) -> Iterator[tuple[str, Change]]:
    yield f"if {_text(node.test)}: negated", _negate


def _constant(node: ast.Constant) -> Iterator[tuple[str, Change]]:
    value = node.value
    if isinstance(value, bool):
        yield f"{value}: {not value}", lambda one, _: _set(one, "value", not value)
    elif isinstance(value, int | float):
        yield f"{value}: {value + 1}", lambda one, _: _set(one, "value", value + 1)


def _called(node: ast.Call) -> Iterator[tuple[str, Change]]:
    field = {ast.Name: "id", ast.Attribute: "attr"}.get(type(node.func), "")
    other = NAMES.get(getattr(node.func, field, ""), "") if field else ""
    if other:
        yield f"{_text(node)}: {other}", lambda one, _: _set(one.func, field, other)


def _returned(node: ast.Return) -> Iterator[tuple[str, Change]]:
    if node.value is not None and not _is_none(node.value):
        yield f"{_text(node)}: return None", lambda one, _: _set(one, "value", ast.Constant(None))


def _executed(node: ast.Expr) -> Iterator[tuple[str, Change]]:
    if isinstance(node.value, ast.Call | ast.Await):
        yield f"{_text(node)}: deleted", _delete


def _raised(node: ast.Raise) -> Iterator[tuple[str, Change]]:
    if node.exc is not None:
        yield f"{_text(node)}: deleted", _delete


_BY_KIND: tuple[tuple[Any, Callable[[Any], Iterator[tuple[str, Change]]]], ...] = (
    (ast.Compare, _compared),
    (ast.BoolOp, _combined),
    (ast.BinOp, _calculated),
    (ast.UnaryOp, _inverted),
    (ast.If | ast.IfExp | ast.While, _branched),
    (ast.Constant, _constant),
    (ast.Call, _called),
    (ast.Return, _returned),
    (ast.Expr, _executed),
    (ast.Raise, _raised),
)


def _set(node: ast.AST, field: str, value: object) -> None:
    setattr(node, field, value)


def _negate(node: ast.AST, _: ast.AST) -> None:
    node.test = ast.UnaryOp(ast.Not(), node.test)


def _delete(node: ast.AST, tree: ast.AST) -> None:
    _replace(tree, node, ast.Pass())


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
                return
            if isinstance(value, list):
                for index, item in enumerate(value):
                    if item is old:
                        value[index] = new
                        return


def _skipped(tree: ast.Module) -> set[int]:
    """Return the ids of nodes that no test of behaviour can or need see changed."""
    roots: list[ast.AST] = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.Import | ast.ImportFrom)
    ]
    for node in ast.walk(tree):
        roots.extend(_untested_parts(node))
    return {id(inner) for root in roots for inner in ast.walk(root)}


def _untested_parts(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.ClassDef():
            yield from (*node.decorator_list, *node.keywords)
        case ast.FunctionDef(name="__repr__" | "__str__"):
            yield node
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield from (*node.decorator_list, node.args)
            if node.returns:
                yield node.returns
        case ast.AnnAssign():
            yield node.annotation
        case ast.Raise(exc=ast.AST()):
            yield node.exc
        case ast.JoinedStr() | ast.Assert():
            yield node
        case ast.Expr() if _is_log(node.value):
            yield node


def _is_log(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in {"log", "logging"}
    )


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:70]
