"""A Jinja2 environment for templates that nobody vouches for: no attribute escapes, bounded time, bounded memory.

In: template source; out: a compiled template whose every loop, call, filter, operator and output reports to a meter.
Set up as ``transformers`` sets up chat templates; what no chat template needs (includes, inheritance, HTML filters,
bytes) is refused when the template is loaded.  Why the bounds hold is argued in bounds.py.
"""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinMethodType, MethodType
from typing import Any

import jinja2
from jinja2 import ext, nodes, parser, runtime, sandbox, utils, visitor

from penstock.text.bounds import MAX_ITEMS
from penstock.text.filters import CONCAT, EMIT, HOLD, TICK, bounded_filters
from penstock.text.metered import MeteredEnvironment

_MAX_SOURCE_CHARS = 128 * 1024
_NODES = """Template Output TemplateData For If Macro CallBlock FilterBlock With Assign AssignBlock ExprStmt Scope
    Continue Break Name NSRef Const List Tuple Dict Pair Keyword CondExpr Filter Test Call Getattr Getitem Slice Concat
    Compare Operand Mul Div FloorDiv Add Sub Mod Pow And Or Not Neg Pos"""
_STR_METHODS = """capitalize casefold center count endswith expandtabs find format index isalnum isalpha isascii
    isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip
    partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith
    strip swapcase title upper zfill"""
_ALLOWED_NODES = frozenset(_NODES.split())
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STR_METHODS.split()),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    int: frozenset({"bit_length"}),
    float: frozenset({"is_integer"}),
    range: frozenset({"count", "index"}),
}
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})


class BoundedEnvironment(MeteredEnvironment):
    """Compiles one template and renders it under ``meter``, which the caller sets anew for each rendering."""

    intercepted_binops = frozenset(sandbox.SandboxedEnvironment.default_binop_table)

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        # The optimizer would evaluate constant expressions while compiling, where no meter runs.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_GenerationTag, ext.loopcontrols]
        )
        self._functions = {
            **functions,
            "range": sandbox.safe_range,
            "dict": _new_dict,
            "namespace": _Namespace,
            "cycler": utils.Cycler,
            "joiner": utils.Joiner,
        }
        self.globals = dict(self._functions)
        self.filters = bounded_filters(self)

    def compile_bounded(self, source: str) -> jinja2.Template:
        """Raises ``TemplateSyntaxError`` and whatever else Jinja or Python think of a source they cannot compile."""
        if len(source) > _MAX_SOURCE_CHARS:
            raise ValueError(f"it has {len(source)} characters, more than the {_MAX_SOURCE_CHARS} allowed")
        return self.from_string(_Reporting().visit(self.parse(source)))

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.meter.tick()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.meter.tick()
        return super().getitem(obj, argument)

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        return self.meter.binary(operator, left, right)

    def call(self, context: runtime.Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls: a macro, a function it was given, or a listed method of a plain value."""
        self.meter.tick()
        self.meter.allow(sum(map(self.meter.weigh, [*args, *kwargs.values()])))
        if isinstance(function, BuiltinMethodType):
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return self.hold(self._call_method(function, list(args), kwargs))
        if not self._is_ours(function):
            raise jinja2.exceptions.SecurityError(f"{_name(function)} may not be called from a chat template")
        return self.hold(super().call(context, function, *args, **kwargs))

    def _is_ours(self, function: Any) -> bool:
        if any(function is ours for ours in self._functions.values()):
            return True
        if isinstance(function, MethodType):
            return isinstance(function.__self__, runtime.LoopContext | utils.Cycler)
        return isinstance(
            function, runtime.Macro | runtime.LoopContext | runtime.Undefined | utils.Joiner | _BoundFormat
        )

    def _call_method(self, method: BuiltinMethodType, args: list[Any], kwargs: dict[str, Any]) -> Any:
        owner, name = method.__self__, method.__name__
        if name not in _METHODS.get(type(owner), ()):
            raise jinja2.exceptions.SecurityError(f"{_name(method)} may not be called from a chat template")
        if not isinstance(owner, str):
            return method(*args, **kwargs)
        if name == "join" and len(args) == 1:
            return self.meter.join(owner, list(self.countable(args[0])))
        if name == "replace" and len(args) >= 2:
            return self.meter.replace(owner, *args)
        if name in _PADDING:
            width = [number for number in [*args, *kwargs.values()] if isinstance(number, int)]
            self.meter.allow(sum(width) * (owner.count("\t") + 1))
        if name in ("split", "rsplit"):
            return self._split(method, args, kwargs)
        if name == "splitlines" and len(owner) > MAX_ITEMS:
            self.meter.items(sum(map(owner.count, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")))
        return method(*args, **kwargs)

    def _split(self, method: BuiltinMethodType, args: list[Any], kwargs: dict[str, Any]) -> Any:
        separator = args[0] if args else kwargs.get("sep")
        wanted = args[1] if len(args) > 1 else kwargs.get("maxsplit", -1)
        most = wanted if isinstance(wanted, int) and 0 <= wanted <= MAX_ITEMS else MAX_ITEMS
        parts = method(separator, most)  # one part too many is refused when the result is accounted for
        self.meter.charge(self.meter.weigh(parts))
        return parts

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if not isinstance(value, BuiltinMethodType) or not isinstance(value.__self__, str):
            return None
        if value.__name__ != "format":
            return None
        return _BoundFormat(self, value.__self__)


class _BoundFormat:
    """``str.format`` with attribute access by the sandbox and each field metered."""

    def __init__(self, environment: BoundedEnvironment, template: str) -> None:
        self._environment, self._template = environment, template

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        return _Formatter(self._environment).vformat(self._template, args, kwargs)


class _Formatter(sandbox.SandboxedFormatter):
    def __init__(self, environment: BoundedEnvironment) -> None:
        super().__init__(environment)
        self._meter = environment.meter

    def format_field(self, value: Any, format_spec: str) -> Any:
        self._meter.format_spec(format_spec)
        return self._meter.hold(super().format_field(value, format_spec))


class _Namespace(utils.Namespace):
    """Jinja's namespace without underscore names, and printed without its content, which may contain itself."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_attribute(name)
        utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__


class _GenerationTag(ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; serving renders its body."""

    tags = {"generation"}

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


# Jinja dispatches on the names of these methods.
class _Reporting(visitor.NodeTransformer):
    """Rewrites a parsed template so that it reports: filters with names no template can spell wrap its expressions."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        kind = type(node).__name__
        if kind not in _ALLOWED_NODES:
            raise jinja2.TemplateSyntaxError(f"chat templates cannot use {kind}", node.lineno)
        return super().visit(node, *args, **kwargs)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_reported(EMIT, child) for child in node.nodes]
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        tick = _reported(TICK, nodes.Const(None, lineno=node.lineno))
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(tick, node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _reported(CONCAT, nodes.List(node.nodes, lineno=node.lineno))

    def _held(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return _reported(HOLD, node) if getattr(node, "ctx", "load") == "load" else node

    visit_List = visit_Tuple = visit_Dict = visit_Compare = visit_Test = _held

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _reported(HOLD, node) if isinstance(node.arg, nodes.Slice) else node


def _reported(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
