"""Chat messages to a prompt, by the template that came with the checkpoint.

In: messages as OpenAI writes them; out: the prompt's text, special tokens spelled out.
The template is untrusted code: rendering ends within its time and memory bounds or in ``Problem("template_error")``
(the mechanism is in sandbox.py).  Renders as ``transformers.apply_chat_template`` does, which tests/parity shows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from penstock.text.bounds import BoundError, Meter
from penstock.text.sandbox import BoundedEnvironment
from penstock.wire.errors import Problem

_MIB = 1024 * 1024
# Memory a rendering may use, as multiples of the output it may produce.
_VALUE_FACTOR = 2
_TOTAL_FACTOR = 12
# Appended to the message that is to be continued, then cut off with everything the template puts after it.
# The trailing space tells whether the template trims the message.
_CONTINUE_MARK = "<<penstock: continue here>> "
_RESERVED = ("messages", "add_generation_prompt")


class ChatTemplate:
    """One compiled template.  Thread-safe; renderings of one template take turns.

    ``special_tokens`` are variables of the template (``bos_token`` ...).  ``origin`` names the file in errors.
    ``output_limit`` counts characters.  ``clock`` gives monotonic seconds, ``now`` the date for ``strftime_now``.
    Raises ``Problem("checkpoint_invalid")`` for a template that cannot be compiled.
    """

    def __init__(
        self,
        source: str,
        special_tokens: dict[str, str],
        *,
        origin: str = "chat_template",
        time_limit_s: float = 1.0,
        output_limit: int = 4 * _MIB,
        clock: Callable[[], float] = time.monotonic,  # noqa: TID251 - a bound on untrusted code is real time
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self._special_tokens = special_tokens
        self._time_limit_s, self._output_limit, self._clock, self._now = time_limit_s, output_limit, clock, now
        self._turn = threading.Lock()
        self._environment = BoundedEnvironment({"raise_exception": _refuse, "strftime_now": self._strftime_now})
        try:
            self._template = self._environment.compile_bounded(source)
        except Exception as error:  # Jinja's own errors, and Python's for code nested too deeply or numbers too long
            line = getattr(error, "lineno", None)
            where = f"{origin}, line {line}" if line else origin
            raise Problem(
                "checkpoint_invalid",
                f"{where}: the chat template cannot be compiled: {_reason(error)}. Correct it there.",
            ) from error

    def render(
        self,
        messages: list[dict[str, Any]],
        /,
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt.  ``kwargs`` are further variables of the template (``tools``, ``enable_thinking`` ...).

        ``continue_final_message`` leaves the last message open, for the model to go on with.
        Raises ``Problem``: "invalid_value" for messages that are no text, "template_error" when the template refuses
        them (its own words), fails, or exceeds a bound.
        """
        for name in _RESERVED:
            if name in kwargs:
                raise Problem("invalid_value", f"{name!r} cannot be set among the template's variables.", param=name)
        if continue_final_message and add_generation_prompt:
            raise Problem(
                "invalid_value",
                "add_generation_prompt and continue_final_message exclude one another; set one of them to false.",
                param="continue_final_message",
            )
        plain = [_plain_message(index, message) for index, message in enumerate(messages)]
        final = _mark_final(plain) if continue_final_message else None
        variables = {"tools": None, "documents": None, **self._special_tokens, **kwargs}
        text = self._render(variables | {"messages": plain, "add_generation_prompt": add_generation_prompt})
        return text if final is None else _cut_at_mark(text, final)

    def _render(self, variables: dict[str, Any]) -> str:
        limit = self._output_limit
        with self._turn:
            self._environment.meter = Meter(
                self._clock, self._time_limit_s, _VALUE_FACTOR * limit, _TOTAL_FACTOR * limit
            )
            pieces: list[str] = []
            size = 0
            try:
                for piece in self._template.generate(variables):
                    pieces.append(piece)
                    size += len(piece)
                    if size > limit:
                        raise BoundError(f"writes more than {limit} characters")
            except _RefusalError as refusal:
                raise Problem("template_error", str(refusal), param="messages") from None
            except BoundError as bound:
                raise Problem("template_error", f"The chat template {bound}.", param="messages") from None
            except Exception as error:  # whatever untrusted code can raise, MemoryError and RecursionError included
                raise Problem(
                    "template_error", f"The chat template failed{_line(error)}: {_reason(error)}.", param="messages"
                ) from error
        return "".join(pieces)

    def _strftime_now(self, format: str) -> str:
        if len(format) > 256:
            raise BoundError("formats a date with more than 256 characters")
        return self._now().strftime(format)


class _RefusalError(Exception):
    """``raise_exception`` was called: the template's own words about the messages."""


def _refuse(message: Any = "") -> None:
    raise _RefusalError(str(message) or "The chat template refused these messages.")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = getattr(error, "message", None) or str(error)
    return (text or type(error).__name__).rstrip(".")


def _line(error: Exception) -> str:
    """Where in the template an error arose; Jinja gives its frames the template's line numbers."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" at its line {line}" if line else ""


def _plain_message(index: int, message: Any) -> dict[str, Any]:
    """A copy whose content is text or null.

    A list of text parts is joined without a separator: every template takes a string, many fail on a list, and those
    that walk the parts write them one after the other, so that the result is the same.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Problem(
            "invalid_value", f"messages[{index}] must be an object with a text field 'role'.", param="messages"
        )
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    if not isinstance(content, list):
        raise Problem("invalid_value", f"messages[{index}].content must be text or a list of parts.", param="messages")
    for number, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise Problem(
                "invalid_value",
                f"messages[{index}].content[{number}] has type {kind!r}; this model takes text parts only.",
                param="messages",
            )
    return message | {"content": "".join(part["text"] for part in content)}


def _mark_final(messages: list[dict[str, Any]]) -> str:
    """Put the mark behind the last message; answer that message's text."""
    final = messages[-1].get("content") if messages else None
    if not isinstance(final, str):
        raise Problem(
            "invalid_value",
            "continue_final_message needs a last message with text to go on with.",
            param="continue_final_message",
        )
    messages[-1]["content"] = final + _CONTINUE_MARK
    return final


def _cut_at_mark(text: str, final: str) -> str:
    at = text.rfind(_CONTINUE_MARK.strip())
    if at < 0 or final.strip() not in text[:at]:
        raise Problem(
            "template_error",
            "The chat template changes or drops the final message, so it cannot be continued.",
            param="continue_final_message",
        )
    kept = text[:at]
    # A template that trims its messages would have trimmed this one's trailing space as well.
    return kept if text.startswith(_CONTINUE_MARK, at) else kept.rstrip()
