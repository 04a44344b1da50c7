"""The kernels to compile ahead of the first request.

In: in which numbers keys and values are kept, and what weights are kept in; out: jobs, which take some ten seconds to
compile the first time on a machine and a fraction of one afterwards.
"""

from __future__ import annotations

from typing import Literal

import torch

from penstock.models.fast import attention_jobs, best, bf16, draw, embed_jobs, program, step_jobs
from penstock.models.fast.activations import quantise_job
from penstock.models.fast.low_rank_jobs import add_low_rank
from penstock.models.fast.prepare_jobs import prepare
from penstock.models.fast.products import multiply_bf16, multiply_int4, multiply_int8
from penstock.models.fast.team import Job

_QUANTISED: dict[Literal["none", "int8", "int4"], tuple[Job, ...]] = {
    "none": (),
    "int8": (quantise_job, multiply_int8),
    "int4": (quantise_job, multiply_int8, multiply_int4),
}
"""For what most weights are kept in; some stay in bfloat16, and the head has eight bits at least."""


SAMPLING = (best.BEST, draw.draw_job)
"""What tokens are taken by, whatever computes the logits."""


def kernels(kv_dtype: torch.dtype, quantization: Literal["none", "int8", "int4"]) -> tuple[Job, ...]:
    """All for models with such keys and values that this machine has a use for; what packs weights comes first."""
    if kv_dtype == torch.float32:
        jobs: tuple[Job, ...] = attention_jobs.JOBS[kv_dtype]
    elif bf16.is_supported():
        own = *attention_jobs.JOBS[kv_dtype], *embed_jobs.JOBS, *step_jobs.JOBS, prepare
        jobs = (*own, *program.JOBS, multiply_bf16, add_low_rank)
    else:
        jobs = ()
    return (*_QUANTISED[quantization], *jobs, *SAMPLING)
