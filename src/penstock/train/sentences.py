"""The first sentence of a documentation string, as one would quote it.

In: a documentation string; out: its first sentence on one line, or ``None`` where there is none worth quoting.
Signatures that older C documentation begins with ("D.get(k) -> v, ...") are left out.
"""

from __future__ import annotations

import inspect
import re

MAX_CHARACTERS = 160
_MIN_WORDS = 2
# A signature alone on its line, with or without what it returns.
_SIGNATURE_LINE = re.compile(r"^[\w.]+ ?\(.*\)( *-+> *\S.*)?$")
# A signature, what it returns, and then the description on the same line.
_SIGNATURE_THEN_TEXT = re.compile(r"^[\w.]+ ?\([^\n]*?\) *(?:-+> *[\w\[\](), |'*-]{1,40}?)?(?:[.,:;]| --?) +(?=\S)")
_SIGNATURE_RETURNS = re.compile(r"^[\w.]+\([^\n]*?\) *-+> *")
_SENTENCE_END = re.compile(r"[.!?][)\"'`]*(?= +[^a-z\s,;]|$)")
_ABBREVIATIONS = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|approx|resp|incl|no|fig|sec)\.)$", re.IGNORECASE)


def first_sentence(doc: str, max_characters: int = MAX_CHARACTERS) -> str | None:
    """The first sentence of ``doc``: on one line, white space collapsed, ended by a mark, not longer than allowed."""
    text = _description(inspect.cleandoc(doc))
    paragraph = " ".join(text.split("\n\n", 1)[0].split())
    sentence = _until_end(paragraph)
    if not _quotable(sentence):
        return None
    if sentence[:2].islower():
        sentence = sentence[0].upper() + sentence[1:]
    if not {*sentence[-2:]} & {*".!?"}:
        sentence += "."
    return sentence if len(sentence) <= max_characters else None


def _description(text: str) -> str:
    """``text`` without the signatures it begins with."""
    while text:
        line, _, rest = text.partition("\n")
        if match := _SIGNATURE_THEN_TEXT.match(text):
            return text[match.end() :]
        if not _SIGNATURE_LINE.match(line):
            return text
        returned = _SIGNATURE_RETURNS.sub("", line)
        if returned != line and len(returned.split()) > 3:
            return f"{returned}\n{rest}"
        text = rest.lstrip()
    return text


def _until_end(paragraph: str) -> str:
    for match in _SENTENCE_END.finditer(paragraph):
        if not _ABBREVIATIONS.search(paragraph[: match.start() + 1]):
            return paragraph[: match.end()]
    return paragraph


def _quotable(sentence: str) -> bool:
    """Words, not a table, a prompt or the head of a list that was cut off."""
    return (
        len(sentence.split()) >= _MIN_WORDS
        and sentence[0] not in "-=*#>|:"
        and sentence[-1] not in ":,;-([{"
        and sentence.isprintable()
        and sentence.isascii()
        and not any(mark in sentence for mark in (">>>", "::", "<|", "--|", "=="))
        and sum(map(str.isalpha, sentence)) >= len(sentence) / 2
    )
