from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock.train.artefact import seal
from penstock.train.tokens import Document, TokenSet, write_tokens
from penstock.wire.errors import Problem

DOCUMENTS = [Document([0, 7, 65_535], [False, True, True], 9), Document([5, 6], [False, False], 0)]


def test_documents_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Loading returns each document's ids, mask and bytes, and counts that fit."""
    write_tokens(tmp_path, DOCUMENTS, provenance={"corpus": "abc"})
    tokens = TokenSet.load(tmp_path)
    assert [tokens.document(index) for index in range(len(tokens))] == DOCUMENTS
    assert (tokens.num_tokens, tokens.manifest["num_predicted_tokens"], tokens.manifest["num_bytes"]) == (5, 2, 9)
    assert tokens.manifest["provenance"] == {"corpus": "abc"}


def test_the_same_documents_have_the_same_digest(tmp_path: Path) -> None:
    """The digest depends on content only; a changed mask changes it."""
    changed = [DOCUMENTS[0], Document([5, 6], [False, True], 0)]
    digests = []
    for name, documents in (("a", DOCUMENTS), ("b", iter(DOCUMENTS)), ("c", changed)):
        write_tokens(tmp_path / name, documents, provenance={})
        digests.append(TokenSet.load(tmp_path / name).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_directory_without_a_manifest_is_no_token_set(tmp_path: Path) -> None:
    """Arrays alone, as an interrupted write leaves them, are refused."""
    write_tokens(tmp_path, DOCUMENTS, provenance={})
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(Problem) as caught:
        TokenSet.load(tmp_path)
    assert caught.value.code == "artefact_invalid"


@pytest.mark.parametrize("name", ["tokens.npy", "mask.npy", "offsets.npy", "bytes.npy"])
def test_one_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    """Each array is covered by its digest."""
    write_tokens(tmp_path, DOCUMENTS, provenance={})
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Problem, match=name):
        TokenSet.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("offsets", np.array([0, 5, 5])),
        ("offsets", np.array([0, 3])),
        ("tokens", np.zeros(5, np.int64)),
        ("mask", np.zeros(4, np.uint8)),
        ("bytes", np.array([{}], dtype=object)),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path, name: str, array: np.ndarray) -> None:
    """Even with right digests: wrong types, lengths, empty documents, and objects that would be unpickled."""
    write_tokens(tmp_path, DOCUMENTS, provenance={})
    np.save(tmp_path / f"{name}.npy", array)
    seal(tmp_path, "")
    with pytest.raises(Problem) as caught:
        TokenSet.load(tmp_path)
    assert caught.value.code == "artefact_invalid"


def test_nothing_and_ids_too_high_are_refused(tmp_path: Path) -> None:
    """No documents, and an id that 16 bits cannot hold, are the caller's mistake and leave no artefact."""
    for documents in ([], [Document([0, 65_536], [False, True], 1)]):
        with pytest.raises(Problem) as caught:
            write_tokens(tmp_path / "t", documents, provenance={})
        assert caught.value.code == "invalid_value"
        assert not (tmp_path / "t").exists()
