"""What one output has become so far: text, and calls in order.

In: text and pieces of calls as a parser finds them; out: what is new since it was last asked.
White space around calls is nobody's: models put line breaks between calls, and templates put them back.
"""

from __future__ import annotations

from penstock.text.tools.style import CallPart


class Output:
    """``parallel`` false: with the first call complete, the output is over and nothing more is taken.

    ``in_call``: the call that was begun last is not complete.
    """

    def __init__(self, *, parallel: bool) -> None:
        self.num_calls = 0
        self.in_call = False
        self.is_over = False
        self._parallel = parallel
        self._text = ""
        self._space = ""
        self._after_call = False
        self._parts: list[CallPart] = []

    def say(self, text: str) -> None:
        """Text of the answer.  Its trailing white space waits, as a call may follow."""
        if self.is_over or not text:
            return
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        text, self._space = self._space + text, ""
        kept = text.rstrip()
        self._text += kept
        self._space = text[len(kept) :]

    def begin(self, name: str) -> None:
        if self.is_over:
            return
        self._space = ""
        self._parts.append(CallPart(self.num_calls, name))
        self.num_calls += 1
        self.in_call = True

    def argue(self, arguments: str) -> None:
        """More of the arguments of the call that was begun last."""
        if self.is_over or not arguments:
            return
        index = self.num_calls - 1
        if self._parts and self._parts[-1].index == index:
            self._parts[-1].arguments += arguments
        else:
            self._parts.append(CallPart(index, "", arguments))

    def end_call(self) -> None:
        self.in_call = False
        self._after_call = True
        self.is_over = not self._parallel

    def end(self) -> None:
        """The output ended: no call follows any more."""
        if not self.is_over:
            self._text += self._space
        self._space = ""

    def take(self) -> tuple[str, list[CallPart]]:
        """What is new."""
        taken = self._text, self._parts
        self._text, self._parts = "", []
        return taken
