"""Compiling the kernels ahead of the first request.

In: a number format's name; out: nothing, after some ten seconds the first time on a machine and a fraction of one
afterwards.
"""

from __future__ import annotations

from penstock.models.fast import attention_jobs, best, bf16, program, step_jobs
from penstock.models.fast.products import multiply_bf16
from penstock.models.fast.team import Job


def compile_kernels(dtype_name: str) -> None:
    """Every kernel for models in ``bfloat16`` or ``float32`` that this machine has a use for."""
    if dtype_name == "float32":
        jobs: tuple[Job, ...] = (*attention_jobs.FLOAT32_JOBS, best.BEST)
    elif bf16.is_supported():
        jobs = (*attention_jobs.BF16_JOBS, *step_jobs.JOBS, *program.JOBS, best.BEST, multiply_bf16)
    else:
        jobs = ()
    for job in jobs:
        assert job.address
