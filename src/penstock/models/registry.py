"""The model families that Penstock knows, by the architecture that config.json names.

Adding one: docs/howto/add-a-model-family.md.
"""

from __future__ import annotations

from penstock.models.families.gemma2 import GEMMA2
from penstock.models.families.gemma3 import GEMMA3
from penstock.models.families.granite import GRANITE
from penstock.models.families.llama import LLAMA
from penstock.models.families.mistral import MISTRAL
from penstock.models.families.mixtral import MIXTRAL
from penstock.models.families.olmo2 import OLMO2
from penstock.models.families.phi3 import PHI3
from penstock.models.families.qwen2 import QWEN2
from penstock.models.families.qwen3 import QWEN3
from penstock.models.families.qwen3_moe import QWEN3_MOE
from penstock.models.family import Family

FAMILIES: dict[str, Family] = {
    family.architecture: family
    for family in (GEMMA2, GEMMA3, GRANITE, LLAMA, MISTRAL, MIXTRAL, OLMO2, PHI3, QWEN2, QWEN3, QWEN3_MOE)
}
# Larger models of which the decoder is read, by the architecture that config.json names.
WHOLES: dict[str, Family] = {
    family.whole.architecture: family for family in FAMILIES.values() if family.whole is not None
}
