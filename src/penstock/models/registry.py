"""The model families that Penstock knows, by the architecture that config.json names.

Adding one: a file in ``families/``, a line here, a case in tests/parity/test_decoder_agrees_with_transformers.py.
"""

from __future__ import annotations

from penstock.models.families.llama import LLAMA
from penstock.models.families.qwen3 import QWEN3
from penstock.models.family import Family

FAMILIES: dict[str, Family] = {family.architecture: family for family in (LLAMA, QWEN3)}
