"""Chat templates in a sandbox, with what Transformers provides to them.

The names, filters and settings are those of ``apply_chat_template``
(https://huggingface.co/docs/transformers/chat_templating). Filters that no chat template needs and
that cannot be bounded cheaply (``wordwrap``, ``urlize``, ``pprint``, ``random``, ``xmlattr``) are
left out. Every operation is bounded (runtimes.text.template_bounds).
"""

import json
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from markupsafe import escape

from runtimes.text import template_bounds as bounds

MAX_COMPILED: Final = 8
MAX_INDENT: Final = 64

_FILTERS: Final = (
    *(
        "abs",
        "attr",
        "capitalize",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "float",
        "groupby",
    ),
    *("int", "items", "last", "length", "lower", "map", "max", "min", "reject", "rejectattr"),
    *("reverse", "select", "selectattr", "sort", "string", "sum", "title", "trim", "truncate"),
    *("unique", "upper", "wordcount", "filesizeformat", "urlencode", "striptags"),
)
# Bound and unbound methods of built-in types.
_BUILTIN_METHODS: Final = (type("".join), type(str.join), type(dict.__dict__["fromkeys"]))


class TemplateRefusalError(jinja2.TemplateError):
    """Raised by a template itself, with ``raise_exception``."""


class _GenerationBlock(Extension):
    """``{% generation %}``, which marks the assistant's text for training."""

    tags: Final = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in Transformers, so that its variables have the same scope.
        return nodes.CallBlock(self.call_method("render"), [], [], body).set_lineno(line)

    def render(self, caller: Callable[[], str]) -> str:
        return caller()


class _Formatter(SandboxedFormatter):
    """``str.format`` with bounded widths and output."""

    def format_field(self, value: Any, format_spec: str) -> str:
        digits = "".join(each if each.isdigit() else " " for each in format_spec).split()
        for number in digits:
            bounds.check_width(int(number[:9]))
        text: str = bounds.created(super().format_field(value, format_spec))
        return text

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return bounds.created(super().convert_field(value, conversion))


class _Namespace(Namespace):
    """A namespace whose text is short: the original prints all values, and theirs."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Generator(CodeGenerator):
    """Code whose literals, concatenations and slices are counted, like calls and operators."""

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._counted(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._counted(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        # The targets of assignments and loops are tuples too.
        if node.ctx == "load":
            self._counted(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.getitem(")
        self.visit(node.node, frame)
        self.write(", slice(")
        for part in (node.arg.start, node.arg.stop, node.arg.step):
            if part is None:
                self.write("None")
            else:
                self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def _counted(self, visit: Callable[..., None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.created(")
        visit(node, frame)
        self.write(")")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of chat templates."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    created = staticmethod(bounds.created)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
        )
        counted = {name: _counted(FILTERS[name]) for name in _FILTERS}
        own = {name: _counted(function) for name, function in _OWN_FILTERS.items()}
        self.filters = {**counted, **own}
        del self.globals["lipsum"]
        self.globals |= {
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    @staticmethod
    def concat(texts: Iterable[str]) -> str:
        parts = list(texts)
        bounds.check_characters(sum(map(len, parts)))
        text: str = bounds.created("".join(parts))
        return text

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        bounds.check_operation(operator, left, right)
        return bounds.created(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        value = super().getitem(obj, argument)
        return bounds.created(value) if isinstance(argument, slice) else value

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        name = getattr(value, "__name__", "")
        owner = getattr(value, "__self__", None)
        if not isinstance(owner, str) or name not in {"format", "format_map"}:
            return None

        def format_bounded(*args: Any, **kwargs: Any) -> str:
            values = args[0] if name == "format_map" else kwargs
            text: str = _Formatter(self).vformat(str(owner), args, values)
            return text

        return format_bounded

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(obj, _BUILTIN_METHODS):
            return bounds.created(bounds.call_method(obj, args, kwargs))
        return bounds.created(super().call(context, obj, *args, **kwargs))


@lru_cache(MAX_COMPILED)
def _compiled(template: str) -> jinja2.Template:
    # Compilation evaluates constant expressions.
    return _Environment().from_string(template)


def render(template: str, variables: Mapping[str, Any]) -> Iterator[str]:
    """Render a template piece by piece; raise any exception that a hostile program may cause.

    A TemplateLimitError is raised for values that are too large. The caller bounds the output and
    the time.
    """
    bounds.begin()
    return _compiled(template).generate(**variables)


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return bounds.created(function(*args, **kwargs))

    return call


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefusalError(message)


def _strftime_now(form: str) -> str:
    # glibc pads numbers to any width that a format contains.
    if len(form) > MAX_INDENT or any(each in string.digits for each in form):
        raise bounds.TemplateLimitError("it formats the time with a width, or at great length")
    return datetime.now().astimezone().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    weight = bounds.weigh(value)
    width = len(indent) if isinstance(indent, str) else indent or 0
    widest = max(width, *map(len, separators)) if separators else width
    # At most twelve characters per escaped one; separators and an indented line per item.
    per_item = 32 + 2 * widest + width * (weight.depth + 1)
    bounds.check_characters(weight.characters + weight.items * per_item)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = [_attribute(item, attribute) for item in bounds.bounded_list(value)]
    return bounds.join(value, str(d))


def _attribute(item: Any, path: str | int) -> Any:
    steps: list[str | int] = [path] if isinstance(path, int) else list(path.split("."))
    for step in steps:
        item = item.get(step) if isinstance(item, Mapping) else item[int(step)]
    return item


def _replace(value: Any, old: str, new: str, count: int | None = None) -> str:
    return bounds.replace(str(value), str(old), str(new), -1 if count is None else count)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    values = kwargs or args
    bounds.check_percent(str(value), values)
    return str(value) % values


def _indent(value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    padding = width if isinstance(width, str) else " " * min(width, bounds.MAX_WIDTH)
    text = str(value)
    bounds.check_characters(len(text) + (text.count("\n") + 1) * len(padding))
    lines = text.split("\n")
    begin = lines[0] if not first else padding + lines[0]
    return "\n".join([begin, *(padding + line if line or blank else line for line in lines[1:])])


def _center(value: str, width: int = 80) -> str:
    bounds.check_width(width)
    return str(value).center(width)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    bounds.check_width(precision)
    rounded: float = FILTERS["round"](value, min(precision, 300), method)
    return rounded


def _batch(value: Iterable[Any], linecount: int, fill_with: Any = None) -> list[Any]:
    bounds.check_width(linecount)
    return bounds.bounded_list(FILTERS["batch"](bounds.bounded_list(value), linecount, fill_with))


def _slice(value: Iterable[Any], slices: int, fill_with: Any = None) -> list[Any]:
    bounds.check_width(slices)
    return bounds.bounded_list(FILTERS["slice"](bounds.bounded_list(value), slices, fill_with))


_OWN_FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "tojson": _to_json,
    "join": _join,
    "replace": _replace,
    "format": _format,
    "indent": _indent,
    "center": _center,
    "round": _round,
    "batch": _batch,
    "slice": _slice,
    "list": bounds.bounded_list,
    "safe": str,
    "e": lambda value: str(escape(value)),
    "escape": lambda value: str(escape(value)),
}
