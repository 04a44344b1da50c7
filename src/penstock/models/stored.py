"""A stored tensor's bytes, read into memory and looked at on the way.

In: where a tensor lies; out: its values, or a refusal that names the file and the tensor.
Not a memory map: a file that shrinks meanwhile is a short read here and a SIGBUS there.
"""

from __future__ import annotations

import math
from io import FileIO

import torch
from torch import Tensor

from penstock.models.checkpoint import StoredTensor
from penstock.wire.errors import Problem

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WHOLES = {"I8": torch.int8, "U8": torch.uint8, "I32": torch.int32, "I64": torch.int64}


def read_part(file: FileIO, landed: Tensor, stored: StoredTensor) -> None:
    """As many bytes of the open ``file`` as ``landed`` has, which is contiguous."""
    view = memoryview(landed.view(torch.uint8).numpy().data).cast("B")
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled:])
        if not count:
            raise Problem("checkpoint_invalid", f"{stored.file} became shorter while it was read.")
        filled += count


def check_finite(part: Tensor, stored: StoredTensor, name: str) -> None:
    """One pass over what is in the cache anyway, at the speed of memory: a NaN or an infinity is an extreme too."""
    if part.numel() and not all(math.isfinite(extreme) for extreme in part.aminmax()):
        raise Problem(
            "checkpoint_invalid",
            f"{stored.file}: tensor {name} holds values that are NaN or infinite. The checkpoint is damaged, or its "
            "training diverged: fetch it again, or take another.",
        )


def read_whole(stored: StoredTensor, name: str) -> Tensor:
    """All of a tensor, in the dtype that it is stored in."""
    landed = torch.empty(math.prod(stored.shape), dtype=(FLOATS | WHOLES)[stored.dtype])
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        read_part(file, landed, stored)
    if stored.dtype in FLOATS:
        check_finite(landed, stored, name)
    return landed.view(stored.shape)
