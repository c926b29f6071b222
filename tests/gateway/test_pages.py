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
