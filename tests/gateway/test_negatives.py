"""What is not meant: phrases and examples, through HTTP and, with the same answers, through gRPC."""

from __future__ import annotations

import base64
from typing import Any

import grpc
import pytest

from regionsearch.errors import from_rpc_error
from regionsearch.v1 import region_search_pb2, search_pb2, types_pb2
from tests.gateway.conftest import Running, scene
from tests.gateway.fakes import Script
from tests.gateway.searching import COLLECTION, IMAGES, best, search


def test_negatives_take_away(gateway: Running, filled: dict[str, str]) -> None:
    query = {"text": "red"}
    with_maroon = search(gateway, query=query, level="region", relative_cutoff=0.9)["hits"]
    assert len(with_maroon) == 3
    hits = search(
        gateway, query=query, negatives=["maroon"], level="region", relative_cutoff=0.9, min_relevancy=0.5
    )["hits"]
    assert len(hits) == 2
    assert all(hit["relevancy"] > 0.5 for hit in hits)


def test_negatives_of_every_kind(gateway: Running, filled: dict[str, str], script: Script) -> None:
    """A phrase, an image, a stored region and a stored image of the same colour take the same away."""
    _, maroon = best(gateway, text="maroon")
    yellow = base64.b64encode(scene(("yellow", (0, 0, 160, 120)))).decode()
    body = {"query": {"texts": ["red", "lime"]}, "level": "region", "min_relevancy": 0, "page_size": 100}

    def relevancies(*negatives: Any) -> dict[str, float]:
        hits = search(gateway, **body, negatives=negatives)["hits"]
        return {hit["region_id"]: hit["relevancy"] for hit in hits}

    for phrase, example in (("maroon", {"region_id": maroon}), ("yellow", {"image": yellow})):
        by_phrase, by_example = relevancies(phrase), relevancies(example)
        assert by_phrase.keys() == by_example.keys()
        # A stored vector has half precision, and a hundredfold cosine difference magnifies that.
        assert all(by_example[key] == pytest.approx(by_phrase[key], abs=0.03) for key in by_phrase)
        assert min(by_phrase.values()) < 0.5 < 0.9 < max(by_phrase.values())
    whole = relevancies({"image_id": filled["green"]})
    sent = relevancies({"image": base64.b64encode(IMAGES["green"]).decode()})
    assert all(whole[key] == pytest.approx(sent[key], abs=0.03) for key in sent)
    # Several together: each counts, so that the smallest relevancy stays.
    mixed = relevancies("yellow", {"region_id": maroon}, {"image_id": filled["green"]})
    parts = [relevancies("yellow"), relevancies({"region_id": maroon}), whole]
    assert all(mixed[key] == pytest.approx(min(part[key] for part in parts), abs=1e-5) for key in mixed)


def test_pages_of_a_search_with_examples_of_what_is_not_meant(
    gateway: Running, filled: dict[str, str], script: Script
) -> None:
    image = base64.b64encode(scene(("yellow", (0, 0, 160, 120)))).decode()
    body = {"query": {"text": "red"}, "negatives": ["black", {"image": image}], "min_relevancy": 0.0}
    first = search(gateway, **body, page_size=2)
    second = search(gateway, **body, page_size=2, page_token=first["next_page_token"])
    assert [hit["rank"] for hit in first["hits"] + second["hits"]] == [1, 2, 3, 4]
    assert script.calls == {"EmbedTexts": 1, "EmbedImages": 1}
    other = body | {"negatives": ["black", {"image": base64.b64encode(IMAGES["green"]).decode()}]}
    problem = search(gateway, 400, **other, page_size=2, page_token=first["next_page_token"])
    assert problem["errors"][0]["pointer"] == "/page_token"


def test_most_objects_are_found_over_grpc_too(gateway: Running, filled: dict[str, str]) -> None:
    _, maroon = best(gateway, text="maroon")
    image = IMAGES["yellow"]
    request = region_search_pb2.RegionSearchServiceSearchRequest(
        collection=COLLECTION,
        query=region_search_pb2.Query(texts=["red"]),
        level=search_pb2.LEVEL_REGION,
        min_relevancy=0,
        negatives=[
            region_search_pb2.Negative(text="black"),
            region_search_pb2.Negative(text="blue"),
            region_search_pb2.Negative(region_id=maroon),
            region_search_pb2.Negative(image_id=filled["green"]),
            region_search_pb2.Negative(image=types_pb2.Image(encoded=image)),
        ],
    )
    negatives = ["black", "blue", {"region_id": maroon}, {"image_id": filled["green"]}]
    negatives.append({"image": base64.b64encode(image).decode()})
    over_http = search(gateway, query={"text": "red"}, level="region", min_relevancy=0, negatives=negatives)[
        "hits"
    ]
    over_grpc = gateway.grpc.Search(request).hits
    assert [hit.record.record_id for hit in over_grpc] == [hit["region_id"] for hit in over_http]
    assert [hit.relevancy for hit in over_grpc] == [hit["relevancy"] for hit in over_http]
    assert len({hit.relevancy for hit in over_grpc}) > 2


@pytest.mark.parametrize(
    ("negative", "field"),
    [
        (region_search_pb2.Negative(), "negatives[1]"),
        (region_search_pb2.Negative(text=" "), "negatives[1]"),
        (region_search_pb2.Negative(region_id="x"), "negatives[1].region_id"),
        (
            region_search_pb2.Negative(image=types_pb2.Image(encoded=b"x")),
            "negatives[1].image.encoded",
        ),
    ],
)
def test_a_bad_item_is_named_over_grpc(
    gateway: Running, filled: dict[str, str], negative: region_search_pb2.Negative, field: str
) -> None:
    fine = region_search_pb2.Negative(text="fine")
    with pytest.raises(grpc.RpcError) as caught:
        gateway.grpc.Search(
            region_search_pb2.RegionSearchServiceSearchRequest(
                collection=COLLECTION,
                query=region_search_pb2.Query(texts=["red"]),
                negatives=[fine, negative],
            )
        )
    assert from_rpc_error(caught.value).field == field
