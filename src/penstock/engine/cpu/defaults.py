"""What a model's authors recommend for sampling, and how a request's wishes come on top.

In: generation_config.json and a request's sampling; out: rules with every field set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from penstock.wire.engine import Sampling
from penstock.wire.errors import Problem

# Dividing by less than this would overflow the logits' spread to where only the best token has any weight.
_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class Rules:
    """A request's sampling with nothing left open.  ``top_k`` 0: all tokens."""

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)

    @property
    def greedy(self) -> bool:
        return self.temperature < _GREEDY_BELOW

    @property
    def penalised(self) -> bool:
        """Whether the logits have to be changed before the best or a random token is taken."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or bool(self.logit_bias)
        )


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of generation_config.json that stand in for what a request leaves out; ``None``: neutral.

    ``do_sample`` is not read: a request that says nothing gets temperature 1, as the OpenAI API documents, unless the
    file names another one.
    """

    temperature: Annotated[float, Meta(ge=0.0)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    top_k: int | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0)] | None = None

    @classmethod
    def from_directory(cls, directory: Path) -> SamplingDefaults:
        """Read ``directory``/generation_config.json; without that file every default is neutral.

        Raises ``checkpoint_invalid`` when the file is not JSON or a field is not a number in its range.
        """
        path = directory / "generation_config.json"
        if not path.is_file():
            return cls()
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except OSError as error:
            raise Problem("checkpoint_invalid", f"{path} cannot be read: {error.strerror}.") from error
        except msgspec.MsgspecError as error:
            raise Problem("checkpoint_invalid", f"{path}: {error}.") from error

    def resolve(self, sampling: Sampling) -> Rules:
        """``sampling`` with its gaps filled."""
        return Rules(
            seed=sampling.seed,
            temperature=_first(sampling.temperature, self.temperature, 1.0),
            top_p=_first(sampling.top_p, self.top_p, 1.0),
            top_k=max(0, int(_first(sampling.top_k, self.top_k, 0))),
            min_p=_first(sampling.min_p, self.min_p, 0.0),
            repetition_penalty=_first(sampling.repetition_penalty, self.repetition_penalty, 1.0),
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=sampling.logit_bias or {},
        )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
