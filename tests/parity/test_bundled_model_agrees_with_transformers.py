"""The bundled checkpoint is the same model in Penstock and in transformers."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from penstock.models.attention import packed_causal, packed_positions
from penstock.models.load import load_decoder
from penstock.store.sources import BUNDLED
from penstock.text.tokenizer import Tokenizer

QUESTION = [{"role": "user", "content": "What does str.split do?"}]


def test_prompt_and_logits_are_the_same() -> None:
    """Template, token ids and fp32 log-probabilities agree within 1e-4."""
    tokenizer = Tokenizer.load(BUNDLED)
    assert tokenizer.chat_template is not None
    ours = tokenizer.encode(tokenizer.chat_template.render(QUESTION, add_generation_prompt=True), False)
    theirs = AutoTokenizer.from_pretrained(BUNDLED).apply_chat_template(
        QUESTION, add_generation_prompt=True, return_dict=False
    )
    assert ours == theirs
    reference = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    decoder = load_decoder(BUNDLED, "float32")
    with torch.inference_mode():
        expected = reference(torch.tensor([ours])).logits[0].log_softmax(-1)
        hidden = decoder(torch.tensor(ours), packed_positions([len(ours)]), packed_causal([len(ours)]))
        found = decoder.logits(hidden).log_softmax(-1)

    assert (found - expected).abs().max() < 1e-4
