"""What the parsers of all styles share: text that is not yet read, and an output.

In: text as it streams; out: what is new.  A style says what its next step is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from penstock.text.marks import num_held
from penstock.text.tools.call_reader import CallReader
from penstock.text.tools.output import Output
from penstock.text.tools.style import CallPart

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")

Step = Callable[[], bool]


class StepParser:
    """A :class:`~penstock.text.tools.style.ToolParser` that goes on in steps while there is text to read.

    ``names`` are those on offer.  ``_step`` reads from ``_rest`` and answers whether another step may follow;
    ``_lead`` is the beginning of a call, which is text if no call comes of it;
    ``_end`` says what an output that ends here leaves of ``_rest``.
    """

    def __init__(self, names: frozenset[str], parallel: bool) -> None:
        self._names = names
        self._out = Output(parallel=parallel)
        self._rest = ""
        self._lead = ""
        self._step: Step

    @property
    def num_calls(self) -> int:
        return self._out.num_calls

    @property
    def in_call(self) -> bool:
        return self._out.in_call

    @property
    def is_over(self) -> bool:
        return self._out.is_over

    def push(self, text: str) -> tuple[str, list[CallPart]]:
        self._rest += text
        while self._rest and not self._out.is_over and self._step():
            pass
        return self._out.take()

    def flush(self) -> tuple[str, list[CallPart]]:
        self._end()
        self._out.end()
        return self._out.take()

    def _end(self) -> None:
        raise NotImplementedError

    def _leading(self) -> str:
        """Take the white space that the rest begins with."""
        rest = self._rest.lstrip()
        space = self._rest[: len(self._rest) - len(rest)]
        self._rest = rest
        return space

    def _pass(self, mark: str, give: Callable[[str], None]) -> bool:
        """Give what precedes ``mark``, as far as that is certain.  True: the mark came, and ``_rest`` is behind it."""
        before, found, after = self._rest.partition(mark)
        certain = len(before) - (0 if found else num_held(before, (mark,)))
        give(before[:certain])
        self._rest = after if found else before[certain:]
        return bool(found)

    def _read_call(self, reader: CallReader, *, whole: Step, broken: Step, none: Step) -> bool:
        """Read a call to its end: the next step is ``whole``, ``broken`` (its arguments went wrong), or ``none``."""
        self._rest = self._rest[reader.feed(self._rest) :]
        if not reader.ended:
            return False
        if reader.complete:
            self._step = whole
        elif reader.is_open:
            self._step = broken
        else:
            self._out.say(reader.left(self._lead))
            self._step = none
        return True


def looks_like_a_name(name: str) -> bool:
    """Whether a function could be called so; one that is not on offer is still a call, where a mark said it is one."""
    return _NAME.fullmatch(name) is not None
