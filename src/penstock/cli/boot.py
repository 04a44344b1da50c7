"""From a checkpoint directory to an engine that can step.

In: settings; out: tokenizer, loop and executor, with progress on the way.  Torch is imported here and not before,
so that an engine process answers on its socket while it loads.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.config.settings import EngineSettings
from penstock.cost.memory import (
    KV_SHARE_OF_FREE,
    LOGITS_ROWS,
    KvNeeds,
    kv_blocks,
    kv_bytes_per_token,
    megabytes,
    weights_bytes,
    workspace_bytes,
)
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.server.booted import Booted, Progress
from penstock.policy.batch import BatchRules
from penstock.ports import Emit
from penstock.text.answer import AnswerFormat
from penstock.text.tokenizer import Tokenizer
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.models.config import ModelConfig


def boot(settings: EngineSettings, progress: Progress, emit: Emit = lambda event: None) -> Booted:
    """Load a checkpoint and size the KV memory from what is then free.

    Raises ``Problem`` for whatever the checkpoint, the settings or the machine's memory do not allow.
    """
    progress(0.0, "starting torch")
    from penstock.engine.cpu.allocator import keep_freed_memory
    from penstock.engine.cpu.defaults import SamplingDefaults
    from penstock.engine.cpu.executor import CpuExecutor
    from penstock.engine.cpu.memory import free_memory_bytes
    from penstock.engine.cpu.threads import use_threads
    from penstock.models.load import load_decoder

    keep_freed_memory()
    use_threads(settings.threads)
    directory = Path(settings.model_dir)
    tokenizer = Tokenizer.load(directory)
    tokenizer.token_bytes(0)  # builds the table that the first stream would otherwise wait for
    defaults = SamplingDefaults.from_directory(directory)
    _check_weights_fit(directory, settings, free_memory_bytes())
    decoder = load_decoder(directory, settings.dtype, progress).requires_grad_(False)
    config = decoder.config
    context = _context_tokens(settings, config)
    dtype_bytes = config.torch_dtype.itemsize
    needs = KvNeeds(
        block_tokens=settings.block_tokens,
        bytes_per_token=kv_bytes_per_token(config.num_layers, config.num_kv_heads, config.head_dim, dtype_bytes),
        context_tokens=context,
        max_num_seqs=settings.max_num_seqs,
    )
    workspace = workspace_bytes(
        step_tokens=settings.max_step_tokens,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        context_tokens=context,
        vocab_size=config.vocab_size,
        logits_rows=LOGITS_ROWS,
    )
    num_blocks = kv_blocks(
        needs,
        free_bytes=free_memory_bytes(),
        share=settings.kv_share * KV_SHARE_OF_FREE,
        workspace=workspace,
        override_bytes=settings.kv_memory_bytes,
    )
    executor = CpuExecutor(
        decoder,
        num_blocks=num_blocks,
        block_tokens=settings.block_tokens,
        dtype=config.torch_dtype,
        sampling_defaults=defaults,
    )
    rules = BatchRules(
        max_step_tokens=settings.max_step_tokens,
        max_num_seqs=settings.max_num_seqs,
        block_tokens=settings.block_tokens,
    )
    capacity = num_blocks * settings.block_tokens
    return Booted(
        loop=Loop(Scheduler(rules, BlockPool(num_blocks), prefix_caching=settings.prefix_caching), emit),
        executor=executor,
        tokenizer=tokenizer,
        answers=AnswerFormat.of(tokenizer, reasoning=settings.reasoning_parser),
        dtype=config.dtype,
        vocab_size=config.vocab_size,
        context_tokens=min(context, capacity),
        context_limit="the model's context" if context <= capacity else "all KV memory",
        weights_bytes=sum(parameter.nbytes for parameter in decoder.parameters()),
        kv_bytes=num_blocks * needs.block_bytes,
    )


def _check_weights_fit(directory: Path, settings: EngineSettings, free_bytes: int) -> None:
    """Linux grants memory it does not have and kills whoever uses it; a sentence beforehand is kinder."""
    from penstock.models.checkpoint import read_headers
    from penstock.models.config import ModelConfig

    config = ModelConfig.from_directory(directory)
    wide = settings.dtype == "float32" or (settings.dtype == "auto" and config.dtype == "float32")
    num_parameters = sum(math.prod(tensor.shape) for tensor in read_headers(directory).values())
    needed = weights_bytes(num_parameters, 4 if wide else 2)
    if needed > free_bytes:
        message = f"The weights of {directory} need {megabytes(needed)}, but only {megabytes(free_bytes)} are free."
        raise Problem("insufficient_memory", message)


def _context_tokens(settings: EngineSettings, config: ModelConfig) -> int:
    if settings.max_model_len is None:
        return config.max_position
    if settings.max_model_len > config.max_position:
        message = (
            f"--max-model-len {settings.max_model_len} exceeds the model's context of {config.max_position} tokens"
        )
        raise Problem("invalid_setting", message, param="max_model_len")
    return settings.max_model_len
