"""Pages of a search: they follow each other, and their tokens belong to one request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.conftest import Running
from tests.gateway.fakes import Script
from tests.gateway.searching import search


def test_pages_follow_each_other_without_embedding_again(
    gateway: Running, filled: dict[str, str], script: Script
) -> None:
    body = {"query": {"texts": ["red", "blue"]}, "negatives": ["black"], "min_relevancy": 0.0}
    whole = search(gateway, **body, page_size=1000)["hits"]
    pages, token = [], ""
    while True:
        answer = search(gateway, **body, page_size=3, page_token=token)
        pages += answer["hits"]
        token = answer["next_page_token"]
        if not token:
            break
    assert pages == whole
    assert len(whole) > 6
    assert script.calls == {"EmbedTexts": 2}


@pytest.mark.parametrize("change", [{"query": {"text": "blue"}}, {"level": "image"}, {"page_size": 3}])
def test_a_token_belongs_to_its_request(
    gateway: Running, filled: dict[str, str], change: dict[str, Any]
) -> None:
    body = {"query": {"text": "red"}, "page_size": 2}
    token = search(gateway, **body)["next_page_token"]
    assert search(gateway, **body, page_token=token)["hits"]
    problem = search(gateway, 400, **(body | change), page_token=token)
    assert problem["errors"][0]["pointer"] == "/page_token"


@pytest.mark.parametrize("token", ["made up", "AAAA", "!", "ÿ", "a" * 5])
def test_a_made_up_token_is_refused(gateway: Running, filled: dict[str, str], token: str) -> None:
    assert "/page_token" in str(search(gateway, 400, query={"text": "a"}, page_token=token)["errors"])


def test_page_sizes_at_the_limits(gateway: Running, filled: dict[str, str]) -> None:
    assert len(search(gateway, query={"text": "red"}, level="both", page_size=0)["hits"]) == 12
    assert len(search(gateway, query={"text": "red"}, level="both", page_size=10**9)["hits"]) == 12


def test_near_duplicates_are_folded_over_http_and_counted(gateway: Running, filled: dict[str, str]) -> None:
    body = {"query": {"text": "red"}, "level": "region"}
    alike = [hit for hit in search(gateway, **body)["hits"] if hit["score"] > 0.999]
    first, *others = search(gateway, **body, fold_similarity=0.999)["hits"]
    assert first["folded_count"] == len(alike) - 1 > 0
    assert all(hit["score"] <= 0.999 for hit in others)
    mixed = search(gateway, **body, diversity=0.9, page_size=2)["hits"]
    assert mixed[0]["score"] > 0.999 > mixed[1]["score"]
    for wrong in ({"fold_similarity": 0}, {"diversity": 2}):
        assert search(gateway, 400, **body, **wrong)["errors"][0]["pointer"] == f"/{next(iter(wrong))}"
