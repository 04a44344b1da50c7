"""From a checkpoint directory to an engine that can step.

In: settings; out: tokenizer, loop and executor, with progress on the way.  Torch is imported here and not before,
so that an engine process answers on its socket while it loads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.cli.boot_draft import load_draft
from penstock.cli.boot_encoder import boot_encoder
from penstock.cli.fit import check_adapters_fit, check_vocabulary, check_weights_fit, context_tokens
from penstock.cli.numerics import numerics
from penstock.config.settings import NO_SPECULATION, PROMPT_LOOKUP, EngineSettings
from penstock.cost.memory import (
    KV_SHARE_OF_FREE,
    LOGITS_ROWS,
    KvNeeds,
    kv_blocks,
    kv_bytes_per_token,
    workspace_bytes,
)
from penstock.engine.adapters import AdapterRules, Adapters
from penstock.engine.cpu.spinning import bound_spinning
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Pooling
from penstock.engine.server.booted import Booted, Progress
from penstock.events.list import WeightsLoaded
from penstock.policy.batch import BatchRules
from penstock.ports import Emit
from penstock.text.answer import AnswerFormat
from penstock.text.grammar import Grammars
from penstock.text.tokenizer import Tokenizer
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.models.config import ModelConfig


def boot(settings: EngineSettings, progress: Progress, emit: Emit = lambda event: None) -> Booted:
    """Load a checkpoint and size the KV memory from what is then free.

    Raises ``Problem`` for whatever the checkpoint, the settings or the machine's memory do not allow.
    """
    progress(0.0, "starting torch")
    bound_spinning(os.environ)
    from penstock.engine.cpu.allocator import keep_freed_memory
    from penstock.engine.cpu.threads import use_threads
    from penstock.models.encoder_config import is_encoder

    keep_freed_memory()
    use_threads(settings.threads)
    directory = Path(settings.model_dir)
    if is_encoder(directory):
        if settings.exact:
            raise Problem("invalid_setting", "--exact is for models that generate; this is an encoder.", param="exact")
        if settings.quantization != "none":
            message = "--quantization is for models that generate; this is an encoder."
            raise Problem("invalid_setting", message, param="quantization")
        if settings.speculative != NO_SPECULATION:
            message = "--speculative is for models that generate; this is an encoder."
            raise Problem("invalid_setting", message, param="speculative")
        return boot_encoder(settings, Tokenizer.load(directory), progress, emit)
    return _boot_decoder(settings, directory, progress, emit)


def _boot_decoder(settings: EngineSettings, directory: Path, progress: Progress, emit: Emit) -> Booted:
    from penstock.engine.cpu.defaults import SamplingDefaults
    from penstock.engine.cpu.executor import CpuExecutor
    from penstock.engine.cpu.memory import free_memory_bytes
    from penstock.models.adapter import load_adapter, room_bytes
    from penstock.models.config import ModelConfig
    from penstock.models.digest import vocabulary_digest, weights_digest
    from penstock.models.load import load_decoder
    from penstock.models.packed import num_weight_bytes
    from penstock.models.sentence import SentenceConfig

    # First, since what is of another architecture often has no tokenizer that we read, or none at all.
    config = ModelConfig.from_directory(directory)
    tokenizer = Tokenizer.load(directory)
    check_vocabulary(directory, tokenizer, config.vocab_size)
    tokenizer.token_bytes(0)  # builds the table that the first stream would otherwise wait for
    defaults = SamplingDefaults.from_directory(directory)
    sentence = SentenceConfig.from_directory(directory, default_rows="last")
    context = context_tokens(settings, config.max_position, config.max_position)
    check_weights_fit(directory, settings, config.dtype, free_memory_bytes())
    progress(0.0, "loading kernels, compiled at a machine's first start")
    chosen = numerics(settings, config)
    decoder = load_decoder(directory, settings.dtype, progress, chosen.ops, context, chosen.pack).requires_grad_(False)
    config = decoder.config
    draft = None
    if settings.speculative not in (NO_SPECULATION, PROMPT_LOOKUP):
        draft = load_draft(settings, tokenizer, context, progress)
    needs = _kv_needs([config] if draft is None else [config, draft.config], settings, context)
    room = AdapterRules(settings.max_loras, room_bytes(config, settings.max_lora_rank) if settings.max_loras else 0)
    free_bytes = free_memory_bytes()
    check_adapters_fit(room, free_bytes)
    num_blocks = kv_blocks(
        needs,
        free_bytes=free_bytes - room.all_bytes,
        share=settings.kv_share * KV_SHARE_OF_FREE,
        workspace=_workspace_bytes(config, settings, context),
        override_bytes=settings.kv_memory_bytes,
    )
    executor = CpuExecutor(
        decoder,
        num_blocks=num_blocks,
        block_tokens=settings.block_tokens,
        dtype=config.torch_dtype,
        sampling_defaults=defaults,
        attention=chosen.attention,
        draft=draft,
    )
    emit(WeightsLoaded(num_bytes=num_weight_bytes(decoder), quantization=chosen.quantization))
    capacity = num_blocks * settings.block_tokens
    grammars = Grammars(tokenizer)
    grammars.start()
    return Booted(
        loop=_loop(settings, num_blocks, emit),
        executor=executor,
        tokenizer=tokenizer,
        answers=AnswerFormat.of(tokenizer, reasoning=settings.reasoning_parser, tools=settings.tool_parser),
        grammars=grammars,
        dtype=config.dtype,
        vocab_size=config.vocab_size,
        context_tokens=min(context, capacity),
        context_limit="the model's context" if context <= capacity else "all KV memory",
        weights_bytes=num_weight_bytes(decoder),
        kv_bytes=num_blocks * needs.block_bytes,
        pooling=Pooling(sentence.rows, sentence.normalize),
        embedding_size=config.hidden_size,
        adapters=Adapters(room, lambda path: load_adapter(path, decoder, settings.max_lora_rank)),
        exact=settings.exact,
        quantization=chosen.quantization,
        weights=weights_digest(directory, config.dtype, chosen.quantization, "exact" if settings.exact else "fast"),
        vocabulary=vocabulary_digest(directory),
    )


def _kv_needs(configs: list[ModelConfig], settings: EngineSettings, context: int) -> KvNeeds:
    """Of all models that keep their keys and values under the same block ids."""
    each = (
        kv_bytes_per_token(config.num_layers, config.num_kv_heads, config.head_dim, config.torch_dtype.itemsize)
        for config in configs
    )
    return KvNeeds(
        block_tokens=settings.block_tokens,
        bytes_per_token=sum(each),
        context_tokens=context,
        max_num_seqs=settings.max_num_seqs,
    )


def _workspace_bytes(config: ModelConfig, settings: EngineSettings, context: int) -> int:
    return workspace_bytes(
        step_tokens=settings.max_step_tokens,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        context_tokens=context,
        vocab_size=config.vocab_size,
        logits_rows=LOGITS_ROWS,
        num_masks=len({layer.window for layer in config.layers}),
        capped_heads=0 if config.attention_softcap is None else config.num_heads // config.num_kv_heads,
    )


def _loop(settings: EngineSettings, num_blocks: int, emit: Emit) -> Loop:
    rules = BatchRules(
        max_step_tokens=settings.max_step_tokens,
        max_num_seqs=settings.max_num_seqs,
        block_tokens=settings.block_tokens,
        num_guesses=0 if settings.speculative == NO_SPECULATION else settings.speculative_tokens,
        drafts=settings.speculative not in (NO_SPECULATION, PROMPT_LOOKUP),
    )
    return Loop(Scheduler(rules, BlockPool(num_blocks), prefix_caching=settings.prefix_caching), emit)
