"""The draft model of an engine, from its directory.

In: settings and the large model's tokenizer; out: a decoder, or what keeps it from drafting for that one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from penstock.cli.fit import check_weights_fit
from penstock.cli.numerics import numerics
from penstock.config.settings import EngineSettings
from penstock.engine.server.booted import Progress
from penstock.text.tokenizer import Tokenizer
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.models.decoder import Decoder


def load_draft(settings: EngineSettings, tokenizer: Tokenizer, context: int, progress: Progress) -> Decoder:
    """Loaded as the large model is, quantised where that is quantised while loading.

    Raises ``Problem``: ``invalid_setting`` for an encoder, another vocabulary, too short a context, or weights or keys
    that cannot be kept as was asked for, and whatever loading raises.
    """
    from penstock.engine.cpu.memory import free_memory_bytes
    from penstock.models.config import ModelConfig
    from penstock.models.encoder_config import is_encoder
    from penstock.models.load import load_decoder

    directory = Path(settings.speculative)
    if is_encoder(directory):
        raise _refused(f"{directory} is an encoder, which drafts nothing.")
    config = ModelConfig.from_directory(directory)
    if config.max_position < context:
        message = f"{directory} takes {config.max_position} tokens and the model {context}; bound them by"
        raise _refused(f"{message} --max-model-len {config.max_position}.")
    own = Tokenizer.load(directory)
    size = min(own.vocab_size, tokenizer.vocab_size)
    if any(own.token_bytes(token_id) != tokenizer.token_bytes(token_id) for token_id in range(size)):
        raise _refused(f"{directory} has another vocabulary; take a smaller model of the same family.")
    if config.scheme is not None:
        settings = msgspec.structs.replace(settings, quantization="none")
    check_weights_fit(directory, settings, config.dtype, free_memory_bytes())
    try:
        chosen = numerics(settings, config)
    except Problem as problem:
        raise _refused(f"{directory}: {problem.message}") from problem
    decoder = load_decoder(directory, settings.dtype, progress, chosen.ops, context, chosen.pack)
    return decoder.requires_grad_(False)


def _refused(message: str) -> Problem:
    return Problem("invalid_setting", f"--speculative: {message}", param="speculative")
