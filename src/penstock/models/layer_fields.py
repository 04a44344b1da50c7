"""How config.json usually states what its layers are, both ways; for the families.

In: fields; out: layer specs and head sizes, or a refusal that names the field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from penstock.models.fields import Fields
from penstock.models.rope import RopeConfig
from penstock.models.traits import ExpertSpec, LayerSpec

_KINDS = ("full_attention", "sliding_attention")


def read_head_dim(fields: Fields) -> int:
    """``head_dim``, or the width over the heads."""
    hidden = fields.integer("hidden_size", 1, 1 << 17)
    heads = fields.integer("num_attention_heads", 1, 1 << 12)
    if fields.data.get("head_dim") is None and hidden % heads:
        raise fields.wrong("num_attention_heads", f"must divide hidden_size ({hidden}) when head_dim is not given")
    return fields.integer("head_dim", 2, 1 << 12, default=hidden // heads)


def read_layers(fields: Fields, rope: RopeConfig, slides: Callable[[int], bool] | None = None) -> tuple[LayerSpec, ...]:
    """``num_hidden_layers`` layers that turn alike.

    ``slides`` says which have a window where ``layer_types`` does not; ``None``: the family knows no windows, and one
    in the file is refused.
    """
    num_layers = fields.integer("num_hidden_layers", 1, 1 << 10)
    kinds = _layer_types(fields, num_layers)
    # Qwen states a window that its switch turns off; where there is no switch, a stated window is in use.
    stated = fields.data.get("sliding_window") is not None and fields.flag("use_sliding_window", True)
    if slides is None:
        if stated:
            raise fields.unsupported("sliding_window", "This architecture knows no sliding windows.")
        if kinds is not None and "sliding_attention" in kinds:
            raise fields.unsupported("layer_types", "This architecture knows only full_attention layers.")
    window = fields.integer("sliding_window", 1, 1 << 30) if stated else None
    if kinds is None:
        sliding: Sequence[bool] = [slides is not None and slides(index) for index in range(num_layers)]
    else:
        sliding = [kind == "sliding_attention" for kind in kinds]
        if window is None and any(sliding):
            raise fields.wrong("layer_types", "asks for sliding_attention, but sliding_window is not set")
    return tuple(LayerSpec(rope, window if slid else None) for slid in sliding)


def with_experts(
    layers: Sequence[LayerSpec], experts: ExpertSpec, has_them: Callable[[int], bool]
) -> tuple[LayerSpec, ...]:
    """``layers``, those of the numbers that ``has_them`` with experts instead of one feed-forward."""
    return tuple(replace(layer, experts=experts) if has_them(index) else layer for index, layer in enumerate(layers))


def write_windows(layers: Sequence[LayerSpec]) -> dict[str, object]:
    """``sliding_window`` and ``layer_types`` as :func:`read_layers` and transformers read them."""
    window = next((layer.window for layer in layers if layer.window is not None), None)
    return {"sliding_window": window, "layer_types": [_KINDS[layer.window is not None] for layer in layers]}


def _layer_types(fields: Fields, num_layers: int) -> list[str] | None:
    kinds = fields.data.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or any(kind not in _KINDS for kind in kinds):
        raise fields.unsupported("layer_types", f"Supported: a list of {' and '.join(_KINDS)}.")
    if len(kinds) != num_layers:
        raise fields.wrong("layer_types", f"must have one entry for each of the {num_layers} layers")
    return kinds
