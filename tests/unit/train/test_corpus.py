from __future__ import annotations

import sys
from pathlib import Path

import pytest

from penstock.train.corpus import Corpus, python_corpus, read_corpus, split_documents, write_corpus
from penstock.train.python_builtins import builtin_definitions
from penstock.train.python_source import source_definitions
from penstock.wire.errors import Problem


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return python_corpus()


def test_there_are_at_least_4000_callables_to_ask_about(corpus: Corpus) -> None:
    """The installed Python gives enough public callables with a short first sentence."""
    assert len(corpus.callables) >= 4000
    assert corpus.num_documented >= len(corpus.callables)


def test_names_are_the_ones_that_users_write(corpus: Corpus) -> None:
    """Builtins have no prefix, re-exports have their public name, hidden instances' methods are functions."""
    answers = {entry.qualified_name: entry.first_sentence for entry in corpus.entries}
    assert answers["len"] == "Return the number of items in a container."
    assert answers["str.split"].startswith("Return a list of the")
    assert answers["os.path.join"] and answers["asyncio.sleep"] and answers["json.JSONDecoder"]
    assert answers["random.randint"] == "Return random integer in range [a, b], including both end points."
    assert answers["math.sqrt"] == "Return the square root of x."
    assert "asyncio.tasks.sleep" not in answers and "posixpath.join" not in answers


def test_nothing_private_or_of_tests_is_in_it(corpus: Corpus) -> None:
    """No part of any name begins with an underscore or belongs to the test suite."""
    for name in corpus.known_names:
        assert not any(part.startswith("_") for part in name.split(".")), name
        assert name.split(".")[0] not in {"test", "idlelib", "antigravity", "this", "lib2to3"}, name


def test_each_name_and_each_document_is_there_once(corpus: Corpus) -> None:
    """Duplicates are dropped, and the order is that of the names."""
    names = [entry.qualified_name for entry in corpus.entries]
    assert names == sorted(set(names))
    assert len(set(corpus.documents)) == len(corpus.documents)
    assert all(text.strip() for text in corpus.documents)


@pytest.mark.slow
def test_reading_again_gives_the_same_digest(corpus: Corpus) -> None:
    """The corpus depends on the Python build and the longest answer alone."""
    shorter = python_corpus(60)
    assert shorter.digest != corpus.digest
    assert (shorter.documents, shorter.known_names) == (corpus.documents, corpus.known_names)
    assert shorter.entries == tuple(entry for entry in corpus.entries if len(entry.first_sentence) <= 60)


def test_what_is_written_is_read_back_with_its_notice(corpus: Corpus, tmp_path: Path) -> None:
    """The artefact holds the whole corpus and the licence; a changed byte is refused."""
    write_corpus(tmp_path, corpus)
    assert read_corpus(tmp_path) == corpus
    assert "Python Software Foundation" in (tmp_path / "PSF-LICENSE.txt").read_text()
    with (tmp_path / "corpus.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(Problem) as caught:
        read_corpus(tmp_path)
    assert caught.value.code == "artefact_invalid"


def test_held_out_documents_hold_no_answers(corpus: Corpus) -> None:
    """The two parts are disjoint, together everything, the same each time, and no question is about the second."""
    train, held_out = split_documents(corpus, 0.02, 1)
    assert sorted(train + held_out) == sorted(corpus.documents)
    assert split_documents(corpus, 0.02, 1) == (train, held_out) != split_documents(corpus, 0.02, 2)
    assert 0.015 < sum(len(text.encode()) for text in held_out) / corpus.num_bytes <= 0.02
    everything_free = split_documents(corpus, 1.0, 1)[1]
    assert len(held_out) < len(everything_free) < len(corpus.documents) / 2
    docs = {entry.doc for entry in corpus.entries}
    assert not any(text.partition("\n")[2] in docs for text in held_out)


def test_reading_the_library_does_not_run_it(tmp_path: Path) -> None:
    """A module that would end the process is read like any other; branches, re-exports and properties are seen."""
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("from ._inner import shown, _hidden\nfrom .outer import *\n")
    (package / "_inner.py").write_text(
        'raise SystemExit\nif 1:\n    def shown(a, b=2):\n        "Show it now."\nelse:\n    def shown(): "No."\n'
        'def lost(): "Nobody sees it."\n'
    )
    (package / "outer.py").write_text(
        '__all__ = ["Kind"]\nclass Kind:\n    "A kind."\n    def run(self, x):\n        "Run it."\n'
        '    @property\n    def size(self): "The size."\n    @staticmethod\n    def make(x): "Make it."\n'
        'def rest(): "Rest."\n'
    )
    (tmp_path / "somebody_else.py").write_text('def f(): "Not of the library."')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "__init__.py").write_text('def f(): "Test it."')
    found = {item.name: (item.signature, item.doc) for item in source_definitions(tmp_path, {"pack", "test"})}
    assert found == {
        "pack": (None, None),
        "pack.shown": ("(a, b=2)", "Show it now."),
        "pack.outer": (None, None),
        "pack.Kind": (None, "A kind."),
        "pack.Kind.run": ("(x)", "Run it."),
        "pack.Kind.make": ("(x)", "Make it."),
        "pack.outer.rest": ("()", "Rest."),
    }


def test_a_python_without_sources_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installation stripped of its library's source cannot be trained from, and the message says where it looked."""
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(Problem, match=str(tmp_path)) as caught:
        python_corpus()
    assert caught.value.code == "source_not_found"


def test_what_this_process_has_replaced_is_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line or a test that puts its own function into the library changes nothing."""
    monkeypatch.setattr(sys, "excepthook", lambda *error: None)
    definitions, _ = builtin_definitions()
    assert "sys.excepthook" in {definition.name for definition in definitions}


@pytest.mark.usefixtures("corpus")
def test_jokes_are_not_imported() -> None:
    """Making the corpus opens no browser and prints no poem."""
    assert not {"antigravity", "this", "idlelib"} & set(sys.modules)
