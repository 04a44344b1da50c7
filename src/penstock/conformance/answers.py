"""Plain answers: the list of models, the shape of a completion, its usage, where it stops."""

from __future__ import annotations

from typing import Any

from penstock.conformance.check import Check, NotApplicable, answered, demand
from penstock.conformance.endpoint import Endpoint

_REASONS = ("stop", "length", "tool_calls", "content_filter")
_STOP_CHARS = 3


async def lists_models(endpoint: Endpoint) -> str:
    listed = answered(await endpoint.ask("GET", "/models"))
    demand(listed.get("object") == "list", f"object is {listed.get('object')!r}")
    cards = listed.get("data")
    demand(isinstance(cards, list) and cards, f"data is {cards!r}")
    for card in cards:
        demand(isinstance(card, dict) and card.get("object") == "model", f"a card is {card!r}")
    names = [card.get("id") for card in cards]
    demand(endpoint.model in names, f"{endpoint.model} is not among {names[:5]}")
    return f"{len(names)} listed"


async def has_the_shape(endpoint: Endpoint) -> str:
    answer = answered(await endpoint.chat())
    demand(answer.get("object") == "chat.completion", f"object is {answer.get('object')!r}")
    demand(isinstance(answer.get("id"), str) and answer["id"], f"id is {answer.get('id')!r}")
    demand(isinstance(answer.get("created"), int), f"created is {answer.get('created')!r}")
    demand(isinstance(answer.get("model"), str), f"model is {answer.get('model')!r}")
    choice = _choice(answer)
    demand(choice.get("index") == 0, f"index is {choice.get('index')!r}")
    message = choice.get("message") or {}
    demand(message.get("role") == "assistant", f"the message's role is {message.get('role')!r}")
    demand(isinstance(message.get("content"), str), f"the content is {message.get('content')!r}")
    demand(choice.get("finish_reason") in _REASONS, f"finish_reason is {choice.get('finish_reason')!r}")
    return f"finish_reason {choice['finish_reason']}"


async def counts_usage(endpoint: Endpoint) -> str:
    return usage_adds_up(answered(await endpoint.chat(max_tokens=24)).get("usage"), most=24)


async def keeps_max_tokens(endpoint: Endpoint) -> str:
    for name in ("max_tokens", "max_completion_tokens"):
        body = endpoint.chat_body(max_tokens=2)
        body[name] = body.pop("max_tokens")
        answer = answered(await endpoint.ask("POST", "/chat/completions", body))
        usage_adds_up(answer.get("usage"), most=2)
        reason = _choice(answer).get("finish_reason")
        demand(reason in ("length", "stop"), f"with {name} finish_reason is {reason!r}")
    return "2 tokens with either name"


async def ends_at_a_stop_string(endpoint: Endpoint) -> str:
    text = _text(answered(await endpoint.chat()))
    stop = next(
        (
            text[start : start + _STOP_CHARS]
            for start in range(1, len(text) - _STOP_CHARS)
            if text[start : start + _STOP_CHARS].isprintable() and "\ufffd" not in text[start : start + _STOP_CHARS]
        ),
        None,
    )
    if stop is None:
        raise NotApplicable(f"the answer {text!r} has no place to stop at")
    answer = answered(await endpoint.chat(stop=[stop]))
    demand(_text(answer) == text[: text.index(stop)], f"with stop {stop!r} {text!r} became {_text(answer)!r}")
    reason = _choice(answer).get("finish_reason")
    demand(reason == "stop", f"finish_reason is {reason!r}")
    return f"stopped at {stop!r}"


async def repeats_itself(endpoint: Endpoint) -> str:
    texts = {_text(answered(await endpoint.chat(seed=7))) for _ in range(2)}
    demand(len(texts) == 1, f"two answers: {sorted(texts)}")
    return "two answers are equal"


def usage_adds_up(usage: Any, most: int) -> str:
    """``NotTrue`` unless a usage has its three counts, which add up and keep ``most`` tokens of output."""
    demand(isinstance(usage, dict), f"usage is {usage!r}")
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    demand(all(isinstance(count, int) for count in counts), f"usage is {usage}")
    prompt, output, total = counts
    demand(prompt > 0 and 0 <= output <= most and prompt + output == total, f"for {most} tokens usage is {usage}")
    return f"{prompt} and {output} tokens"


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    demand(isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict), f"choices are {choices!r}")
    assert isinstance(choices, list)
    choice: dict[str, Any] = choices[0]
    return choice


def _text(answer: dict[str, Any]) -> str:
    return (_choice(answer).get("message") or {}).get("content") or ""


CHECKS = (
    Check("models-list", "GET /models is a list of models with the one that is asked for.", lists_models),
    Check("answer-shape", "An answer has id, object, created, model and one choice with its message.", has_the_shape),
    Check("answer-usage", "The usage of an answer has three counts that add up.", counts_usage),
    Check("answer-length", "max_tokens and max_completion_tokens bound the tokens of an answer.", keeps_max_tokens),
    Check("answer-stop", "A stop string ends the text before it, with finish_reason stop.", ends_at_a_stop_string),
    Check("answer-seed", "The same greedy request with the same seed has the same answer.", repeats_itself),
)
