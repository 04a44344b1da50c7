"""Reading what a mock engine is told, and refusing what cannot be meant.

In: structs and the command line's words; out: the same as values that hold together, or a ``Problem``.
"""

from __future__ import annotations

import math
from typing import get_args

import msgspec

from penstock.config.mock import Fault, FaultKind, MockScript
from penstock.wire.errors import ERRORS, Problem


def checked(script: MockScript) -> MockScript:
    """The script itself.  Raises ``Problem`` ``invalid_setting`` for a value that cannot be meant."""
    counts = {"output_tokens", "tokens_per_delta", "context_tokens", "slots"}
    for name in script.__struct_fields__:
        value = getattr(script, name)
        if isinstance(value, int | float) and not (1 if name in counts else 0) <= value < math.inf:
            raise _invalid(name, value, "out of range")
    if script.jitter > 1:
        raise _invalid("jitter", script.jitter, "more than 1")
    if script.prefill_tokens_per_s == 0:
        raise _invalid("prefill_tokens_per_s", 0, "out of range")
    for fault in script.faults:
        if fault.code not in ERRORS:
            raise _invalid("code", fault.code, "no code of docs/reference/errors.md")
        if not 0 <= fault.share <= 1:
            raise _invalid("share", fault.share, "not between 0 and 1")
        if fault.after < 0 or (fault.seconds is not None and not 0 <= fault.seconds < math.inf):
            raise _invalid("fault", fault, "a count or a time out of range")
    return script


def fault_of(text: str) -> Fault:
    """``KIND`` or ``KIND:name=value,...``, as the command line writes it.  Raises ``Problem``."""
    kind, _, rest = text.partition(":")
    fields = dict(part.partition("=")[::2] for part in rest.split(",") if part)
    try:
        return msgspec.convert({"kind": kind, **fields}, Fault, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(get_args(FaultKind))
        raise Problem("invalid_setting", f"fault {text!r}: {error}; kinds: {known}.", param="--fault") from None


def _invalid(name: str, value: object, what: str) -> Problem:
    return Problem("invalid_setting", f"{name} is {value}: {what}.", param=name)
