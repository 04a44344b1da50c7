"""An engine that is ready to step, as whoever put it together hands it to whoever drives it.

Data only: made at wiring, which alone names the executor; driven by the server or by a benchmark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from penstock.config.settings import Quantization
from penstock.engine.adapters import Adapters
from penstock.engine.loop import Loop
from penstock.engine.sequence import Executor, Pooling
from penstock.text.answer import AnswerFormat
from penstock.text.grammar import Grammars
from penstock.text.tokenizer import Tokenizer

Progress = Callable[[float, str], None]
"""Called with a share from 0 to 1 and what is being done."""


@dataclass(frozen=True, slots=True)
class Booted:
    """An engine ready to step.  ``context_limit`` says in words what ``context_tokens`` is limited by.

    ``weights`` and ``vocabulary`` are digests of what is computed and of what token ids stand for.
    ``adapters``: what it has of them; ``None``: a model that takes none.
    ``pooling`` is how this model embeds a text, in ``embedding_size`` numbers; not every one generates text, too.
    """

    loop: Loop
    executor: Executor
    tokenizer: Tokenizer
    answers: AnswerFormat
    grammars: Grammars
    dtype: str
    vocab_size: int
    context_tokens: int
    context_limit: str
    weights_bytes: int
    kv_bytes: int
    pooling: Pooling
    embedding_size: int
    adapters: Adapters | None = None
    generates: bool = True
    exact: bool = False
    quantization: Quantization = "none"
    weights: str = ""
    vocabulary: str = ""
