"""Jinja's filters as chat templates may use them: a fixed list, each metered.

In: a metered environment; out: its table of filters.
Left out on purpose: filters whose own code cannot be bounded from outside, and those for HTML pages.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from typing import Any

from jinja2 import filters as jinja_filters
from jinja2 import pass_context, runtime

from penstock.text.bounds import BoundError
from penstock.text.metered import MeteredEnvironment

# What the rewriting of sandbox.py inserts; a template cannot spell a name with a space.
EMIT, HOLD, CONCAT, TICK = " emit", " hold", " concat", " tick"

_PLAIN = """abs attr capitalize count d default first float int items last length lower reverse trim truncate upper"""
_WALKING = """batch dictsort groupby list map max min reject rejectattr select selectattr slice sort unique"""
_MAX_DIGITS = 300
_MAX_INDENT = 64


def bounded_filters(environment: MeteredEnvironment) -> dict[str, Callable[..., Any]]:
    """The whole table.  Every entry takes the context, which keeps Jinja from calling it while compiling."""
    ours = _Filters(environment)
    table = {name: ours.metered(jinja_filters.FILTERS[name], walks=False) for name in _PLAIN.split()}
    table |= {name: ours.metered(jinja_filters.FILTERS[name], walks=True) for name in _WALKING.split()}
    written: dict[str, Callable[..., Any]] = {
        EMIT: ours.emit,
        HOLD: ours.hold,
        CONCAT: ours.concat,
        TICK: ours.tick,
        "center": ours.center,
        "e": ours.escape,
        "escape": ours.escape,
        "format": ours.format,
        "indent": ours.indent,
        "join": ours.join,
        "replace": ours.replace,
        "round": ours.round,
        "safe": ours.string,
        "string": ours.string,
        "sum": ours.sum,
        "title": ours.title,
        "tojson": ours.tojson,
    }
    return table | {name: _with_context(function) for name, function in written.items()}


def text_of(value: Any) -> str:
    """As Jinja prints a value.  Bounded because every container was weighed when it was built."""
    return value if type(value) is str else str(value)


def _with_context(function: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def bounded(_context: runtime.Context, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return bounded


class _Filters:
    def __init__(self, environment: MeteredEnvironment) -> None:
        self._environment = environment
        self.hold = environment.hold

    def metered(self, function: Callable[..., Any], *, walks: bool) -> Callable[..., Any]:
        """One of Jinja's own, its operand counted if it walks it, its numbers kept small, its result held."""
        environment = self._environment
        passes = getattr(function, "jinja_pass_arg", None)

        @pass_context
        def bounded(context: runtime.Context, value: Any, *args: Any, **kwargs: Any) -> Any:
            environment.meter.tick()
            for number in [*args, *kwargs.values()]:
                if isinstance(number, int):
                    environment.meter.items(abs(number))
            if walks:
                environment.countable(value)
            first = {None: (), "context": (context,), "eval_context": (context.eval_ctx,)}.get(
                passes.name if passes else None, (environment,)
            )
            return environment.hold(function(*first, value, *args, **kwargs))

        return bounded

    def emit(self, value: Any) -> str:
        text = text_of(value)
        self._environment.meter.tick()
        self._environment.meter.charge(len(text))
        return text

    def tick(self, _value: Any) -> bool:
        self._environment.meter.tick()
        return True

    def concat(self, parts: list[Any]) -> str:
        return self._environment.meter.concat([text_of(part) for part in parts])

    def string(self, value: Any) -> str:
        text: str = self.hold(text_of(value))
        return text

    def escape(self, value: Any) -> str:
        text = html.escape(text_of(value)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
        escaped: str = self.hold(text)
        return escaped

    def title(self, value: Any) -> str:
        text = text_of(value)
        self._environment.meter.items(len(text))  # Jinja's title works word by word in Python
        titled: str = self.hold(jinja_filters.do_title(text))
        return titled

    def center(self, value: Any, width: int = 80) -> str:
        self._environment.meter.allow(width)
        centered: str = self.hold(text_of(value).center(width))
        return centered

    def format(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if args and kwargs:
            raise TypeError("can't handle positional and keyword arguments at the same time")
        return self._environment.meter.binary("%", text_of(value), kwargs or args)

    def indent(self, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        text = text_of(value)
        self._environment.meter.items(text.count("\n"))
        step = len(width) if isinstance(width, str) else width
        self._environment.meter.allow(len(text) + step * (text.count("\n") + 1))
        indented: str = self.hold(jinja_filters.do_indent(text, width, first, blank))
        return indented

    def join(self, value: Any, d: Any = "", attribute: str | int | None = None) -> str:
        items = self._environment.countable(value)
        if attribute is not None:
            items = map(jinja_filters.make_attrgetter(self._environment, attribute), items)
        return self._environment.meter.join(text_of(d), [text_of(item) for item in items])

    def replace(self, value: Any, old: Any, new: Any, count: int | None = None) -> str:
        most = -1 if count is None else count
        return self._environment.meter.replace(text_of(value), text_of(old), text_of(new), most)

    def round(self, value: Any, precision: int = 0, method: Any = "common") -> Any:
        if abs(precision) > _MAX_DIGITS:
            raise BoundError(f"rounds to {precision} digits; at most {_MAX_DIGITS} are allowed")
        return self.hold(jinja_filters.do_round(value, precision, method))

    def sum(self, value: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
        items = self._environment.countable(value)
        if attribute is not None:
            items = map(jinja_filters.make_attrgetter(self._environment, attribute), items)
        total = start
        for item in items:
            total = self._environment.meter.binary("+", total, item)
        return total

    def tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as ``transformers`` writes it: nothing escaped for HTML."""
        step = indent if isinstance(indent, int) else len(indent or "")
        if step > _MAX_INDENT or any(len(separator) > _MAX_INDENT for separator in separators or ()):
            raise BoundError(f"indents or separates JSON by more than {_MAX_INDENT} characters")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self._environment.meter.weigh(value)
        if indent is None:
            text: str = self.hold(encoder.encode(value))
            return text
        # Indentation multiplies by depth, so count while it is written.
        parts: list[str] = []
        for part in encoder.iterencode(value):
            self._environment.meter.tick()
            self._environment.meter.charge(len(part))
            parts.append(part)
        return "".join(parts)
