"""COCO documents: what importers and evaluators need of them, whichever route writes them."""

from __future__ import annotations

from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gateway.coco import export_hits
from regionsearch.exports import UNNAMED
from regionsearch.v1 import search_pb2
from tests.gateway.conftest import BLUE, GREEN, RED, Running, add, scene

RED_ID_LENGTH = 64


@pytest.fixture
def images(gateway: Running, collection: str) -> dict[str, str]:
    """Two images of one name in two folders, and one without a name; their ids."""
    results = add(
        gateway,
        collection,
        ("trip/IMG_1.png", scene(RED, BLUE)),
        ("trip/IMG_1.png", scene(RED, GREEN)),
        ("other/IMG_1.png", scene(GREEN)),
    )
    ids = dict(zip(("first", "second", "unnamed"), (one["image_id"] for one in results), strict=True))
    gateway.http.patch(f"/v1/collections/{collection}/images/{ids['unnamed']}", json={"name": ""})
    return ids


def loaded(document: dict[str, Any]) -> COCO:
    """As pycocotools loads it; every annotation has a mask of its area."""
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    assert "description" in coco.dataset["info"]
    names = [image["file_name"] for image in document["images"]]
    assert all(names) and len(set(names)) == len(names)
    assert coco.getAnnIds(iscrowd=False) == [one["id"] for one in document["annotations"]] != []
    for one in document["annotations"]:
        assert int(coco.annToMask(one).sum()) == one["area"]
    return coco


def searched(gateway: Running, collection: str, **body: Any) -> dict[str, Any]:
    answer = gateway.http.post(f"/v1/collections/{collection}/search?format=coco", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/vnd.coco+json"
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.parametrize("level", ["region", "image", "both"])
@pytest.mark.parametrize("group_by", ["image", None])
def test_hits_of_a_search(
    gateway: Running, collection: str, images: dict[str, str], level: str, group_by: str | None
) -> None:
    document = searched(gateway, collection, query={"text": "red"}, level=level, group_by=group_by)
    truth = loaded(document)
    assert {image["sha256"] for image in document["images"]} == set(images.values())
    names = {image["sha256"]: image["file_name"] for image in document["images"]}
    assert names[images["unnamed"]] == f"{images['unnamed']}.png"
    pair = {names[images["first"]], names[images["second"]]}
    assert "trip/IMG_1.png" in pair
    (other,) = pair - {"trip/IMG_1.png"}
    assert other in [f"trip/{images[one][:8]}-IMG_1.png" for one in ("first", "second")]
    results = [
        {name: one[name] for name in ("image_id", "category_id", "score", "bbox")}
        | {"segmentation": truth.annToRLE(one)}
        for one in document["annotations"]
    ]
    judged = COCOeval(truth, truth.loadRes(results), "segm")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    assert judged.stats[0] == pytest.approx(1.0)


def test_phrases_are_categories_once_each(gateway: Running, collection: str, images: dict[str, str]) -> None:
    document = searched(gateway, collection, query={"texts": ["red", "lime", "red"]}, level="region")
    loaded(document)
    assert document["categories"] == [{"id": 1, "name": "red"}, {"id": 2, "name": "lime"}]
    example = searched(gateway, collection, query={"image_id": images["first"]}, level="region")
    assert example["categories"] == [{"id": 1, "name": UNNAMED}]


def test_more_hits_than_a_page_holds_are_not_left_out_silently(
    gateway: Running, collection: str, images: dict[str, str]
) -> None:
    body = {"query": {"text": "red"}, "level": "region", "page_size": 2}
    first = searched(gateway, collection, **body)
    rest = searched(gateway, collection, **body, page_token=first["info"]["next_page_token"])
    assert len(first["annotations"]) == 2
    assert {a["region_id"] for a in first["annotations"]}.isdisjoint(
        a["region_id"] for a in rest["annotations"]
    )


def test_regions_of_an_image(gateway: Running, collection: str, images: dict[str, str]) -> None:
    url = f"/v1/collections/{collection}/images/{images['first']}/regions?format=coco"
    document = gateway.http.get(url).json()
    loaded(document)
    assert len(document["annotations"]) == 2
    one = document["annotations"][1]["region_id"]
    alone = gateway.http.get(f"{url}&region_id={one}").json()
    loaded(alone)
    assert [annotation["region_id"] for annotation in alone["annotations"]] == [one]
    assert document["categories"] == [{"id": 1, "name": UNNAMED}]


def test_an_image_that_is_searched_in_or_segmented_has_its_name(
    gateway: Running, collection: str, images: dict[str, str]
) -> None:
    stored = {"image_id": images["first"], "collection": collection}
    prompt = {"points": [{"x": 30, "y": 40}]}
    for path, asked in (
        ("search-within", {"text": "red"}),
        ("segment", prompt),
        ("segment", {"everything": True}),
    ):
        by_id = gateway.http.post(f"/v1/{path}?format=coco", json=stored | asked).json()
        loaded(by_id)
        assert by_id["images"][0]["file_name"] == "trip/IMG_1.png"
    file = {"image": ("holiday/sea.png", scene(RED))}
    for path, fields in (("search-within", {"text": "red"}), ("segment", {"points": '[{"x": 30, "y": 40}]'})):
        sent = gateway.http.post(f"/v1/{path}?format=coco", files=file, data=fields).json()
        loaded(sent)
        assert sent["images"][0]["file_name"] == "holiday/sea.png"
        assert len(sent["images"][0]["sha256"]) == RED_ID_LENGTH
        renamed = gateway.http.post(
            f"/v1/{path}?format=coco", files=file, data=fields | {"image_name": "x.png"}
        ).json()
        assert renamed["images"][0]["file_name"] == "x.png"


def test_names_that_collide_with_made_ones_stay_unique() -> None:
    ids = ["a" * 64, "a" * 8 + "b" * 56, "c" * 64]
    names = ["x.jpg", "x.jpg", f"{'a' * 8}-x.jpg"]
    hits = [
        search_pb2.Hit(
            record=search_pb2.Record(record_id=f"{i}", image_id=i), image=search_pb2.StoredImage(name=name)
        )
        for i, name in zip(ids, names, strict=True)
    ]
    for order in (hits, hits[::-1]):
        found = [image["file_name"] for image in export_hits(order, [])["images"]]
        assert len(set(found)) == 3
