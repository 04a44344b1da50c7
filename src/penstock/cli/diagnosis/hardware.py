"""What a machine's cores, GPUs and memory mean for a model: the findings about hardware.

In: facts; out: one finding each.  Pure, like :mod:`penstock.cli.diagnosis.findings`, which lists them.
"""

from __future__ import annotations

from penstock.cli.diagnosis.facts import Cpu, Facts, Finding, Memory, Model
from penstock.cli.sizes import show_size
from penstock.cost.memory import KV_SHARE_OF_FREE, KvNeeds, kv_blocks
from penstock.wire.errors import Problem

_MEANINGS = {
    "avx2": "the floor",
    "avx512f": "wide vectors",
    "avx512_bf16": "bf16 dot products",
    "avx512_vnni": "int8 dot products",
    "amx_bf16": "bf16 matrix tiles",
}
_ARM_BF16 = {"bf16", "i8mm"}


def instructions(cpu: Cpu) -> Finding:
    name = "cpu instructions"
    model = f"{cpu.model or cpu.architecture or 'unknown CPU'}: "
    if not cpu.flags:
        return Finding(name, "ok", f"{model}this system does not list them")
    if cpu.architecture in ("aarch64", "arm64"):
        found = sorted(_ARM_BF16 & cpu.flags)
        return Finding(name, "ok", model + (", ".join(found) or "neither bf16 nor i8mm: bf16 is computed in float32"))
    found = [f"{flag} ({meaning})" for flag, meaning in _MEANINGS.items() if flag in cpu.flags]
    missing = [flag for flag in _MEANINGS if flag not in cpu.flags]
    detail = model + (", ".join(found) or "none of " + ", ".join(_MEANINGS))
    if "avx2" not in cpu.flags:
        return Finding(
            name,
            "warn",
            f"{detail}; slow without avx2",
            "Use a CPU of 2013 or later, or pass its flags on to the virtual machine.",
        )
    if not {"avx512_bf16", "amx_bf16"} & cpu.flags:
        return Finding(name, "ok", f"{detail}; bf16 is widened to float32 before it is multiplied")
    return Finding(name, "ok", detail + (f"; without {', '.join(missing)}" if missing else ""))


def cores(cpu: Cpu) -> Finding:
    detail = f"{cpu.allowed_cores} of {cpu.cores} cores"
    if cpu.quota_cores is None:
        return Finding("cores", "ok", detail)
    detail += f", of which the control group grants {cpu.quota_cores:g}"
    if cpu.quota_cores < 1:
        return Finding("cores", "warn", f"{detail}; every step waits for the next period", "Grant at least one core.")
    return Finding("cores", "ok", detail)


def gpu(facts: Facts) -> Finding:
    if facts.gpu_problem:
        return Finding("gpu", "warn", facts.gpu_problem, "Repair the NVIDIA driver, or ignore this: the CPU is used.")
    if not facts.gpus:
        return Finding("gpu", "ok", "none found; the engine computes on the CPU")
    names = ", ".join(f"{gpu.name} ({show_size(gpu.memory_bytes)})" for gpu in facts.gpus)
    return Finding(
        "gpu", "ok", f"{names}, driver {facts.gpus[0].driver}; the engine of this release computes on the CPU"
    )


def model(model: Model) -> Finding:
    if model.problem:
        return Finding("model", "fail", model.problem, "Name a directory in Hugging Face layout, or no model at all.")
    if not model.directory:
        return Finding("model", "ok", f"{model.name} is not on this machine yet; penstock serve gets it")
    return Finding("model", "ok", f"{model.name} in {model.directory}")


def memory(memory: Memory, model: Model) -> Finding:
    usable = memory.free_bytes
    have = f"{show_size(usable)} free of {show_size(memory.total_bytes)}"
    if model.problem or not model.directory:
        return Finding("memory", "ok", have)
    need = f"{model.name} needs {show_size(model.weights_bytes)} for its weights; {have}"
    if model.weights_bytes >= usable:
        return Finding("memory", "fail", need, _SMALLER)
    if not model.kv_bytes_per_token:
        return Finding("memory", "ok", need)
    needs = KvNeeds(model.block_tokens, model.kv_bytes_per_token, model.context_tokens, max_num_seqs=1)
    try:
        blocks = kv_blocks(
            needs,
            free_bytes=usable - model.weights_bytes,
            share=KV_SHARE_OF_FREE,
            workspace=model.workspace_bytes,
        )
    except Problem as problem:
        return Finding("memory", "fail", f"{need}. {problem.message}", _SMALLER)
    context = f"the KV cache of one full context ({model.context_tokens} tokens)"
    size = show_size(needs.blocks_per_context * needs.block_bytes)
    if blocks < needs.blocks_per_context:
        fits = blocks * needs.block_tokens
        fix = f"Longer requests are refused; say so with --max-model-len {fits}, or end what uses the memory."
        return Finding("memory", "warn", f"{need}; {context} takes {size}, and {fits} tokens fit", fix)
    return Finding("memory", "ok", f"{need}; {context} takes {size} and fits")


_SMALLER = "Take a smaller model, or end what uses the memory."
