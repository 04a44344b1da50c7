"""What stands between a model's thinking marks, apart from its answer, while text streams.

In: the prompt's end and text in chunks of any size; out: (reasoning, answer).  Knows text alone, so that the same
output gives the same two texts however it was cut into tokens, and replayed tokens restore the state.
Which checkpoint thinks in which marks, and what counts as thinking: docs/decisions/006-parts-of-an-answer.md.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from penstock.text.marks import num_held


@dataclass(frozen=True, slots=True)
class ThinkingMarks:
    """The two texts around a model's thinking."""

    open: str
    close: str


MARKS = {
    "think": ThinkingMarks("<think>", "</think>"),  # Qwen3, DeepSeek-R1 and what was distilled from it
    "mistral": ThinkingMarks("[THINK]", "[/THINK]"),  # Magistral
    "seed": ThinkingMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
}


@dataclass(frozen=True, slots=True)
class Thinking:
    """What precedes the constrained part of an output: text up to and including ``closes``.

    ``is_open``: the prompt began it.  Otherwise the model may, by writing ``opens`` first; ``None``: it may not.
    """

    closes: str
    opens: str | None = None
    is_open: bool = False


class Passage(enum.Enum):
    """Where an answer is: it may still open its thinking, is in it, or is past it."""

    UNDECIDED = "undecided"
    THINKING = "thinking"
    ANSWER = "answer"


def find_marks(template: str, has_token: Callable[[str], bool]) -> ThinkingMarks | None:
    """The marks of a checkpoint: those its chat template closes, or that are tokens of their own; ``None``: neither."""
    for marks in MARKS.values():
        if marks.close in template or (has_token(marks.open) and has_token(marks.close)):
            return marks
    return None


def passage_after(prompt: str, marks: ThinkingMarks, continued: str | None = None) -> Passage:
    """Where the answer to a rendered prompt begins.

    ``continued`` is the text of the final message when the model is to go on with it.  Only the prompt's end counts:
    marks that a user wrote earlier say nothing.
    """
    if continued is not None and (own := continued.strip()):
        inside = own.startswith(marks.open) and marks.close not in own
        return Passage.THINKING if inside else Passage.ANSWER
    end = prompt.rstrip()
    if end.endswith(marks.open):
        return Passage.THINKING
    return Passage.ANSWER if end.endswith(marks.close) else Passage.UNDECIDED


class ThinkingSplitter:
    """One answer.  Thinking is what its beginning opens (or the prompt has opened), up to the first closing mark.

    Marks anywhere else are text of the answer.  The line breaks next to the marks belong to neither side.
    """

    def __init__(self, marks: ThinkingMarks, passage: Passage) -> None:
        self._marks = marks
        self._held = ""
        self._trim = passage is Passage.THINKING
        self.passage = passage
        self.has_thought = passage is Passage.THINKING

    @property
    def thinking(self) -> Thinking | None:
        """Thinking that is open now or may be opened next; ``None`` behind it."""
        if self.passage is Passage.ANSWER:
            return None
        is_open = self.passage is Passage.THINKING
        return Thinking(closes=self._marks.close, opens=None if is_open else self._marks.open, is_open=is_open)

    def push(self, text: str) -> tuple[str, str]:
        """Take more text: what of it is reasoning and what is answer, as far as that is certain."""
        text, self._held = self._held + text, ""
        reasoning = ""
        if self.passage is Passage.UNDECIDED:
            text = self._decide(text)
        if self.passage is Passage.THINKING:
            reasoning, text = self._think(text)
        if self.passage is Passage.ANSWER:
            return reasoning, self._trimmed(text)
        return reasoning, ""

    def flush(self) -> tuple[str, str]:
        """The output ended: what was held back, as what it then is."""
        held, self._held = self._held, ""
        return (held, "") if self.passage is Passage.THINKING else ("", held)

    def _decide(self, text: str) -> str:
        """Open the thinking, or the answer, or hold ``text`` until that is known; what is to be read on."""
        begin = text.lstrip()
        if begin.startswith(self._marks.open):
            self.passage, self.has_thought, self._trim = Passage.THINKING, True, True
            return begin[len(self._marks.open) :]
        if self._marks.open.startswith(begin):
            self._held = text
            return ""
        self.passage = Passage.ANSWER
        return text

    def _think(self, text: str) -> tuple[str, str]:
        text = self._trimmed(text)
        end = text.find(self._marks.close)
        if end >= 0:
            self.passage, self._trim = Passage.ANSWER, True
            return text[:end].rstrip("\n"), text[end + len(self._marks.close) :]
        certain = text[: len(text) - num_held(text, (self._marks.close,))].rstrip("\n")
        self._held = text[len(certain) :]
        return certain, ""

    def _trimmed(self, text: str) -> str:
        if self._trim:
            text = text.lstrip("\n")
            self._trim = not text
        return text
