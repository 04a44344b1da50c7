"""Stop strings, found across token and character borders while text streams.

In: text in chunks of any size; out: the text that is safe to send, and the stop string once it is complete.
Rule: the stop string that is complete first wins; of several complete at one character, the longest.  So nothing
waits for text that may never come, and the verdict depends on the text alone, never on its chunks.
"""

from __future__ import annotations

from penstock.wire.errors import Problem


class StopMatcher:
    """Watches one stream; holds back only the longest suffix that may still begin a stop string.

    One Knuth-Morris-Pratt automaton per stop string: constant amortised work per character and stop string,
    whatever their lengths.  Raises ``Problem("invalid_value")`` for an empty stop string.
    """

    def __init__(self, stops: list[str]) -> None:
        if "" in stops:
            raise Problem("invalid_value", "A stop string is empty; leave it out.", param="stop")
        self._stops = list(dict.fromkeys(stops))
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self._found: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text: ``(text that is safe to emit, the stop string that matched or None)``.

        The stop string itself and what follows it are never emitted; after a match every push answers ``("", stop)``.
        """
        if self._found is not None:
            return "", self._found
        if not self._stops:
            return text, None
        whole = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            if (stop := self._advance(char)) is not None:
                self._found, self._held = stop, ""
                return whole[: end - len(stop)], stop
        safe = len(whole) - max(self._matched)
        self._held = whole[safe:]
        return whole[:safe], None

    def flush(self) -> str:
        """The text ended: what was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _advance(self, char: str) -> str | None:
        complete = None
        for index, stop in enumerate(self._stops):
            matched, borders = self._matched[index], self._borders[index]
            while matched and stop[matched] != char:
                matched = borders[matched - 1]
            if stop[matched] == char:
                matched += 1
            if matched == len(stop):
                complete = stop if complete is None or len(stop) > len(complete) else complete
                matched = borders[-1]
            self._matched[index] = matched
        return complete


def _borders(pattern: str) -> list[int]:
    """For each prefix of the pattern, the length of its longest proper border (prefix that is also its suffix)."""
    borders = [0] * len(pattern)
    length = 0
    for end in range(1, len(pattern)):
        while length and pattern[end] != pattern[length]:
            length = borders[length - 1]
        if pattern[end] == pattern[length]:
            length += 1
        borders[end] = length
    return borders
