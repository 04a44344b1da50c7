"""What damaged, hostile or missing weight files get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.models.checkpoint import read_headers
from penstock.wire.errors import Problem

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def encode(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def refusal(directory: Path, content: bytes) -> Problem:
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(Problem) as caught:
        read_headers(directory)
    assert str(directory / "model.safetensors") in caught.value.message
    return caught.value


def test_sound_file_is_read(tmp_path: Path) -> None:
    """A sound header gives each tensor's dtype, shape and place in the file."""
    content = encode({"__metadata__": {"format": "pt"}, "a": ENTRY}, bytes(24))
    (tmp_path / "model.safetensors").write_bytes(content)
    tensor = read_headers(tmp_path)["a"]
    assert (tensor.dtype, tensor.shape, tensor.num_bytes) == ("F32", (2, 3), 24)
    assert tensor.offset == len(content) - 24


def test_truncated_file_states_both_sizes(tmp_path: Path) -> None:
    """A file that ends early is refused with the size it has and the size it should have."""
    whole = encode({"a": ENTRY}, bytes(24))
    problem = refusal(tmp_path, whole[:-5])
    assert problem.code == "checkpoint_invalid"
    assert f"{len(whole) - 5} bytes" in problem.message and str(len(whole)) in problem.message
    assert "truncated" in problem.message


@pytest.mark.parametrize("length", [0, 7, 8, 12])
def test_file_that_ends_in_its_header_is_refused(tmp_path: Path, length: int) -> None:
    """A file cut inside its header is refused as such."""
    assert refusal(tmp_path, encode({"a": ENTRY})[:length]).code == "checkpoint_invalid"


def test_huge_header_is_refused_unread(tmp_path: Path) -> None:
    """A header that claims more than the format's limit is refused without reading or allocating it."""
    problem = refusal(tmp_path, (1 << 62).to_bytes(8, "little") + b"{}")
    assert str(1 << 62) in problem.message and "100000000" in problem.message


@pytest.mark.parametrize("header", [b"not json", b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000, b""])
def test_header_that_is_no_object_is_refused(tmp_path: Path, header: bytes) -> None:
    """A header that is not a JSON object is refused, however odd."""
    assert refusal(tmp_path, encode(header)).code == "checkpoint_invalid"


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2, -3]},
        {"shape": [2, 3.0]},
        {"shape": [True, 6]},
        {"shape": [2, 4]},
        {"shape": [1 << 40, 1 << 40]},
        {"shape": "2x3"},
        {"data_offsets": [-24, 0]},
        {"data_offsets": [24, 0]},
        {"data_offsets": [0]},
        {"data_offsets": [0, 20]},
        {"dtype": 32},
    ],
)
def test_entry_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """A tensor whose shape, dtype and bytes do not go together is refused by name."""
    problem = refusal(tmp_path, encode({"weights": ENTRY | change}, bytes(24)))
    assert problem.code == "checkpoint_invalid" and "weights" in problem.message


def test_entry_that_is_no_object_is_refused(tmp_path: Path) -> None:
    """A tensor's entry of another type is refused by the tensor's name."""
    assert "weights" in refusal(tmp_path, encode({"weights": 3})).message


def test_unknown_dtype_is_unsupported(tmp_path: Path) -> None:
    """A dtype outside the format's list is named."""
    problem = refusal(tmp_path, encode({"weights": ENTRY | {"dtype": "F4"}}, bytes(24)))
    assert problem.code == "checkpoint_unsupported" and "F4" in problem.message


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    """Two tensors in the same bytes are refused."""
    assert "begins at byte" in refusal(tmp_path, encode({"a": ENTRY, "b": ENTRY}, bytes(24))).message


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    """Data that belongs to no tensor is refused: something wrote this file wrongly."""
    assert "no tensor" in refusal(tmp_path, encode({"a": ENTRY}, bytes(30))).message


def write_index(directory: Path, weight_map: Any) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_read_together(tmp_path: Path) -> None:
    """An index's shards make up one checkpoint."""
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes(encode({name: ENTRY}, bytes(24)))
    write_index(tmp_path, {"a": "a.safetensors", "b": "b.safetensors"})
    assert {name: tensor.file.name for name, tensor in read_headers(tmp_path).items()} == {
        "a": "a.safetensors",
        "b": "b.safetensors",
    }


def test_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    """A tensor that two shards hold is ambiguous, so refused with both names."""
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes(encode({"twice": ENTRY}, bytes(24)))
    write_index(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"})
    with pytest.raises(Problem, match=r"b\.safetensors: tensor twice is also in a\.safetensors"):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "", "a\0b", 3, None, ["a"], {"a": 1}]
)
def test_index_cannot_leave_its_directory(tmp_path: Path, name: Any) -> None:
    """An index that names anything but a file beside it is refused, even where that file exists."""
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret.safetensors", inside / "sub" / "a.safetensors"):
        place.write_bytes(encode({"a": ENTRY}, bytes(24)))
    write_index(inside, {"a": name})
    with pytest.raises(Problem) as caught:
        read_headers(inside)
    assert caught.value.code == "checkpoint_invalid" and "plain names" in caught.value.message


def test_missing_shard_is_named(tmp_path: Path) -> None:
    """A shard that the index names but the directory lacks is named."""
    write_index(tmp_path, {"a": "model-00002-of-00002.safetensors"})
    with pytest.raises(Problem, match=r"model-00002-of-00002\.safetensors.* is missing"):
        read_headers(tmp_path)


def test_a_shard_whose_name_no_file_has_is_missing(tmp_path: Path) -> None:
    """A name too long for the file system is a missing file, not a failure of the system call."""
    write_index(tmp_path, {"a": "é" * 200})
    with pytest.raises(Problem, match="names, is missing") as caught:
        read_headers(tmp_path)
    assert caught.value.code == "checkpoint_invalid"


@pytest.mark.parametrize("header", [{"\ud800": ENTRY}, {"a": ENTRY | {"dtype": "\ud800"}}])
def test_what_is_no_text_is_refused_in_words_that_are(tmp_path: Path, header: Any) -> None:
    """Lone surrogates, which JSON can spell, are refused by a message that can be sent and printed."""
    refusal(tmp_path, encode(header, bytes(24))).message.encode()


@pytest.mark.parametrize("weight_map", [None, {}, [], "a.safetensors"])
def test_index_without_a_map_is_refused(tmp_path: Path, weight_map: Any) -> None:
    """An index with no weight_map to speak of is refused with the file's name."""
    write_index(tmp_path, weight_map)
    with pytest.raises(Problem, match=r"index\.json.*weight_map"):
        read_headers(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_unsafe(tmp_path: Path, name: str) -> None:
    """A checkpoint of pickles alone is refused as unsafe, and the pickle is not opened."""
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(Problem) as caught:
        read_headers(tmp_path)
    assert caught.value.code == "checkpoint_unsafe" and name in caught.value.message


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    """A directory with no weights at all says which files it looked for."""
    with pytest.raises(Problem, match=r"model\.safetensors nor model\.safetensors\.index\.json") as caught:
        read_headers(tmp_path)
    assert caught.value.code == "checkpoint_invalid"


def test_a_gguf_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    """Where the only weights are in llama.cpp's format, the file is named, and what to take instead."""
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(Problem, match=r"model-Q4_K_M\.gguf is a GGUF file.*safetensors") as caught:
        read_headers(tmp_path)
    assert caught.value.code == "checkpoint_unsupported"
