"""Collections whose vectors are an embedding and a segmenter's features: examples by both, words by one."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from regionsearch.cli import app
from regionsearch.client import Client
from regionsearch.v1 import embed_pb2
from tests.gateway import fakes
from tests.gateway.conftest import BLUE, RED, Running, Shape, World, add, scene
from tests.gateway.fakes import DIMENSION, FEATURES, Script

NAME = "shapes"
WEIGHT = 2.0
SHARE = 1 / math.hypot(1, WEIGHT)
TALL: Shape = ("red", (60, 10, 70, 110))
WIDE: Shape = ("maroon", (10, 10, 150, 30))
IMAGES = {"square": scene(RED, BLUE), "tall": scene(TALL), "wide": scene(WIDE)}


@pytest.fixture(scope="module")
def shapes(shared_gateway: Running) -> Iterator[dict[str, str]]:
    """A collection with features; the ids of its images by name."""
    made = shared_gateway.http.post(
        "/v1/collections", json={"name": NAME, "segment_features": {"weight": WEIGHT}}
    )
    assert made.status_code == 201, made.text
    yield {one["name"]: one["image_id"] for one in add(shared_gateway, NAME, *IMAGES.items())}
    shared_gateway.http.delete(f"/v1/collections/{NAME}")


def search(gateway: Running, query: dict[str, Any], level: str = "region", **body: Any) -> list[Any]:
    asked = {"query": query, "level": level, "page_size": 10} | body
    answer = gateway.http.post(f"/v1/collections/{NAME}/search", json=asked)
    assert answer.status_code == 200, answer.text
    hits: list[Any] = answer.json()["hits"]
    return hits


def data(name: str) -> str:
    return base64.b64encode(IMAGES[name]).decode()


def test_a_collection_says_whose_features_it_has(gateway: Running, shapes: dict[str, str]) -> None:
    model = gateway.http.get(f"/v1/collections/{NAME}").json()["model"]
    assert (model["variant"], model["dimension"]) == ("colours", DIMENSION + FEATURES)
    assert model["features"] == {
        "family": "sam",
        "variant": "flat",
        "weights_digest": "5" * 64,
        "dimension": FEATURES,
        "level": 0,
        "weight": WEIGHT,
    }


def test_words_are_compared_with_the_embedding(
    gateway: Running, shapes: dict[str, str], collection: str
) -> None:
    add(gateway, collection, *IMAGES.items())
    asked = {"query": {"text": "red"}, "level": "region", "page_size": 10}
    plain = gateway.http.post(f"/v1/collections/{collection}/search", json=asked).json()["hits"]
    scores = {hit["region_id"]: hit["score"] for hit in search(gateway, {"text": "red"})}
    assert len(scores) == len(plain) == 4
    for hit in plain:
        assert scores[hit["region_id"]] == pytest.approx(SHARE * hit["score"], abs=1e-3)


def test_an_example_is_compared_by_both_parts(gateway: Running, shapes: dict[str, str]) -> None:
    (square,) = [hit for hit in search(gateway, {"text": "red"}) if hit["image"]["name"] == "square"][:1]
    hits = search(gateway, {"region_id": square["region_id"]})
    scores = {(hit["image"]["name"], round(hit["box"]["x_min"])): hit["score"] for hit in hits}
    red, tall = scores["square", RED[1][0]], scores["tall", TALL[1][0]]
    assert red == pytest.approx(1, abs=1e-3)
    shape = fakes.shape_vector(np.ones((40, 40))) @ fakes.shape_vector(np.ones((100, 10)))
    assert tall == pytest.approx((1 + WEIGHT**2 * shape) / (1 + WEIGHT**2), abs=1e-3)


@pytest.mark.parametrize("stored", [True, False])
def test_what_is_pointed_at_has_the_vector_of_its_stored_region(
    gateway: Running, shapes: dict[str, str], stored: bool
) -> None:
    query: dict[str, Any] = {"image_id": shapes["tall"]} if stored else {"image": data("tall")}
    best = search(gateway, query | {"points": [{"x": 65, "y": 50}]})[0]
    assert (best["image"]["name"], best["score"]) == ("tall", pytest.approx(1, abs=1e-3))


def test_an_image_is_found_by_its_file(gateway: Running, shapes: dict[str, str]) -> None:
    best = search(gateway, {"image": data("wide")}, level="image")[0]
    assert (best["image"]["name"], best["score"]) == ("wide", pytest.approx(1, abs=1e-3))


def test_an_image_that_is_sent_scores_as_the_stored_one(gateway: Running, shapes: dict[str, str]) -> None:
    scores = []
    for source in ({"image": data("square")}, {"image_id": shapes["square"]}):
        asked = {"collection": NAME, "texts": ["red", "blue"]} | source
        answer = gateway.http.post("/v1/search-within", json=asked).json()
        scores.append([region["score"] for region in answer["regions"]])
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_a_cut_off_counts_the_embeddings_share(world: World, script: Script, shapes: dict[str, str]) -> None:
    script.cut_offs = [embed_pb2.CutOff(crop_policy=script.model.crop_policy, score=0.9)]
    calibrated = world.gateway()
    asked = {"query": {"text": "red"}}
    answer = calibrated.http.post(f"/v1/collections/{NAME}/search", json=asked).json()
    assert answer["cut_off"] == pytest.approx(0.9 * SHARE)
    assert {hit["image"]["name"] for hit in answer["hits"]} >= {"square", "tall"}


def test_another_segmenter_is_refused_except_for_words(
    gateway: Running, shapes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = type(fakes.SEGMENTER)()
    other.CopyFrom(fakes.SEGMENTER)
    other.weights_digest = "6" * 64
    monkeypatch.setattr(fakes, "SEGMENTER", other)
    (failed,) = add(gateway, NAME, ("new", scene(RED, size=(99, 99))))
    assert failed["error"]["code"] == "MODEL_MISMATCH"
    assert "the segmenter now serves sam flat (666666666666)" in failed["error"]["detail"]
    asked = {"query": {"image": data("tall")}}
    answer = gateway.http.post(f"/v1/collections/{NAME}/search", json=asked)
    assert (answer.status_code, answer.json()["code"]) == (409, "MODEL_MISMATCH")
    assert search(gateway, {"text": "red"})


def test_a_level_that_the_segmenter_does_not_have_is_refused(gateway: Running) -> None:
    body = {"name": "too-fine", "segment_features": {"level": 1}}
    answer = gateway.http.post("/v1/collections", json=body)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["pointer"] == "/segment_features/level"


def test_features_and_ranking_can_be_chosen_on_the_command_line(gateway: Running) -> None:
    options = [
        "--features-level",
        "0",
        "--features-weight",
        "0.5",
        "--rank-by",
        "area",
        "--max-regions",
        "25",
    ]
    command = ["collections", "create", "by-command", *options, "--url", gateway.url]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    with Client(gateway.url) as client:
        found = next(one for one in client.collections() if one.name == "by-command")
        client.delete_collection("by-command")
    assert found.model.features is not None
    assert (found.model.features.level, found.model.features.weight) == (0, 0.5)
    assert found.everything is not None
    assert (found.everything.rank_by, found.everything.max_regions) == ("area", 25)


def test_features_of_regions_over_http(gateway: Running, script: Script) -> None:
    with Client(gateway.url) as client:
        plain = client.segment(image=IMAGES["square"])
        with_features = client.segment(image=IMAGES["square"], features_level=0)
    assert plain.regions[0].features is None
    assert plain.image_features is None
    assert [len(region.features or ()) for region in with_features.regions] == [FEATURES, FEATURES]
    assert with_features.image_features == pytest.approx([0.8, 0.6])
