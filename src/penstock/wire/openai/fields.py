"""The fields that chat and text completions share, the ranges of their values, and their way to the engine.

In: a decoded request; out: the engine's ``Sampling``, or a ``Problem`` that names the field.
Ranges follow https://platform.openai.com/docs/api-reference; the wider ones are stated at each row.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from penstock.wire.engine import Sampling
from penstock.wire.errors import Problem
from penstock.wire.openai.decode import Field

MAX_CHOICES = 512
MAX_STOPS = 16
MAX_STOP_CHARS = 512
MAX_LOGIT_BIASES = 1024
MAX_TOKENS = 1 << 24
MAX_TOKEN_ID = (1 << 31) - 1
MAX_TOP_LOGPROBS = 20
_SEED_MASK = (1 << 63) - 1

Absent = Field
"""A field this release knows and does not act on."""
UNSET = msgspec.UNSET


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class Shared(msgspec.Struct, kw_only=True, frozen=True):
    """What both kinds of completion take.  Everything may be null, which means: as if left out."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    response_format: Field = UNSET
    structured_outputs: Field = UNSET
    guided_json: Field = UNSET
    guided_regex: Field = UNSET
    guided_choice: Field = UNSET
    guided_grammar: Field = UNSET
    use_beam_search: Absent = UNSET
    user: str | None = None
    """Whose request it is: all of one user's fall on the same side of a split name."""

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


SHARED_UNSUPPORTED = ("use_beam_search",)

_ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "store": (False,),
    "suffix": ("",),
    "use_beam_search": (False,),
}

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("n", 1, 128),
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("top_k", -1, MAX_TOKEN_ID),  # not OpenAI's; 0 and -1 switch it off, as other servers read them
    ("min_p", 0, 1),  # not OpenAI's
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("repetition_penalty", 0, 10),  # not OpenAI's
    ("min_tokens", 0, MAX_TOKENS),
    ("priority", -MAX_TOKEN_ID, MAX_TOKEN_ID),  # not OpenAI's; vLLM's: the lower number goes first
    ("seed", -(1 << 63), (1 << 63) - 1),
)


def refuse_unsupported(request: msgspec.Struct, names: tuple[str, ...], prefix: str = "", instead: str = "") -> None:
    """Raise ``unsupported_parameter`` for the first of ``names`` that asks for something; ``instead``: what to use."""
    for name in names:
        raw = getattr(request, name)
        if raw is UNSET:
            continue
        param = prefix + name
        value = _decode_unsupported(raw, param)
        if value is not None and value not in _ASKS_NOTHING.get(name, ()):
            message = f"{param} is not supported by this release."
            if instead:
                message = f"{param} is not supported; use {instead}."
            raise Problem("unsupported_parameter", message, param=param)


def _decode_unsupported(raw: msgspec.Raw, param: str) -> Any:
    """The decoder of the request skips such a field unseen: what is wrong in it comes to light here."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem("invalid_value", f"{param} holds a value that cannot be read.", param=param) from None


def check_shared(request: Shared) -> None:
    """Raise ``invalid_value`` for the first field whose value is out of its range."""
    for name, low, high in _RANGES:
        value = getattr(request, name)
        if value is not None and not low <= value <= high:
            raise out_of_range(name, value, low, high)
    for name in ("top_p", "repetition_penalty"):
        if getattr(request, name) == 0:
            raise Problem("invalid_value", f"{name} is 0; it must be greater than 0.", param=name)
    if request.stream_options is not None and not request.stream:
        raise Problem("invalid_value", "stream_options needs stream: true.", param="stream_options")
    if request.stop is not None:
        _check_stops(request.stop)
    if request.stop_token_ids is not None:
        check_token_ids(request.stop_token_ids, "stop_token_ids")


def out_of_range(name: str, value: float, low: float, high: float) -> Problem:
    return Problem("invalid_value", f"{name} is {value}; it must be from {low} to {high}.", param=name)


def check_max_tokens(value: int | None, name: str, *, least: int, min_tokens: int | None) -> None:
    """The bound on output tokens: at least ``least``, and no fewer than ``min_tokens``."""
    if value is None:
        return
    if not least <= value <= MAX_TOKENS:
        raise out_of_range(name, value, least, MAX_TOKENS)
    if min_tokens is not None and min_tokens > value:
        raise Problem("invalid_value", f"min_tokens is {min_tokens}, more than {name}, {value}.", param="min_tokens")


def check_token_ids(token_ids: list[int], name: str) -> None:
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id <= MAX_TOKEN_ID:
            param = f"{name}[{index}]"
            raise Problem("invalid_value", f"{param} is {token_id}, which is no token id.", param=param)


def _check_stops(stop: str | list[str]) -> None:
    stops = [stop] if isinstance(stop, str) else stop
    if len(stops) > MAX_STOPS:
        raise Problem("invalid_value", f"stop has {len(stops)} entries; at most {MAX_STOPS} are allowed.", param="stop")
    for text in stops:
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            message = f"stop has an entry of {len(text)} characters; 1 to {MAX_STOP_CHARS} are allowed."
            raise Problem("invalid_value", message, param="stop")


def stops_of(request: Shared) -> list[str]:
    if request.stop is None:
        return []
    return [request.stop] if isinstance(request.stop, str) else request.stop


def _logit_bias(biases: dict[str, float]) -> dict[int, float]:
    if len(biases) > MAX_LOGIT_BIASES:
        message = f"logit_bias has {len(biases)} entries; at most {MAX_LOGIT_BIASES} are allowed."
        raise Problem("invalid_value", message, param="logit_bias")
    result = {}
    for key, value in biases.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= MAX_TOKEN_ID):
            raise Problem("invalid_value", "logit_bias has a key that is no token id.", param="logit_bias")
        if not (math.isfinite(value) and -100 <= value <= 100):
            message = f"logit_bias[{key}] is {value}; it must be from -100 to 100."
            raise Problem("invalid_value", message, param="logit_bias")
        result[int(key)] = value
    return result


def derived_seed(seed: int, choice: int) -> int:
    """The seed of one choice, 0 <= seed < 2**63; choice 0 keeps the caller's, so ``n`` never changes the first answer.

    The mixing is SplitMix64's: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    if choice == 0:
        return seed & _SEED_MASK
    mask = (1 << 64) - 1
    z = (seed + choice * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) & _SEED_MASK


def samplings(request: Shared, drawn_seed: int, num_choices: int) -> list[Sampling]:
    """One ``Sampling`` per choice, with ``drawn_seed`` where the caller set none."""
    seed = drawn_seed if request.seed is None else request.seed
    bias = _logit_bias(request.logit_bias) if request.logit_bias else None
    return [
        Sampling(
            seed=derived_seed(seed, choice),
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=None if request.top_k is None else max(request.top_k, 0),
            min_p=request.min_p,
            repetition_penalty=request.repetition_penalty,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            logit_bias=bias,
        )
        for choice in range(num_choices)
    ]
