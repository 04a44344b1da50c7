"""The text a Python installation brings along: documentation strings and help topics.

In: the running Python; out: a :class:`Corpus`, the same for the same Python build, and its artefact on disk.
The text is the Python Software Foundation's, under the PSF licence; the notice goes wherever the text goes.
"""

from __future__ import annotations

import hashlib
import importlib
import platform
import sys
import sysconfig
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import msgspec

from penstock.train.artefact import read_artefact, write_artefact
from penstock.train.chance import draw
from penstock.train.python_builtins import builtin_definitions
from penstock.train.python_source import Definition, Kind, source_definitions
from penstock.train.sentences import MAX_CHARACTERS, first_sentence
from penstock.wire.errors import Problem

NOTICE_FILE = "PSF-LICENSE.txt"
_NOTICE = """\
This text was made from the documentation strings and help topics of Python {version}.
Copyright (c) 2001-{year} Python Software Foundation; All Rights Reserved.
It is used under the PSF License Agreement, which follows and is at https://docs.python.org/3/license.html

"""
_YEAR = {(3, 11): 2023, (3, 12): 2023, (3, 13): 2024, (3, 14): 2025}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Something with a name that can be asked about, and the first sentence of its documentation."""

    qualified_name: str
    kind: Kind
    signature: str | None
    first_sentence: str
    doc: str

    @property
    def is_callable(self) -> bool:
        return self.kind != "module"


class Corpus(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Documents to read and entries to be asked about, both in a fixed order.

    ``known_names`` has every public definition, documented or not: an invented name must not be one of them.
    ``num_documented`` counts the public callables that have any documentation; ``entries`` keeps those of them whose
    first sentence is worth quoting.  ``absent_modules`` are those that this Python was built without.
    """

    python_version: str
    documents: tuple[str, ...]
    entries: tuple[Entry, ...]
    known_names: tuple[str, ...]
    num_documented: int
    absent_modules: tuple[str, ...]
    notice: str

    @property
    def callables(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.is_callable]

    @property
    def num_bytes(self) -> int:
        return sum(map(_num_bytes, self.documents))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the documents, the entries and the known names, in order."""
        return hashlib.sha256(msgspec.json.encode([self.documents, self.entries, self.known_names])).hexdigest()


def python_corpus(max_answer_characters: int = MAX_CHARACTERS) -> Corpus:
    """Read the documentation of the Python that runs.  Takes a few seconds; runs no module that has effects.

    A first sentence longer than ``max_answer_characters`` makes no entry.

    Raises ``source_not_found`` when this installation has no standard library in source form, or no help topics.
    """
    library = Path(sysconfig.get_path("stdlib"))
    written = source_definitions(library, sys.stdlib_module_names)
    if not any(definition.doc for definition in written):
        message = f"{library} holds no standard library in source form; train with a Python that has it."
        raise Problem("source_not_found", message)
    compiled, absent = builtin_definitions()
    # What is in C wins: it is what help() shows.
    documented = {definition.name: definition for definition in compiled if definition.doc}
    definitions = {definition.name: definition for definition in written} | documented
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        message = f"{library} lacks pydoc_data, the help topics; train with a Python that has them."
        raise Problem("source_not_found", message) from None
    ordered = [definitions[name] for name in sorted(definitions)]
    return Corpus(
        python_version=platform.python_version(),
        documents=tuple(_documents(ordered, topics)),
        entries=tuple(_entries(ordered, max_answer_characters)),
        known_names=tuple(sorted(definitions.keys() | {definition.name for definition in compiled})),
        num_documented=sum(1 for definition in ordered if definition.doc and definition.kind != "module"),
        absent_modules=tuple(absent),
        notice=licence_notice(),
    )


def split_documents(corpus: Corpus, held_out_share: float, seed: int) -> tuple[list[str], list[str]]:
    """(documents to train on, documents to measure on).

    Held out are only documents whose first sentence is nobody's answer, so that questions teach nothing about them:
    up to ``held_out_share`` of all bytes, but never more than half of those documents' bytes.
    """
    asked = {entry.doc for entry in corpus.entries}
    free = [text for text in corpus.documents if text.partition("\n")[2] not in asked]
    room = min(held_out_share * corpus.num_bytes, sum(map(_num_bytes, free)) / 2)
    held_out = set()
    for text in sorted(free, key=lambda text: (draw(seed, "held out", text), text)):
        if _num_bytes(text) <= room:
            held_out.add(text)
            room -= _num_bytes(text)
    return [text for text in corpus.documents if text not in held_out], sorted(held_out)


def licence_notice() -> str:
    """The notice that goes with everything made from this text, with the licence as this Python brings it."""
    year = _YEAR.get(sys.version_info[:2], 2026)
    library = Path(sysconfig.get_path("stdlib"))
    texts = [path.read_text("utf-8") for name in ("LICENSE.txt", "LICENSE") if (path := library / name).is_file()]
    return _NOTICE.format(version=platform.python_version(), year=year) + "".join(texts[:1])


def write_corpus(directory: Path, corpus: Corpus) -> None:
    """Write ``corpus`` as an artefact, its licence notice beside it."""
    facts = {
        "kind": "corpus",
        "python_version": corpus.python_version,
        "corpus_digest": corpus.digest,
        "num_documents": len(corpus.documents),
        "num_bytes": corpus.num_bytes,
        "num_documented_callables": corpus.num_documented,
        "num_callables": len(corpus.callables),
        "num_entries": len(corpus.entries),
        "absent_modules": list(corpus.absent_modules),
    }
    files = {"corpus.json": msgspec.json.encode(corpus), NOTICE_FILE: corpus.notice.encode()}
    write_artefact(directory, files, facts)


def read_corpus(directory: Path) -> Corpus:
    """What :func:`write_corpus` wrote.  Raises ``artefact_invalid`` when it is not complete and unchanged."""
    read_artefact(directory)
    path = directory / "corpus.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Corpus)
    except (FileNotFoundError, msgspec.MsgspecError) as error:
        raise Problem("artefact_invalid", f"{path} is not a corpus: {error}. Remove {directory}.") from error


def _documents(definitions: Iterable[Definition], topics: dict[str, str]) -> list[str]:
    texts = [
        f"{definition.name}{definition.signature or ''}\n{definition.doc}"
        for definition in definitions
        if definition.doc is not None and definition.doc.strip()
    ]
    texts += [topics[name].strip() for name in sorted(topics)]
    return list(dict.fromkeys(texts))


def _entries(definitions: Iterable[Definition], max_characters: int) -> list[Entry]:
    return [
        Entry(
            qualified_name=definition.name,
            kind=definition.kind,
            signature=definition.signature,
            first_sentence=sentence,
            doc=definition.doc,
        )
        for definition in definitions
        if definition.doc and (sentence := first_sentence(definition.doc, max_characters)) is not None
    ]


def _num_bytes(text: str) -> int:
    return len(text.encode())
