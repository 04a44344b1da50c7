"""The rope part of config.json, both ways.

In: fields; out: a :class:`~penstock.models.rope.RopeConfig`, and back.  transformers 5 writes theta and scaling into
``rope_parameters``, earlier ones ``rope_theta`` beside ``rope_scaling``; both are read, the latter is written.
"""

from __future__ import annotations

import math

from penstock.models.fields import Fields
from penstock.models.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    Scaling,
    YarnScaling,
)
from penstock.wire.errors import Problem

_POSITIONS = (1, 1 << 30)
_KINDS = "default, linear, llama3, yarn, longrope"


def read_rope(fields: Fields, head_dim: int) -> RopeConfig:
    """The one rope of a model whose layers all turn alike."""
    return rope_of(fields.object("rope_parameters") or fields.object("rope_scaling"), fields, head_dim)


def rope_of(parameters: Fields | None, fields: Fields, head_dim: int, theta_field: str = "rope_theta") -> RopeConfig:
    """What ``parameters`` say, and ``fields`` where those are silent, under ``theta_field`` for the base."""
    parameters = parameters or Fields(fields.file, {})
    theta = fields.number(theta_field, 1.0, 1e12, default=10_000.0)
    theta = parameters.number("rope_theta", 1.0, 1e12, default=theta)
    share = fields.number("partial_rotary_factor", 0.0, 1.0, default=1.0)
    share = parameters.number("partial_rotary_factor", 0.0, 1.0, default=share)
    num_rotated = int(head_dim * share)
    if num_rotated < 2 or num_rotated % 2:
        at_fault = "head_dim" if share == 1.0 else "partial_rotary_factor"
        raise fields.wrong(at_fault, f"must let an even number of dimensions turn, not {num_rotated} of {head_dim}")
    return RopeConfig(theta, _scaling(parameters, fields, theta, num_rotated), share)


def write_rope(rope: RopeConfig) -> dict[str, object]:
    """The fields of config.json that :func:`read_rope` and transformers read back."""
    written: dict[str, object] = {"rope_theta": rope.theta, "rope_scaling": write_scaling(rope.scaling)}
    return written if rope.share == 1.0 else written | {"partial_rotary_factor": rope.share}


def write_scaling(scaling: Scaling | None) -> dict[str, object] | None:
    """The object of ``rope_scaling``."""
    match scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position,
            }
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_max_position,
                "attention_factor": scaling.amplitude,
                "beta_fast": scaling.fast_turns,
                "beta_slow": scaling.slow_turns,
                "truncate": scaling.truncate,
            }
        case LongRopeScaling():
            return {
                "rope_type": "longrope",
                "short_factor": list(scaling.short),
                "long_factor": list(scaling.long),
                "original_max_position_embeddings": scaling.original_max_position,
                "attention_factor": scaling.amplitude,
            }


def _scaling(parameters: Fields, fields: Fields, theta: float, num_rotated: int) -> Scaling | None:
    key = "rope_type" if parameters.data.get("rope_type") is not None else "type"
    match parameters.text(key, "default"):
        case "default":
            return None
        case "linear":
            return LinearScaling(parameters.number("factor", 1.0, 1e4))
        case "llama3":
            return _llama3(parameters, fields)
        case "yarn":
            if theta == 1.0:
                raise parameters.wrong("rope_theta", "must exceed 1 for yarn, whose ramp counts in its logarithm")
            return _yarn(parameters, fields)
        case "longrope":
            return _longrope(parameters, fields, num_rotated)
        case "dynamic":
            raise parameters.unsupported(
                key,
                "Its frequencies change as a sequence grows, so keys in the cache would go stale. "
                f"Supported kinds of rope scaling: {_KINDS}.",
            )
        case _:
            raise parameters.unsupported(key, f"Supported kinds of rope scaling: {_KINDS}.")


def _llama3(parameters: Fields, fields: Fields) -> Llama3Scaling:
    low = parameters.number("low_freq_factor", 1e-3, 1e3)
    high = parameters.number("high_freq_factor", 1e-3, 1e3)
    if high <= low:
        raise parameters.wrong("high_freq_factor", f"must exceed low_freq_factor ({low:g})")
    return Llama3Scaling(
        factor=parameters.number("factor", 1.0, 1e4),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=_original(parameters, fields),
    )


def _yarn(parameters: Fields, fields: Fields) -> YarnScaling:
    original = _original(parameters, fields)
    factor = parameters.number("factor", 1.0, 1e4, default=_stretch(original, fields))
    of_scores = parameters.number("mscale", 0.0, 1e3, default=0.0)
    of_all = parameters.number("mscale_all_dim", 0.0, 1e3, default=0.0)
    usual = _yarn_amplitude(factor, of_scores) / _yarn_amplitude(factor, of_all) if of_scores and of_all else None
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        amplitude=parameters.number("attention_factor", 0.0, 1e3, default=usual or _yarn_amplitude(factor, 1.0)),
        fast_turns=parameters.number("beta_fast", 1e-3, 1e6, default=32.0),
        slow_turns=parameters.number("beta_slow", 1e-3, 1e6, default=1.0),
        truncate=parameters.flag("truncate", True),
    )


def _yarn_amplitude(factor: float, strength: float) -> float:
    return 0.1 * strength * math.log(factor) + 1.0


def _longrope(parameters: Fields, fields: Fields, num_rotated: int) -> LongRopeScaling:
    original = _original(parameters, fields)
    factor = parameters.number("factor", 1.0, 1e4, default=_stretch(original, fields))
    if original == 1:
        message = f"{fields.file}: longrope extends an original context of 1 token; it must be longer."
        raise Problem("checkpoint_invalid", message, param="original_max_position_embeddings")
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRopeScaling(
        short=parameters.numbers("short_factor", num_rotated // 2, 1e-3, 1e6),
        long=parameters.numbers("long_factor", num_rotated // 2, 1e-3, 1e6),
        original_max_position=original,
        amplitude=parameters.number("attention_factor", 0.0, 1e3, default=usual),
    )


def _original(parameters: Fields, fields: Fields) -> int:
    """The context before it was extended; some families state it outside the rope's object, and there it wins."""
    field = "original_max_position_embeddings"
    inner = parameters.integer(field, *_POSITIONS, default=fields.integer("max_position_embeddings", *_POSITIONS))
    return fields.integer(field, *_POSITIONS, default=inner)


def _stretch(original: int, fields: Fields) -> float:
    return max(1.0, fields.integer("max_position_embeddings", *_POSITIONS) / original)
