"""From a request to its prompt: rendered, tokenised, checked; and to whatever reads the answer.

In: decoded requests and a booted engine; out: token ids.  For a worker thread, as templates take their time.
"""

from __future__ import annotations

from typing import Any

from penstock.engine.server.booted import Booted
from penstock.text.answer import AnswerParser
from penstock.wire.engine import GenerateRequest
from penstock.wire.errors import Problem
from penstock.wire.tokenization import TokenizeRequest

_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})


def prompt_of(request: GenerateRequest, booted: Booted, model: str) -> tuple[list[int], AnswerParser]:
    """The prompt's ids, and what is to read the answer: only a chat's answer has parts.

    Raises ``Problem`` for what cannot be rendered, is empty, or is no token.
    """
    tokenizer, answer = booted.tokenizer, AnswerParser()
    if request.messages is not None:
        go_on, use = request.continue_final_message, request.tool_use
        text = _rendered(
            booted,
            model,
            request.messages,
            use.tools if use is not None else [],
            request.template_kwargs,
            add_generation_prompt=request.add_generation_prompt and not go_on,
            continue_final_message=go_on,
        )
        prompt_ids = tokenizer.encode(text, add_special_tokens=False)
        continued = str(request.messages[-1]["content"]) if go_on else None
        answer = booted.answers.parser(tokenizer, text, continued=continued, use=use)
    elif request.text is not None:
        prompt_ids = tokenizer.encode(request.text)
    else:
        prompt_ids = list(request.token_ids or [])
        check_ids(prompt_ids, booted, "prompt")
    check_ids(request.emitted_token_ids, booted, "emitted_token_ids")
    if not prompt_ids:
        raise Problem("invalid_value", "The prompt has no tokens; give at least one.", param="prompt")
    if tokenizer.vocab_size > booted.vocab_size:  # a text may spell a special token that the model has no row for
        check_ids(prompt_ids, booted, "prompt")
    return prompt_ids, answer


def tokens_of(request: TokenizeRequest, booted: Booted, model: str) -> list[int]:
    """The ids of a text, or of messages as a prompt.  Raises ``Problem`` for what cannot be rendered."""
    if request.text is not None:
        return booted.tokenizer.encode(request.text, add_special_tokens=request.add_special_tokens)
    text = _rendered(
        booted,
        model,
        request.messages or [],
        request.tools,
        request.template_kwargs,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=False,
    )
    return booted.tokenizer.encode(text, add_special_tokens=False)


def check_ids(token_ids: list[int], booted: Booted, param: str) -> None:
    """Raise ``invalid_value`` for an id that the vocabulary lacks."""
    for token_id in token_ids:
        if not 0 <= token_id < booted.vocab_size:
            message = f"Token id {token_id} is not in the vocabulary of {booted.vocab_size} tokens."
            raise Problem("invalid_value", message, param=param)


def _rendered(
    booted: Booted,
    model: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    kwargs: dict[str, Any],
    **modes: bool,
) -> str:
    template = booted.tokenizer.chat_template
    if template is None:
        message = f"{model} has no chat template; use /v1/completions, or add chat_template.jinja beside it."
        raise Problem("template_error", message, param="messages")
    reserved = _RESERVED & kwargs.keys()
    if reserved:
        names = ", ".join(sorted(reserved))
        raise Problem("invalid_value", f"{names}: not for template arguments to set.", param="chat_template_kwargs")
    return template.render(messages, tools=tools or None, **modes, **kwargs)
