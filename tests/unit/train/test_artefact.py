from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.train.artefact import MANIFEST, artefact_digest, read_artefact, read_manifest, write_artefact
from penstock.wire.errors import Problem


def test_what_was_written_is_verified_and_read_with_its_facts(tmp_path: Path) -> None:
    """Reading a complete artefact returns its facts, and its manifest lists each file with its size."""
    write_artefact(tmp_path / "a", {"x": b"one", "y": lambda file: file.write(b"four")}, {"kind": "test"})
    assert read_artefact(tmp_path / "a") == {"kind": "test"}
    manifest = read_manifest(tmp_path / "a")
    assert manifest is not None and {name: entry.bytes for name, entry in manifest.files.items()} == {"x": 3, "y": 4}


def test_an_interrupted_write_leaves_no_artefact(tmp_path: Path) -> None:
    """When writing a file fails, the directory has no manifest, even where a complete artefact was before."""
    directory = tmp_path / "a"
    write_artefact(directory, {"x": b"old"}, {})

    def broken(file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_artefact(directory, {"x": b"new", "y": broken}, {})
    with pytest.raises(Problem, match="unfinished") as caught:
        read_artefact(directory)
    assert caught.value.code == "artefact_invalid"


@pytest.mark.parametrize(("content", "said"), [(b"oneX", "has 4 bytes"), (b"onX", "has sha256"), (None, "is missing")])
def test_a_changed_file_is_refused_by_name(tmp_path: Path, content: bytes | None, said: str) -> None:
    """A file of another size or content than the manifest says, or none, is named with what is wrong."""
    write_artefact(tmp_path, {"x": b"one"}, {})
    (tmp_path / "x").unlink()
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(Problem, match=said) as caught:
        read_artefact(tmp_path)
    assert str(tmp_path / "x") in caught.value.message


@pytest.mark.parametrize(
    "manifest",
    [
        "{",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"x": {"bytes": "3"}}}',
        "[" * 100_000,
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, manifest: str) -> None:
    """Broken JSON, a wrong shape and names outside the directory are refused with the manifest's name."""
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(Problem, match=MANIFEST):
        read_artefact(tmp_path)


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    """The same files give the same digest wherever they lie; another content or name gives another one."""
    digests = []
    for number, files in enumerate([{"x": b"one"}, {"x": b"one"}, {"x": b"two"}, {"y": b"one"}]):
        write_artefact(tmp_path / str(number), files, {"number": number})
        digests.append(artefact_digest(tmp_path / str(number)))
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    """Anybody can read which files belong to an artefact."""
    write_artefact(tmp_path, {"x": b""}, {"kind": "test"})
    assert json.loads((tmp_path / MANIFEST).read_text())["files"]["x"]["bytes"] == 0
