"""Conversations, and how they become tokens: only what the assistant says is to be predicted.

In: messages and a tokenizer; out: :class:`Document`.  The tokens are those that the served chat template gives, with
the prompt and the answer encoded apart, as they are when a model is asked: tests hold that they agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from penstock.text.tokenizer import Tokenizer
from penstock.train.bpe import CHAT_TEMPLATE_MESSAGES, END_OF_TEXT, TURN_END, TURN_START
from penstock.train.chance import happens, pick, shuffled
from penstock.train.tokens import Document

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant that answers questions about Python.",
    "Answer briefly.",
    "You are an expert programmer.",
)
_SYSTEM_SHARE = 0.05
_TWO_TURN_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and the answer that is right."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Exchanges in order, after an optional system message."""

    exchanges: tuple[Exchange, ...]
    system: str | None = None


def as_chats(exchanges: list[Exchange], seed: int) -> list[Chat]:
    """Every exchange once, in an order drawn from ``seed``, in chats of one or two, some with a system message.

    Two are the most the chat template shows the model, so no longer ones are needed.
    """
    assert CHAT_TEMPLATE_MESSAGES == 3
    order = shuffled(exchanges, seed, "order")
    chats = []
    at = 0
    while at < len(order):
        turns = 2 if happens(_TWO_TURN_SHARE, seed, "turns", at) else 1
        system = pick(_SYSTEM_PROMPTS, seed, "which", at) if happens(_SYSTEM_SHARE, seed, "system", at) else None
        # A system message takes the place of the earlier exchange in what the template shows.
        turns = 1 if system is not None else turns
        chats.append(Chat(tuple(order[at : at + turns]), system))
        at += turns
    return chats


def encode_chats(tokenizer: Tokenizer, chats: list[Chat], max_tokens: int) -> Iterator[Document]:
    """Each chat as a document of at most ``max_tokens`` tokens; one that is longer is split into its exchanges.

    An exchange that alone is too long is left out.
    """
    encoder = _Encoder(tokenizer)
    for chat in chats:
        document = encoder.chat(chat)
        if len(document.token_ids) <= max_tokens:
            yield document
        elif len(chat.exchanges) > 1 or chat.system is not None:
            yield from encode_chats(tokenizer, [Chat((exchange,)) for exchange in chat.exchanges], max_tokens)


def encode_text(tokenizer: Tokenizer, text: str) -> Document:
    """``text`` between two end-of-text tokens, all of it and the second of them to be predicted."""
    (end,) = tokenizer.encode(END_OF_TEXT)
    ids = tokenizer.encode(text)
    return Document([end, *ids, end], [False, *[True] * (len(ids) + 1)], len(text.encode()))


class _Encoder:
    """Encodes each text once: questions' frames and answers come again and again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def chat(self, chat: Chat) -> Document:
        ids: list[int] = []
        mask: list[bool] = []

        def add(text: str, predicted: bool) -> None:
            tokens = self._encode(text)
            ids.extend(tokens)
            mask.extend([predicted] * len(tokens))

        if chat.system is not None:
            add(f"{TURN_START}system\n{chat.system}{TURN_END}\n", False)
        for number, exchange in enumerate(chat.exchanges):
            if number:
                add("\n", False)
            add(f"{TURN_START}user\n{exchange.question}{TURN_END}\n{TURN_START}assistant\n", False)
            add(f"{exchange.answer}{TURN_END}", True)
        num_bytes = sum(len(exchange.answer.encode()) for exchange in chat.exchanges)
        return Document(ids, mask, num_bytes)

    def _encode(self, text: str) -> list[int]:
        tokens = self._known.get(text)
        if tokens is None:
            tokens = self._known[text] = self._tokenizer.encode(text)
        return tokens
