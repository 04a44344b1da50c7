"""What an output has to be, token by token.

In: a :class:`~penstock.wire.engine.Grammar` and the tokens that were taken; out: which tokens may come next.
Implements :class:`penstock.engine.sequence.Constraint` without knowing it.  No grammar is touched in this process:
compiling and following one happen in :mod:`penstock.text.grammar_child`, where a hostile one can be ended.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from penstock.text.grammar_messages import Vocabulary
from penstock.text.grammar_process import Channel, GrammarProcess, Session
from penstock.text.reasoning import Thinking
from penstock.text.tokenizer import Tokenizer
from penstock.wire.engine import Grammar
from penstock.wire.errors import Problem

MAX_GRAMMAR_CHARS = 256 * 1024


class Grammars:
    """All constraints of one engine."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._process: GrammarProcess | None = None
        self._renewing = threading.Lock()

    def start(self) -> None:
        """Start the process behind them, if this tokenizer can be constrained; returns before it is ready."""
        if self._process is None and self._tokenizer.decodes_by_bytes:
            tokens = [self._tokenizer.token_bytes(token_id) for token_id in range(self._tokenizer.vocab_size)]
            special = self._tokenizer.special_token_ids | self._tokenizer.stop_token_ids
            self._process = GrammarProcess(Vocabulary(tokens, sorted(i for i in special if i < len(tokens))))

    def constrain(
        self,
        grammar: Grammar,
        *,
        stop_token_ids: frozenset[int],
        emitted_token_ids: list[int],
        thinking: Thinking | None = None,
    ) -> GrammarConstraint:
        """Follow ``grammar`` from the output's start, or from behind ``thinking``, over what was emitted already.

        ``stop_token_ids`` may come exactly where the grammar may end.  Blocks until the grammar has been compiled.
        Raises ``Problem``: ``grammar_invalid`` (wrong, impossible or beyond what can be enforced),
        ``grammar_too_complex``, ``invalid_value`` for emitted tokens that do not fit,
        ``unsupported_parameter`` for a tokenizer whose text is not the sum of its tokens.
        """
        if len(grammar.value) > MAX_GRAMMAR_CHARS:
            message = f"The grammar has {len(grammar.value)} characters; at most {MAX_GRAMMAR_CHARS} are allowed."
            raise Problem("grammar_too_complex", message, param=grammar.param)
        with self._renewing:
            if self._process is not None and self._process.is_lost:
                self.close()
                self.start()
            process = self._process
        if process is None:
            message = "This model's tokenizer does not write text byte by byte, so its output cannot be constrained."
            raise Problem("unsupported_parameter", message, param=grammar.param)
        trial = process.trial.open(grammar, [])
        try:
            process.trial.wait(trial)
        finally:
            process.trial.close(trial)
        constraint = GrammarConstraint(process.steps, grammar, self._tokenizer, stop_token_ids, thinking)
        constraint.begin(emitted_token_ids)
        return constraint

    def close(self) -> None:
        """End the process; constraints that are still followed fail."""
        if self._process is not None:
            self._process.close()
            self._process = None


class GrammarConstraint:
    """One output under a grammar.  Made by :meth:`Grammars.constrain`; whoever has it closes it.

    The next mask is computed in the grammar process, from :meth:`advance` on, while the model computes its step.
    """

    def __init__(
        self,
        channel: Channel,
        grammar: Grammar,
        tokenizer: Tokenizer,
        stop_token_ids: frozenset[int],
        thinking: Thinking | None,
    ) -> None:
        self._channel = channel
        self._grammar = grammar
        self._tokenizer = tokenizer
        self._end = tokenizer.vocab_size
        """Bit of a mask that says whether the text may end."""
        self._stops = stop_token_ids
        self._prelude = None if thinking is None else _Prelude(thinking, tokenizer)
        self._session: Session
        self._mask: bytes | None = None
        self._allowed: bytes | None = None
        """The grammar's own mask for the next token, once it is here."""
        self._taken: list[int] = []
        """Tokens that the grammar process has not been told of, since their masks were known before."""
        self._ahead: list[int] = []
        """Tokens that may come next; ``_further``: masks behind some of them, as the grammar process tells them."""
        self._further: list[bytes] = []

    def begin(self, emitted_token_ids: list[int]) -> None:
        """Replay what was emitted.  To be called once, first."""
        constrained: list[int] = []
        for index, token_id in enumerate(emitted_token_ids):
            passed = self._pass_prelude(token_id)
            if passed is None:
                constrained += emitted_token_ids[index:]
                break
            constrained += passed
        self._session = self._channel.open(self._grammar, constrained)
        self._channel.wait(self._session)

    def mask(self) -> bytes | None:
        """Which tokens may come next: bit ``i % 8`` of byte ``i // 8``, and none beyond; ``None``: any.

        Blocks until the mask is there.  What goes wrong is raised by :meth:`advance`, for this output alone.
        """
        prelude = self._prelude
        if prelude is not None and not prelude.is_offered:
            return None if prelude.forced is None else _with_bits(b"", [prelude.forced])
        if self._mask is None:
            try:
                self._mask = self._with_ends(self._wait())
            except Problem:
                return None
            if prelude is not None and prelude.forced is not None:
                self._mask = _with_bits(self._mask, [prelude.forced])
        return self._mask

    @property
    def foresees(self) -> bool:
        """Whether masks behind tokens that may come can be told: not while it thinks, or has not begun to."""
        return self._prelude is None

    def foresee(self, token_ids: list[int]) -> None:
        """Have the masks behind these made, which may come next in this order; returns at once."""
        self._channel.advance(self._session, self._taken, token_ids)
        self._taken, self._ahead, self._further = [], token_ids, []
        self._allowed = self._mask = None

    def masks(self, token_ids: list[int]) -> list[bytes | None]:
        """:meth:`mask`, and those behind each of these tokens, as far as they were foreseen and may come."""
        masks = [self.mask()]
        if self._prelude is None:
            for token_id, foreseen, mask in zip(token_ids, self._ahead, self._further, strict=False):
                if token_id != foreseen:
                    break
                masks.append(self._with_ends(mask))
        return masks

    def advance(self, token_id: int) -> bool:
        """Take the next token.  False: it ends the output and is no part of it.

        Raises the ``Problem`` that ends this output.
        """
        passed = self._pass_prelude(token_id)
        self._mask = None
        if passed is not None:
            for spelled in passed:
                self._take(spelled)
            return True
        return self._take(token_id)

    def close(self) -> None:
        """Forget the output's state."""
        self._channel.close(self._session)

    def _take(self, token_id: int) -> bool:
        allowed = self._wait()
        if token_id != self._end and _has_bit(allowed, token_id):
            self._taken.append(token_id)
            if self._further and self._ahead[0] == token_id:
                del self._ahead[0]
                self._allowed = self._further.pop(0)
            else:
                self._channel.advance(self._session, self._taken, [])
                self._taken, self._ahead, self._further, self._allowed = [], [], [], None
            return True
        if _has_bit(allowed, self._end):
            return False
        message = f"Token {token_id} was drawn and the grammar does not allow it: the model's logits are not finite."
        raise Problem("internal_error", message)

    def _wait(self) -> bytes:
        """The grammar's mask, in its own tokens."""
        if self._allowed is None:
            reply = self._channel.wait(self._session)
            self._allowed, self._further = reply.mask, reply.further
        return self._allowed

    def _with_ends(self, allowed: bytes) -> bytes:
        """The mask in the model's tokens: its stop tokens where the text may end."""
        if not _has_bit(allowed, self._end):
            return allowed
        text = bytearray(allowed)
        text[self._end // 8] &= ~(1 << self._end % 8)
        # Where nothing else is left a stop token ends the text even if the request ignores it.
        return _with_bits(text, self._stops if self._stops or any(text) else self._tokenizer.stop_token_ids)

    def _pass_prelude(self, token_id: int) -> list[int] | None:
        """``None``: the token is for the grammar.  Otherwise it was thinking, and the tokens are for the grammar."""
        prelude = self._prelude
        if prelude is None or (prelude.is_offered and token_id != prelude.forced):
            self._prelude = None
            return None
        rest = prelude.push(token_id)
        if rest is None:
            return []
        self._prelude = None
        return self._tokenizer.spell(rest.lstrip())


class _Prelude:
    """The thinking before a constrained text.

    ``is_offered``: it has not begun and need not.  ``forced``: the token that begins it or must come next in its mark.
    """

    def __init__(self, thinking: Thinking, tokenizer: Tokenizer) -> None:
        opening = [] if thinking.is_open else tokenizer.encode(thinking.opens or "", add_special_tokens=False)
        self._opening = deque(opening)
        self._token_bytes = tokenizer.token_bytes
        self._closes = thinking.closes.encode()
        self._tail = b""
        self.is_offered = not thinking.is_open

    @property
    def forced(self) -> int | None:
        return self._opening[0] if self._opening else None

    def push(self, token_id: int) -> bytes | None:
        """Take a token of the thinking: ``None`` while it goes on, at its end the bytes behind the mark."""
        self.is_offered = False
        if self._opening:
            self._opening.popleft()
            return None
        text = self._tail + self._token_bytes(token_id)
        _, mark, rest = text.partition(self._closes)
        self._tail = text[-len(self._closes) :]
        return rest if mark else None


def _has_bit(mask: bytes, index: int) -> bool:
    return index < 8 * len(mask) and bool(mask[index // 8] >> index % 8 & 1)


def _with_bits(mask: bytes | bytearray, indices: Iterable[int]) -> bytes:
    result = bytearray(mask)
    for index in indices:
        result.extend(bytes(max(0, index // 8 + 1 - len(result))))
        result[index // 8] |= 1 << index % 8
    return bytes(result)
