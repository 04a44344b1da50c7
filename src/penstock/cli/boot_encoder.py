"""From an encoder's checkpoint to an engine that can step: it embeds texts and generates none.

In: settings and the tokenizer; out: loop and executor.  Torch is imported here and not before, as in cli/boot.py.
"""

from __future__ import annotations

from pathlib import Path

from penstock.cli.fit import check_vocabulary, check_weights_fit, context_tokens
from penstock.cli.start_parts import StartParts
from penstock.config.settings import EngineSettings
from penstock.cost.memory import megabytes, workspace_bytes
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Pooling
from penstock.engine.server.booted import Booted, Progress
from penstock.policy.batch import BatchRules
from penstock.ports import Emit
from penstock.text.answer import AnswerFormat
from penstock.text.grammar import Grammars
from penstock.text.tokenizer import Tokenizer
from penstock.wire.errors import Problem


def boot_encoder(
    settings: EngineSettings, tokenizer: Tokenizer, progress: Progress, emit: Emit, parts: StartParts
) -> Booted:
    """Load an encoder.  A step takes at least one text of full length, since none is computed in parts.

    Raises ``Problem`` for whatever the checkpoint, the settings or the machine's memory do not allow.
    """
    from penstock.engine.cpu.encoder import EncoderExecutor
    from penstock.engine.cpu.memory import free_memory_bytes
    from penstock.models.digest import vocabulary_digest, weights_digest
    from penstock.models.encoder_checkpoint import load_encoder
    from penstock.models.encoder_config import EncoderConfig
    from penstock.models.sentence import SentenceConfig

    directory = Path(settings.model_dir)
    own = EncoderConfig.from_directory(directory)
    check_vocabulary(directory, tokenizer, own.vocab_size)
    sentence = SentenceConfig.from_directory(directory, default_rows="mean")
    recommended = min(sentence.max_tokens or own.max_position, own.max_position)
    context = context_tokens(settings, own.max_position, recommended)
    check_weights_fit(directory, settings, own.dtype, free_memory_bytes())
    parts.done("tokenizer")
    encoder = load_encoder(directory, settings.dtype, progress).requires_grad_(False)
    parts.done("weights")
    step_tokens = max(settings.max_step_tokens, context)
    _check_workspace_fits(
        encoder.config.hidden_size, encoder.config.intermediate_size, step_tokens, free_memory_bytes()
    )
    rules = BatchRules(
        max_step_tokens=step_tokens,
        max_num_seqs=settings.max_num_seqs,
        block_tokens=settings.block_tokens,
        stateless=True,
    )
    return Booted(
        loop=Loop(Scheduler(rules, BlockPool(0), prefix_caching=False), emit),
        executor=EncoderExecutor(encoder),
        tokenizer=tokenizer,
        answers=AnswerFormat(),
        grammars=Grammars(tokenizer),
        dtype=encoder.config.dtype,
        vocab_size=own.vocab_size,
        context_tokens=context,
        context_limit="the model's context",
        weights_bytes=sum(parameter.nbytes for parameter in encoder.parameters()),
        kv_bytes=0,
        pooling=Pooling(sentence.rows, sentence.normalize),
        embedding_size=own.hidden_size,
        generates=False,
        weights=weights_digest(directory, encoder.config.dtype),
        vocabulary=vocabulary_digest(directory),
    )


def _check_workspace_fits(hidden_size: int, intermediate_size: int, step_tokens: int, free_bytes: int) -> None:
    needed = workspace_bytes(
        step_tokens=step_tokens,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        context_tokens=0,
        vocab_size=0,
        logits_rows=0,
    )
    if needed > free_bytes:
        message = (
            f"A step of {step_tokens} tokens needs {megabytes(needed)}, but only {megabytes(free_bytes)} are free."
        )
        raise Problem("insufficient_memory", message)
