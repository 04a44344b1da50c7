"""A tiny Qwen3 checkpoint made on the spot from a fixed seed, for trying and testing without a download.

In: a directory that does not exist yet; out: a complete checkpoint with a byte-level tokenizer, the same bytes always.
It has learnt nothing: it babbles printable text, rarely ends by itself, and never the same way after two prompts.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.rope import RopeConfig
from penstock.models.save import full_disk_named, save_decoder, write_atomically
from penstock.models.traits import LayerSpec
from penstock.wire.errors import Problem

SEED = 20_260_501
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_NUM_BYTES = 256
_CONFIG = ModelConfig(
    architecture="Qwen3ForCausalLM",
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    hidden_size=128,
    intermediate_size=256,
    vocab_size=_NUM_BYTES + 3,
    max_position=2048,
    norm_eps=1e-6,
    layers=(LayerSpec(RopeConfig(theta=10_000.0)),) * 3,
    tie_embeddings=False,
    qk_norm="per_head",
    dtype="float32",
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_seeded_checkpoint(directory: Path) -> None:
    """Make ``directory`` the seeded checkpoint; one that is there already is left as it is.

    Writers may race: the first rename wins and the others find it done.
    Raises ``checkpoint_invalid`` when ``directory`` holds something else, ``insufficient_disk`` when the disk is full.
    """
    if _is_complete(directory):
        return
    with full_disk_named(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        save_decoder(_decoder(), draft)
        _write_text_files(draft)
        draft.chmod(0o755)
        draft.rename(directory)
    except OSError:
        if _is_complete(directory):
            return
        if directory.exists():
            raise Problem(
                "checkpoint_invalid", f"{directory} exists but is not the seeded checkpoint; remove it and try again."
            ) from None
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _is_complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json"))


def _decoder() -> Decoder:
    decoder = Decoder(_CONFIG)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                parameter.copy_(_noise(parameter.shape, generator))
        assert decoder.head is not None
        _prefer_printable(decoder, decoder.head)
    return decoder


def _noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Uniform in +-0.25, from integers: unlike normal draws, these are the same bits on every CPU."""
    return (torch.randint(0, 1 << 16, shape, generator=generator) - (1 << 15)).float() / (1 << 17)


def _prefer_printable(decoder: Decoder, head: Tensor) -> None:
    """Make the next token depend strongly on the last, so that a lost or repeated one shows, and be ASCII text.

    One coordinate of the residual stream stays constant, and the head uses it as a bias.
    """
    decoder.embedding.mul_(8.0)
    head.mul_(2.0)
    decoder.embedding[:, 0] = 4.0
    for name, parameter in decoder.named_parameters():
        if name.endswith(("output.weight", "down.weight")):
            parameter[0] = 0.0
    head[:, 0] = -6.0
    head[ord(" ") : 127, 0] = 2.0


def _write_text_files(directory: Path) -> None:
    """Byte b is token b, and the three special tokens follow."""
    vocabulary = {char: byte for byte, char in byte_characters().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (END_OF_TEXT, TURN_START, TURN_END)])
    text = tokenizer.to_str(pretty=True)
    write_atomically(directory / "tokenizer.json", lambda file: file.write(text.encode()))
    end_of_text, turn_end = _NUM_BYTES, _NUM_BYTES + 2
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "model_max_length": _CONFIG.max_position,
            "clean_up_tokenization_spaces": False,
            "chat_template": _CHAT_TEMPLATE,
        },
    )
    _write_json(
        directory / "generation_config.json", {"eos_token_id": [turn_end, end_of_text], "pad_token_id": end_of_text}
    )


def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, as the ByteLevel pre-tokenizer writes it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(_NUM_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(_NUM_BYTES + i) for i, byte in enumerate(others)}


def _write_json(path: Path, content: dict[str, object]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
