"""Which quantised checkpoints are read, from what config.json says of them.

In: config.json; out: a :class:`Scheme`, or a refusal that names the field.
Formats: GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978) as their exporters write them, and
https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from penstock.models.fields import Fields, refuse_quantised

Layout = Literal["gptq", "gptq_v2", "awq", "pack-quantized", "int-quantized"]
_GROUP_STEP = 16
_PARTS: dict[Layout, tuple[str, ...]] = {
    "gptq": ("qweight", "qzeros", "scales"),
    "gptq_v2": ("qweight", "qzeros", "scales"),
    "awq": ("qweight", "qzeros", "scales"),
    "pack-quantized": ("weight_packed", "weight_scale"),
    "int-quantized": ("weight", "weight_scale"),
}
_SPARE_PARTS = ("g_idx", "weight_shape")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a checkpoint has its linear weights.  ``group``: inputs per scale; ``None``: one scale per output.

    ``symmetric``: there are no zero points beside the scales.
    """

    layout: Layout
    kind: Literal["int8", "int4"]
    group: int | None
    symmetric: bool

    @property
    def parts(self) -> tuple[str, ...]:
        """What the tensors of one weight are called after its module's name; the first tells that it is quantised."""
        zeros = ("weight_zero_point",) if self.layout == "pack-quantized" and not self.symmetric else ()
        return _PARTS[self.layout] + zeros

    @property
    def spare_parts(self) -> tuple[str, ...]:
        """Further ones that may be there; they are checked, and say nothing new."""
        return _SPARE_PARTS

    def group_of(self, num_inputs: int) -> int:
        return num_inputs if self.group is None else self.group


def read_scheme(fields: Fields) -> Scheme | None:
    """``None`` for a checkpoint in floating point.  Raises ``checkpoint_unsupported`` or ``checkpoint_invalid``."""
    stated = next((name for name in ("quantization_config", "compression_config") if fields.data.get(name)), None)
    if stated is None:
        refuse_quantised(fields)  # of a shape that says nothing
        return None
    settings = fields.object(stated) if isinstance(fields.data[stated], dict) else None
    match None if settings is None else settings.data.get("quant_method"):
        case "gptq":
            assert settings is not None
            return _gptq(settings)
        case "awq":
            assert settings is not None
            return _awq(settings)
        case "compressed-tensors":
            assert settings is not None
            return _compressed_tensors(settings)
    refuse_quantised(fields)
    return None


def _gptq(settings: Fields) -> Scheme:
    _require(settings, "bits", 4)
    layouts: dict[str, Layout] = {"gptq": "gptq", "gptq_v2": "gptq_v2"}
    return Scheme(_layout(settings, "checkpoint_format", layouts, "gptq"), "int4", _group(settings), symmetric=False)


def _awq(settings: Fields) -> Scheme:
    _require(settings, "bits", 4)
    _require(settings, "version", "gemm", default="gemm")
    return Scheme("awq", "int4", _group(settings), symmetric=False)


def _group(settings: Fields) -> int | None:
    stated = settings.data.get("group_size", -1)
    if stated in (-1, None):
        return None
    group = settings.integer("group_size", 1, 1 << 16)
    if group % _GROUP_STEP:
        raise settings.unsupported("group_size", f"Supported: multiples of {_GROUP_STEP}, and -1.")
    return group


def _compressed_tensors(settings: Fields) -> Scheme:
    """All groups of layers alike, linear ones whole, as the usual recipes leave them."""
    groups = settings.object("config_groups")
    if groups is None or len(groups.data) != 1:
        raise settings.unsupported("config_groups", "Supported: one scheme for all linear layers.")
    (name,) = groups.data
    group = groups.object(name)
    weights = None if group is None else group.object("weights")
    if group is None or weights is None:
        raise groups.wrong(name, "must say how weights are quantised")
    layouts: dict[str, Layout] = {"pack-quantized": "pack-quantized", "int-quantized": "int-quantized"}
    layout = _layout(settings, "format", layouts)
    _require(weights, "type", "int", default="int")
    if weights.data.get("actorder") not in (None, False, "static", "weight"):
        raise weights.unsupported("actorder", "Supported: groups of inputs that follow one another.")
    symmetric = weights.flag("symmetric", True)
    if layout == "pack-quantized":
        _require(weights, "num_bits", 4)
        grouped = weights.text("strategy", "group") == "group"
        return Scheme(layout, "int4", _group(weights) if grouped else None, symmetric)
    _require(weights, "num_bits", 8)
    _require(weights, "strategy", "channel", default="channel")
    _require(weights, "symmetric", True, default=True)
    activations = group.object("input_activations")
    if activations is not None:
        # Rows are quantised one by one as they come, whatever their next step is.
        _require(activations, "dynamic", True, default=False)
        _require(activations, "symmetric", True, default=True)
    return Scheme(layout, "int8", None, symmetric=True)


def _layout(settings: Fields, name: str, layouts: Mapping[str, Layout], default: str | None = None) -> Layout:
    layout = layouts.get(settings.text(name, default))
    if layout is None:
        raise settings.unsupported(name, f"Supported: {', '.join(layouts)}.")
    return layout


def _require(settings: Fields, name: str, value: object, default: object = None) -> None:
    if settings.data.get(name, default) != value:
        raise settings.unsupported(name, f"Supported: {value}.")
