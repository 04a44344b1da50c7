"""The number formats that models compute in, and how config.json states one.

In: fields; out: a name, or a refusal that names the field.
"""

from __future__ import annotations

from typing import Literal

import torch

from penstock.models.fields import Fields

DType = Literal["bfloat16", "float32"]
TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def read_dtype(fields: Fields, *, half: DType) -> DType:
    """The format that config.json states, float32 where it is silent; ``half`` is what float16 is computed in."""
    known: dict[str, DType] = {"bfloat16": "bfloat16", "float32": "float32", "float16": half}
    key = "dtype" if fields.data.get("dtype") is not None else "torch_dtype"
    dtype = known.get(fields.text(key, "float32"))
    if dtype is None:
        raise fields.unsupported(key, f"Supported: {', '.join(sorted(known))}.")
    return dtype
