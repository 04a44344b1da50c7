"""One engine behind one small protocol, so that ``penstock bench engines`` can run several in turns.

A script for any Python: a rival has an environment of its own, so nothing here is imported but the engine named.
In: ``NAME MODEL prefix|no-prefix [SETTING...]``, then a batch per line of standard input,
``{"prompts": [[id]], "lengths": [n]}``; out: ``{"start_s": s, "version": v}``, then ``{"seconds": s}`` per batch.
Greedy, no end of sequence, exactly ``lengths[i]`` tokens for ``prompts[i]``, all requests present at the start.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

Run = Callable[[list[list[int]], list[int]], None]

STEP_TOKENS = 512
MAX_REQUESTS = 128
KV_GIB = 4


def penstock(
    model: str, prefix: bool, quantization: str = "none", mode: str = "fast", kv_cache_dtype: str = "auto"
) -> Run:
    """Ours: ``quantization`` and ``kv_cache_dtype`` as of ``penstock serve``; ``mode`` ``exact`` or ``fast``."""
    from penstock.cli.boot import boot
    from penstock.config.settings import EngineSettings
    from penstock.engine.offline import run_offline

    settings = EngineSettings(
        replica="bench",
        socket="",
        model_dir=model,
        served_name="bench",
        quantization=quantization,  # type: ignore[arg-type]
        kv_cache_dtype=kv_cache_dtype,  # type: ignore[arg-type]
        exact=mode == "exact",
        kv_memory_bytes=KV_GIB << 30,
        max_step_tokens=STEP_TOKENS,
        prefix_caching=prefix,
    )
    booted = boot(settings, lambda share, what: None)

    def run(prompts: list[list[int]], lengths: list[int]) -> None:
        run_offline(booted.loop, booted.executor, prompts, lengths, clock=time.perf_counter)

    return run


def openvino_genai(model: str, prefix: bool, precision: str = "bf16", kv_precision: str = "") -> Run:
    """OpenVINO GenAI's continuous batching on an exported model; precisions as its properties name them."""
    import numpy as np
    import openvino
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = KV_GIB
    scheduler.max_num_batched_tokens = STEP_TOKENS
    scheduler.max_num_seqs = MAX_REQUESTS
    scheduler.enable_prefix_caching = prefix
    scheduler.dynamic_split_fuse = True
    properties = {"INFERENCE_PRECISION_HINT": precision}
    if kv_precision:
        properties["KV_CACHE_PRECISION"] = kv_precision
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)

    def run(prompts: list[list[int]], lengths: list[int]) -> None:
        handles = []  # a request whose handle is dropped is cancelled
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            config = genai.GenerationConfig()
            config.max_new_tokens = config.min_new_tokens = length
            config.ignore_eos, config.do_sample = True, False
            handles.append(pipeline.add_request(index, openvino.Tensor(np.array([prompt], dtype=np.int64)), config))
        while pipeline.has_non_finished_requests():
            pipeline.step()
        generated = sum(len(output.generated_ids) for handle in handles for output in handle.read_all())
        assert generated == sum(lengths), (generated, sum(lengths))

    return run


def vllm(model: str, prefix: bool, dtype: str = "bfloat16", max_model_len: str = "2048") -> Run:
    """vLLM's build for CPUs, in one process and on all cores: alone it leaves one of two to its front end."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(KV_GIB))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{(os.cpu_count() or 1) - 1}")
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    from vllm import LLM, SamplingParams

    engine = LLM(
        model,
        max_model_len=int(max_model_len),
        dtype=dtype,
        enable_prefix_caching=prefix,
        max_num_seqs=MAX_REQUESTS,
        max_num_batched_tokens=max(STEP_TOKENS, int(max_model_len)),
    )

    def run(prompts: list[list[int]], lengths: list[int]) -> None:
        engine.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [SamplingParams(max_tokens=n, min_tokens=n, ignore_eos=True, temperature=0) for n in lengths],
            use_tqdm=False,
        )

    return run


def transformers(model: str, prefix: bool, dtype: str = "bfloat16") -> Run:
    """``generate`` on one static batch, padded at the left; tokens beyond those asked for cost time and count not."""
    assert not prefix, "transformers has no prefix cache"
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def run(prompts: list[list[int]], lengths: list[int]) -> None:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        longest = max(lengths)
        loaded.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=longest, min_new_tokens=longest, do_sample=False
        )

    return run


def llama_cpp(model: str, prefix: bool, context_tokens: str = "16384") -> Run:
    """llama.cpp's continuous batching through its binding ``llama-cpp-python``, on a GGUF file.

    Its server's slots know no prefix of one another, so neither does this.  Without its repacked weights: those for AMX
    crashed on quantised models.
    """
    assert not prefix, "slots of llama.cpp share no prefix"
    import llama_cpp as lib

    lib.llama_backend_init()
    options = lib.llama_model_default_params()
    options.n_gpu_layers, options.use_extra_bufts = 0, False
    loaded = lib.llama_model_load_from_file(model.encode(), options)
    options = lib.llama_context_default_params()
    options.n_ctx, options.n_seq_max, options.kv_unified = int(context_tokens), MAX_REQUESTS, True
    options.n_batch = options.n_ubatch = STEP_TOKENS
    options.n_threads = options.n_threads_batch = os.cpu_count() or 1
    context = lib.llama_init_from_model(loaded, options)
    assert context, "no context of that many tokens"
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(loaded))
    return lambda prompts, lengths: _run_llama_cpp(lib, context, vocabulary, prompts, lengths)


def _run_llama_cpp(lib: Any, context: Any, vocabulary: int, prompts: list[list[int]], lengths: list[int]) -> None:
    import numpy as np

    following: dict[int, int] = {}

    def decode(tokens: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, sequence, whether the next one is asked for) of each."""
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for row, (token, position, sequence, asked) in enumerate(tokens):
            batch.token[row], batch.pos[row], batch.logits[row] = token, position, asked
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        assert lib.llama_decode(context, batch) == 0
        for row, (_, _, sequence, asked) in enumerate(tokens):
            if asked:
                scores = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, row), (vocabulary,))
                following[sequence] = int(scores.argmax())
        lib.llama_batch_free(batch)

    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    known = [
        (token, position, sequence, position == len(prompt) - 1)
        for sequence, prompt in enumerate(prompts)
        for position, token in enumerate(prompt)
    ]
    for begin in range(0, len(known), STEP_TOKENS):
        decode(known[begin : begin + STEP_TOKENS])
    for step in range(1, max(lengths)):
        running = [sequence for sequence, length in enumerate(lengths) if step < length]
        decode([(following[sequence], len(prompts[sequence]) + step - 1, sequence, True) for sequence in running])


ENGINES: dict[str, tuple[Callable[..., Run], tuple[str, ...]]] = {
    "penstock": (penstock, ("penstock",)),
    "openvino": (openvino_genai, ("openvino-genai",)),
    "vllm": (vllm, ("vllm", "vllm-cpu")),
    "transformers": (transformers, ("transformers",)),
    "llama.cpp": (llama_cpp, ("llama-cpp-python",)),
}
"""Name -> (how it starts, under which names its package is known)."""


def version_of(packages: tuple[str, ...]) -> str:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "of unknown version"


def main(name: str, model: str, prefix: str, *settings: str) -> None:
    # Engines print what they like; the answers go where standard output was.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    begin = time.perf_counter()
    start, packages = ENGINES[name]
    run = start(model, prefix == "prefix", *settings)
    ready = {"start_s": time.perf_counter() - begin, "version": version_of(packages)}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        batch = json.loads(line)
        begin = time.perf_counter()
        run(batch["prompts"], batch["lengths"])
        print(json.dumps({"seconds": time.perf_counter() - begin}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
