"""A checkpoint that says what it is told: the last character of the prompt picks one of its scripts.

In: scripts and a chat template; out: a real decoder over a real tokenizer, whose every greedy token is the script's.
Each script is cut into tokens that occur once, so that the next token is a function of the last one alone: whatever
engine goes on with it, and from wherever, says the rest.  Its tokens split characters, words and marks at random.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from seeded import END_OF_TEXT, TURN_END, TURN_START, byte_characters
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.rope import RopeConfig
from penstock.models.save import save_decoder
from penstock.models.traits import LayerSpec

_NUM_BYTES = 256
_HIDDEN = 256
_LONGEST_PIECE = 5
Script = list[bytes | str]
"""Pieces of text as bytes, added tokens as text."""


def write_scripted_checkpoint(
    directory: Path,
    scripts: dict[str, str],
    template: str,
    *,
    special: tuple[str, ...] = (),
    added: tuple[str, ...] = (),
) -> None:
    """``scripts`` by last character of the prompt; ``special`` and ``added``: marks that are tokens of their own."""
    own = [END_OF_TEXT, TURN_START, TURN_END, *special, *added]
    cut_up = _cut_up(scripts, [*special, *added])
    pieces = [piece for script in cut_up.values() for piece in script if isinstance(piece, bytes)]
    letters = byte_characters()
    vocabulary = {letters[byte]: byte for byte in range(_NUM_BYTES)}
    vocabulary |= {"".join(letters[byte] for byte in piece): _NUM_BYTES + i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, special=text not in added, normalized=False) for text in own])
    ids: dict[bytes | str, int] = {piece: _NUM_BYTES + i for i, piece in enumerate(pieces)}
    ids.update((text, tokenizer.get_vocab()[text]) for text in own)
    chains = {ord(char): [*(ids[piece] for piece in script), ids[TURN_END]] for char, script in cut_up.items()}
    save_decoder(_decoder(tokenizer.get_vocab_size(), list(chains.items())), directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": TURN_END, "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    generation = {"eos_token_id": [ids[TURN_END], ids[END_OF_TEXT]], "do_sample": False}
    (directory / "generation_config.json").write_text(json.dumps(generation))


def _cut_up(scripts: dict[str, str], marks: list[str]) -> dict[str, Script]:
    """Every script in pieces that no script has twice; a mark is its own token where it comes first."""
    dice = random.Random(1)
    seen: set[bytes | str] = set()
    return {char: _pieces(text, marks, seen, dice) for char, text in scripts.items()}


def _pieces(text: str, marks: list[str], seen: set[bytes | str], dice: random.Random) -> Script:
    mark = min((m for m in marks if m in text and m not in seen), key=text.index, default=None)
    if mark is not None:
        before, after = text.split(mark, 1)
        # What precedes the mark goes first: it may hold another mark's second occurrence only.
        begin = _plain_pieces(before.encode(), seen, dice)
        seen.add(mark)
        return [*begin, mark, *_pieces(after, marks, seen, dice)]
    return _plain_pieces(text.encode(), seen, dice)


def _plain_pieces(text: bytes, seen: set[bytes | str], dice: random.Random) -> Script:
    pieces: Script = []
    while text:
        size = dice.randint(2, _LONGEST_PIECE)
        while text[:size] in seen or (0 < len(text) - size < _LONGEST_PIECE):
            size += 1
            assert size <= len(text) + _LONGEST_PIECE, f"{text!r} cannot be cut into pieces that occur once"
        pieces.append(text[:size])
        seen.add(text[:size])
        text = text[size:]
    return pieces


def _decoder(vocab_size: int, chains: list[tuple[int, list[int]]]) -> Decoder:
    """Logits are the likeness of the last token's vector to those of all successors; the layer adds nothing."""
    config = ModelConfig(
        architecture="Qwen3ForCausalLM",
        layers=(LayerSpec(RopeConfig(theta=10_000.0)),),
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        hidden_size=_HIDDEN,
        intermediate_size=32,
        vocab_size=vocab_size,
        max_position=4096,
        norm_eps=1e-6,
        tie_embeddings=False,
        qk_norm="per_head",
        dtype="float32",
    )
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (vocab_size, _HIDDEN), generator=generator).float() * 2 - 1
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        decoder.embedding.copy_(signs)
        assert decoder.head is not None
        for char, chain in chains:
            for last, token in zip([char, *chain], chain, strict=False):
                decoder.head[token] += signs[last]
    return decoder
