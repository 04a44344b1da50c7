"""The error table: every code that is raised is in it, every code in it is raised, and each row is complete."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import penstock
from penstock.wire.engine import Failed, problem_of
from penstock.wire.errors import ERRORS, ErrorSpec, Fault, Problem

SOURCE = Path(penstock.__file__).parent
TABLE = SOURCE / "wire" / "errors.py"


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        if path != TABLE:
            yield path, ast.parse(path.read_text())


def raised() -> dict[str, list[str]]:
    """Code -> places, for each ``Problem("code", ...)`` and ``Failed(code="code", ...)`` in the source."""
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in ("Problem", "Failed"):
                continue
            codes = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "code")]
            for code in codes:
                for constant in ast.walk(code):  # a conditional expression names two codes
                    if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                        places[constant.value].append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    return places


def mentioned() -> set[str]:
    """Every string literal of the source outside the table: codes also travel through helpers' arguments."""
    return {
        node.value
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_code_that_is_raised_is_in_the_table() -> None:
    """A code outside the table would be a KeyError in front of a user."""
    unknown = {code: places for code, places in raised().items() if code not in ERRORS}
    assert unknown == {}


def test_every_code_in_the_table_is_raised() -> None:
    """A code that nothing raises is a promise in the documents that nobody keeps."""
    assert set(ERRORS) - mentioned() == set()


@pytest.mark.parametrize(("code", "spec"), ERRORS.items())
def test_every_row_is_complete(code: str, spec: ErrorSpec) -> None:
    """A 4xx is the caller's to mend unless stated, a 5xx is ours or the upstream's, and there is a hint."""
    assert code.replace("_", "").isalpha() and code.islower()
    assert 400 <= spec.status <= 599
    assert spec.hint == "" or spec.hint.endswith(".")
    if spec.fault is Fault.CALLER and not spec.retryable and spec.status not in (401, 403, 429):
        assert spec.type == "invalid_request_error"
    if spec.fault is not Fault.CALLER:
        assert spec.status >= 500, "what is not the caller's fault must not be a 4xx: clients do not repeat those"
    if spec.retryable:
        assert spec.status in (408, 409, 425, 429, 500, 502, 503, 504), "statuses that OpenAI's clients repeat"


def test_the_body_is_openais() -> None:
    """All four fields are there, null where they say nothing, as OpenAI's clients expect them."""
    problem = Problem("invalid_value", "temperature is -1; it must be at least 0.", param="temperature")
    assert problem.body() == {
        "error": {
            "message": "temperature is -1; it must be at least 0.",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "invalid_value",
        }
    }
    assert Problem("internal_error", "x").body()["error"]["param"] is None
    assert str(problem) == problem.message


def test_a_message_can_always_be_sent() -> None:
    """A chat template may raise with half a character: the answer shows its escape instead of failing itself."""
    assert Problem("template_error", "half: \ud83d, whole: 😀").message == r"half: \ud83d, whole: 😀"


def test_an_unlisted_code_is_our_bug() -> None:
    """It is found where it is raised, and not when a client reads the answer."""
    with pytest.raises(KeyError):
        Problem("no_such_code", "x")


def test_a_code_of_another_release_is_still_a_problem() -> None:
    """An engine that is newer than its reader cannot crash it with a code that the reader's table lacks."""
    problem = problem_of(Failed(code="no_such_code", message="words"))
    assert problem.code == "engine_protocol" and "no_such_code" in problem.message and "words" in problem.message
