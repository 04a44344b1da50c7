"""From a decoder's checkpoint to an engine that can step.

In: settings; out: weights, KV memory of what is then free, loop and executor, with progress on the way.
Importing this imports torch and the kernels' compiler, the longest part of a start (see cli/boot.py).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from time import perf_counter

from penstock.cli.boot_draft import load_draft
from penstock.cli.fit import check_adapters_fit, check_vocabulary, check_weights_fit, context_tokens
from penstock.cli.numerics import Numerics, numerics
from penstock.cli.start_parts import StartParts
from penstock.config.settings import NO_SPECULATION, PROMPT_LOOKUP, EngineSettings
from penstock.cost.memory import (
    KV_SHARE_OF_FREE,
    LOGITS_ROWS,
    KvNeeds,
    copies_room_bytes,
    kv_blocks,
    kv_bytes_per_token,
    workspace_bytes,
)
from penstock.engine.adapters import AdapterRules, Adapters
from penstock.engine.cpu.defaults import SamplingDefaults
from penstock.engine.cpu.executor import CpuExecutor
from penstock.engine.cpu.memory import free_memory_bytes
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Pooling
from penstock.engine.server.booted import Booted, Progress
from penstock.events.list import WeightsLoaded
from penstock.models.adapter import load_adapter, room_bytes
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.digest import vocabulary_digest, weights_digest
from penstock.models.fast.onednn import prefer_onednn
from penstock.models.fast.pages import vector_bytes
from penstock.models.load import load_decoder
from penstock.models.packed import num_weight_bytes
from penstock.models.sentence import SentenceConfig
from penstock.policy.batch import BatchRules
from penstock.ports import Emit
from penstock.text.answer import AnswerFormat
from penstock.text.grammar import Grammars
from penstock.text.tokenizer import Tokenizer

_SHOW_S = 0.2
"""How often a compilation that is waited for tells how far it is."""


def boot_decoder(
    settings: EngineSettings, directory: Path, progress: Progress, emit: Emit, parts: StartParts
) -> Booted:
    """Raises ``Problem`` for whatever the checkpoint, the settings or the machine's memory do not allow."""
    # First, since what is of another architecture often has no tokenizer that we read, or none at all.
    config = ModelConfig.from_directory(directory)
    tokenizer = Tokenizer.load(directory)
    check_vocabulary(directory, tokenizer, config.vocab_size)
    tokenizer.token_bytes(0)  # builds the table that the first stream would otherwise wait for
    sentence = SentenceConfig.from_directory(directory, default_rows="last")
    context = context_tokens(settings, config.max_position, config.max_position)
    check_weights_fit(directory, settings, config.dtype, free_memory_bytes())
    parts.done("tokenizer")
    chosen = numerics(settings, config)
    decoder = _load(settings, directory, chosen, context, progress)
    config = decoder.config
    drafts = settings.speculative not in (NO_SPECULATION, PROMPT_LOOKUP)
    draft = load_draft(settings, tokenizer, context, progress) if drafts else None
    room = AdapterRules(settings.max_loras, room_bytes(config, settings.max_lora_rank) if settings.max_loras else 0)
    configs = [config] if draft is None else [config, draft.config]
    needs = _kv_needs(configs, chosen, settings, context)
    workspace = _workspace_bytes(config, settings, context)
    if chosen.quantization == "none" and chosen.pack is not None:
        prefer_onednn(decoder, _copies_room_bytes(needs, room, settings, workspace), perf_counter)
    parts.done("weights")
    num_blocks = _num_blocks(needs, room, settings, workspace)
    executor = CpuExecutor(
        decoder,
        num_blocks=num_blocks,
        block_tokens=settings.block_tokens,
        dtype=chosen.kv_dtype_of(config),
        sampling_defaults=SamplingDefaults.from_directory(directory),
        attention=chosen.attention,
        draft=draft,
    )
    emit(WeightsLoaded(num_bytes=num_weight_bytes(decoder), quantization=chosen.quantization))
    capacity = num_blocks * settings.block_tokens
    grammars = Grammars(tokenizer)
    grammars.start()
    booted = Booted(
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
        weights=_digest(directory, config, chosen, settings),
        vocabulary=vocabulary_digest(directory),
    )
    parts.done("memory")
    return booted


def _load(settings: EngineSettings, directory: Path, chosen: Numerics, context: int, progress: Progress) -> Decoder:
    """The weights, and beside them the kernels: reading and packing leave the interpreter to others."""
    beside = ThreadPoolExecutor(1, thread_name_prefix="kernels")
    compiling = [beside.submit(compile_kernel) for compile_kernel in chosen.kernels]
    beside.shutdown(wait=False)  # a checkpoint that cannot be read is told before all is compiled
    decoder = load_decoder(directory, settings.dtype, progress, chosen.ops, context, chosen.pack)
    while pending := wait(compiling, timeout=_SHOW_S).not_done:
        done = len(compiling) - len(pending)
        progress(done / len(compiling), f"{done} of {len(compiling)} kernels, compiled at a machine's first start")
    for compiled in compiling:
        compiled.result()
    return decoder.requires_grad_(False)


def _copies_room_bytes(needs: KvNeeds, room: AdapterRules, settings: EngineSettings, workspace: int) -> int:
    """Asked when all weights are loaded, the draft model's too."""
    return copies_room_bytes(
        needs,
        free_bytes=free_memory_bytes(),
        adapters_bytes=room.all_bytes,
        share=settings.kv_share,
        workspace=workspace,
        override_bytes=settings.kv_memory_bytes,
    )


def _num_blocks(needs: KvNeeds, room: AdapterRules, settings: EngineSettings, workspace: int) -> int:
    """How many KV blocks there is memory for beside the adapters' room."""
    free_bytes = free_memory_bytes()
    check_adapters_fit(room, free_bytes)
    return kv_blocks(
        needs,
        free_bytes=free_bytes - room.all_bytes,
        share=settings.kv_share * KV_SHARE_OF_FREE,
        workspace=workspace,
        override_bytes=settings.kv_memory_bytes,
    )


def _kv_needs(configs: list[ModelConfig], chosen: Numerics, settings: EngineSettings, context: int) -> KvNeeds:
    """Of all models that keep their keys and values under the same block ids."""
    each = (
        kv_bytes_per_token(
            config.num_layers, config.num_kv_heads, vector_bytes(chosen.kv_dtype_of(config), config.head_dim)
        )
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


def _digest(directory: Path, config: ModelConfig, chosen: Numerics, settings: EngineSettings) -> str:
    """Of the weights and of all by which other tokens may come of them."""
    kept = [] if chosen.kv_dtype is None else [str(chosen.kv_dtype)]
    return weights_digest(directory, config.dtype, chosen.quantization, "exact" if settings.exact else "fast", *kept)


def _loop(settings: EngineSettings, num_blocks: int, emit: Emit) -> Loop:
    rules = BatchRules(
        max_step_tokens=settings.max_step_tokens,
        max_num_seqs=settings.max_num_seqs,
        block_tokens=settings.block_tokens,
        speculative_tokens=0 if settings.speculative == NO_SPECULATION else settings.speculative_tokens,
        drafts=settings.speculative not in (NO_SPECULATION, PROMPT_LOOKUP),
    )
    return Loop(Scheduler(rules, BlockPool(num_blocks), prefix_caching=settings.prefix_caching), emit)
