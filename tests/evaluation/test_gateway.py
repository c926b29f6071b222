"""A gateway with the pocket models behind it reaches what the engines reach in this process."""

from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from evaluation.engines import engine_system
from evaluation.gateway import Gateway
from evaluation.loaders import FIXTURE, load
from evaluation.run import run
from regionsearch.errors import Kind, RegionSearchError


def test_the_numbers_of_a_gateway_are_those_of_the_engines(stack):
    dataset = load(FIXTURE).subset(2, seed=1)
    with Gateway(stack.http) as gateway:
        behind_url = run(gateway, dataset, draws=2)
        collections = httpx.get(f"{stack.http}/v1/collections").json()["collections"]
        assert any(one["name"].startswith("evaluation-") for one in collections)
    in_process = run(engine_system(), dataset, draws=2)
    expected = {one.key: one.estimate.value for one in in_process.measures}
    reached = {one.key: one.estimate.value for one in behind_url.measures}
    # The searcher keeps vectors in half precision: scores differ in the fourth place, a threshold may move.
    assert reached == pytest.approx(expected, abs=0.02)
    assert behind_url.system["embedder"]["weights_digest"] == in_process.system["embedder"]["sha256"]
    left = httpx.get(f"{stack.http}/v1/collections").json()["collections"]
    assert not any(one["name"].startswith("evaluation-") for one in left)


def test_a_kept_collection_is_linked_to(stack, tmp_path):
    """From the report and from each image's line to the image with its things on the page."""
    data = load(FIXTURE).subset(1, seed=1)
    with Gateway(stack.http, keep=True) as gateway:
        gateway.proposals(data.samples[0])
        (page,) = gateway.pages().values()
    asked = parse_qs(urlsplit(page).query)
    collection = f"{stack.http}/v1/collections/{asked['in'][0]}"
    try:
        found = httpx.get(f"{collection}/images/{asked['view'][0]}").json()
        assert found["name"] == data.samples[0].path.name
    finally:
        httpx.delete(collection).raise_for_status()


def test_an_address_without_a_gateway_is_named():
    with pytest.raises(RegionSearchError, match="does not answer") as caught, Gateway("http://127.0.0.1:9"):
        pass
    assert caught.value.kind is Kind.UNAVAILABLE
