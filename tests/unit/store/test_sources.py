"""What a MODEL argument may be, and what a wrong one is told."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest.mock import Mock

import pytest
from huggingface_hub import constants, errors

from penstock.store.sources import Fetch, Resolved, resolve
from penstock.wire.errors import Problem


def _resolve(source: str | None, tmp_path: Path, fetch: Fetch | None = None) -> Resolved:
    def unused(repo: str, revision: str | None) -> str:
        raise AssertionError(f"fetched {repo}")

    return resolve(source, fetch=fetch or unused)


def _raising(error: Exception) -> Fetch:
    def fetch(repo: str, revision: str | None) -> str:
        raise error

    return fetch


def _http(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    return kind(f"{status} Client Error.", response=Mock(status_code=status, headers={}))


def test_a_directory_is_served_under_its_own_name(tmp_path: Path) -> None:
    """A local directory is taken as it is, without asking any hub."""
    (tmp_path / "my-model").mkdir()
    assert _resolve(str(tmp_path / "my-model"), tmp_path) == Resolved(directory=tmp_path / "my-model", name="my-model")


def test_a_directory_wins_over_a_hub_name_of_the_same_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """org/name is the directory when there is one; hf:// asks for the hub."""
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert _resolve("org/name", tmp_path).directory == tmp_path / "org" / "name"


@pytest.mark.parametrize(
    ("source", "repo", "revision"),
    [
        ("org/name", "org/name", None),
        ("hf://org/name", "org/name", None),
        ("hf://org/na.me-1_b@v1.0", "org/na.me-1_b", "v1.0"),
        ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
    ],
)
def test_hub_names_with_and_without_revision(source: str, repo: str, revision: str | None, tmp_path: Path) -> None:
    """The repository and revision asked for are those written, and the served name carries no revision."""
    asked: list[tuple[str, str | None]] = []

    def fetch(repo: str, revision: str | None) -> str:
        asked.append((repo, revision))
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    assert _resolve(source, tmp_path, fetch).name == repo
    assert asked == [(repo, revision)]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("./nowhere", "no directory"),
        ("/no/where/at/all", "/no/where/at/all"),
        ("justaname", "no directory"),
        ("s3://bucket/path", "scheme"),
        ("hf://", "hf://org/name"),
        ("hf://org/name@", "hf://org/name"),
        ("", "empty"),
    ],
)
def test_what_is_not_a_source_says_why(source: str, words: str, tmp_path: Path) -> None:
    """Every malformed or missing source is source_not_found with the fact that is wrong."""
    with pytest.raises(Problem, match=words) as caught:
        _resolve(source, tmp_path)
    assert caught.value.code == "source_not_found"


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    """A weights file given instead of its directory is told what a model is."""
    (tmp_path / "model.gguf").touch()
    with pytest.raises(Problem, match=r"is a file; a model is a directory"):
        _resolve(str(tmp_path / "model.gguf"), tmp_path)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (_http(errors.RepositoryNotFoundError, 404), "source_not_found", "HF_TOKEN"),
        (_http(errors.RepositoryNotFoundError, 401), "source_not_found", "HF_TOKEN"),
        (_http(errors.RevisionNotFoundError, 404), "source_not_found", "no revision"),
        (_http(errors.GatedRepoError, 403), "hub_error", "gated.*HF_TOKEN"),
        (_http(errors.HfHubHTTPError, 401), "hub_error", "401.*HF_TOKEN"),
        (_http(errors.HfHubHTTPError, 500), "hub_error", "500"),
        (errors.LocalEntryNotFoundError("no"), "hub_offline", "cannot be reached.*penstock serve ./directory"),
        (OSError(errno.ENOSPC, "No space left on device"), "insufficient_disk", "org/name"),
        (ConnectionResetError("reset by peer"), "hub_error", "ConnectionResetError"),
    ],
)
def test_every_way_a_hub_fails_has_a_code(error: Exception, code: str, words: str, tmp_path: Path) -> None:
    """The message names the model and what to do; nothing of the hub's library escapes."""
    with pytest.raises(Problem, match=words) as caught:
        _resolve("hf://org/name", tmp_path, _raising(error))
    assert caught.value.code == code
    assert "org/name" in caught.value.message
    assert "HF_HUB_OFFLINE" not in caught.value.hint  # it is not set here


def test_offline_names_the_variable_and_says_that_no_directory_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With HF_HUB_OFFLINE and nothing in the cache, the real hub library's refusal becomes hub_offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Problem, match=r"HF_HUB_OFFLINE.*no local directory org/name") as caught:
        resolve("org/name")
    assert caught.value.code == "hub_offline" and "Unset HF_HUB_OFFLINE" in caught.value.hint


def test_weights_that_are_only_pickles_are_refused(tmp_path: Path) -> None:
    """A snapshot without safetensors is checkpoint_unsafe: its *.bin files were never fetched."""
    with pytest.raises(Problem, match=r"\*\.safetensors") as caught:
        _resolve("org/name", tmp_path, lambda repo, revision: str(tmp_path))
    assert caught.value.code == "checkpoint_unsafe"


def test_no_model_means_the_bundled_one() -> None:
    """The model that is part of the package is whole and served under its own name."""
    resolved = resolve(None)
    assert resolved.name == "pydoc"
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (resolved.directory / file).is_file()


def test_the_bundled_model_is_known_by_its_name_where_no_directory_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``pydoc`` means the package's own; whoever has a directory of that name here means theirs."""
    monkeypatch.chdir(tmp_path)
    assert resolve("pydoc") == resolve(None)
    (tmp_path / "pydoc").write_text("a file is no model")
    assert resolve("pydoc") == resolve(None)
    (tmp_path / "pydoc").unlink()
    (tmp_path / "pydoc").mkdir()
    assert resolve("pydoc").directory == tmp_path / "pydoc"
