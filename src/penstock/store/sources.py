"""Where a model comes from: a directory, the Hugging Face hub, or the one that is part of the package.

In: what a user wrote after ``penstock serve``; out: a local directory and the name to serve it under.
Never fetches a pickle, never imports torch.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from penstock.wire.errors import Problem

BUNDLED = Path(__file__).parents[1] / "bundled" / "pydoc"
"""The model that Penstock trained itself (recipes/pydoc.yaml) and serves when none is named."""

ALLOWED_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")
"""What is fetched from a hub.  ``*.bin``, ``*.pt`` and ``*.pth`` are pickles: they could run code when opened."""

_HUB_NAME = re.compile(r"^(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[^\s@]+))?$")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")

Fetch = Callable[[str, str | None], str]
"""(repository, revision) -> snapshot directory; raises what huggingface_hub raises."""


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint on this machine, and the name to serve it under."""

    directory: Path
    name: str


def resolve(source: str | None, *, fetch: Fetch | None = None) -> Resolved:
    """The checkpoint that ``source`` names, the bundled one also without a name.  May download for a long time.

    Raises ``Problem``: ``source_not_found``, ``hub_offline``, ``hub_error``, ``checkpoint_unsafe``,
    ``insufficient_disk``.
    """
    if source is None or is_bundled(source):
        return Resolved(directory=BUNDLED, name=BUNDLED.name)
    if source.startswith("hf://"):
        return _from_hub(source, source.removeprefix("hf://"), fetch or snapshot)
    if not source.strip():
        raise Problem("source_not_found", "The model's name is empty.", param="MODEL")
    path = Path(source).expanduser()
    if path.is_dir():
        return Resolved(directory=path.resolve(), name=path.resolve().name)
    if path.exists():
        raise Problem(
            "source_not_found",
            f"{source} is a file; a model is a directory with config.json, tokenizer.json and *.safetensors.",
            param="MODEL",
        )
    if _HUB_NAME.match(source) and not source.startswith("."):
        return _from_hub(source, source, fetch or snapshot)
    raise Problem("source_not_found", _what_is_wrong(source, path), param="MODEL")


def is_bundled(source: str) -> bool:
    """Whether it is the name of the package's model, and not of a directory here."""
    return source == BUNDLED.name and not Path(source).is_dir()


def _what_is_wrong(source: str, path: Path) -> str:
    if _SCHEME.match(source):
        return f"The source {source} has a scheme that this release does not read; it reads hf:// and directories."
    return f"There is no directory {path.absolute()}."


def _from_hub(source: str, name: str, fetch: Fetch) -> Resolved:
    match = _HUB_NAME.match(name)
    if match is None:
        raise Problem("source_not_found", f"{source} is not hf://org/name or hf://org/name@revision.", param="MODEL")
    repo, revision = match["repo"], match["revision"]
    try:
        directory = Path(fetch(repo, revision))
    except Exception as error:
        raise _hub_problem(error, source, repo, revision) from error
    if not any(directory.glob("*.safetensors")):
        raise Problem(
            "checkpoint_unsafe",
            f"{repo} holds no *.safetensors file at its top level; pickled weights (*.bin, *.pt) are never fetched.",
            param="MODEL",
        )
    return Resolved(directory=directory, name=repo)


def snapshot(repo: str, revision: str | None, *, cached_only: bool = False) -> str:
    """A :data:`Fetch` from the hub; with ``cached_only`` nothing is downloaded."""
    from huggingface_hub import snapshot_download  # 0.1 s to import

    return snapshot_download(repo, revision=revision, allow_patterns=list(ALLOWED_FILES), local_files_only=cached_only)


def _hub_problem(error: Exception, source: str, repo: str, revision: str | None) -> Problem:
    from huggingface_hub import errors

    local = "" if source.startswith("hf://") else f" There is no local directory {source} either."
    if isinstance(error, errors.GatedRepoError):
        return _hub(f"{repo} is gated: accept its terms on its hub page and set HF_TOKEN to a token of that account.")
    if isinstance(error, errors.RevisionNotFoundError):
        return Problem("source_not_found", f"{repo} has no revision {revision!r} on the hub.", param="MODEL")
    if isinstance(error, errors.RepositoryNotFoundError):
        return Problem(
            "source_not_found",
            f"The hub knows no model {repo}, or it is private and HF_TOKEN does not open it.{local}",
            param="MODEL",
        )
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return _offline(f"{repo} is not, or not whole, in the local hub cache and {_why_unreachable()}.", local)
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return _hub(f"The hub answered {status} for {repo}; HF_TOKEN may be missing or wrong: {_first_line(error)}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Problem("insufficient_disk", f"The disk filled up while fetching {repo}.")
    return _hub(f"Fetching {repo} failed: {type(error).__name__}: {_first_line(error)}{local}")


def _why_unreachable() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to fetch it"
    return f"the hub at {constants.ENDPOINT} (HF_ENDPOINT) cannot be reached"


def _offline(fact: str, local: str) -> Problem:
    from huggingface_hub import constants

    message = f"{fact}{local} Give a local directory instead: penstock serve ./directory"
    hint = "Unset HF_HUB_OFFLINE, or give a local directory." if constants.HF_HUB_OFFLINE else ""
    return Problem("hub_offline", message, param="MODEL", hint=hint)


def _hub(message: str) -> Problem:
    return Problem("hub_error", message, param="MODEL")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
