"""The client against the real processes: both transports tell the same."""

from __future__ import annotations

import hashlib

import pytest

from regionsearch import AsyncClient, Client
from regionsearch.client import NegativeExample
from regionsearch.errors import Kind, RegionSearchError
from tests.e2e.scenes import held_out_scenes
from tests.stack import Stack

COLLECTION = "client"


@pytest.fixture(scope="module")
def http(stack: Stack) -> Client:
    client = Client(stack.http)
    client.wait_ready()
    client.create_collection(COLLECTION)
    scenes = [scene.path for scene in held_out_scenes(4)]
    results = client.ingest(scenes, COLLECTION, tags=["held-out"], attributes={"split": "test"})
    assert [result.outcome for result in results] == ["created"] * 4
    return client


def test_both_transports_tell_the_same(http: Client, stack: Stack) -> None:
    scene = held_out_scenes(4)[0].path
    options = {"page_size": 5, "include": ["mask", "weak"], "filter": {"tags": ["held-out"]}, "level": "both"}
    with Client(f"grpc://{stack.grpc}") as over_grpc:
        over_grpc.wait_ready()
        assert list(over_grpc.images(COLLECTION)) == list(http.images(COLLECTION))
        for query in ({"text": "guitar"}, {"text": ["guitar", "dog"]}, {"image": scene}):
            expected = http.search(**query, collection=COLLECTION, **options)
            found = over_grpc.search(**query, collection=COLLECTION, **options)
            assert len(expected) == 5
            assert [hit.model_dump(exclude={"score", "best_region"}) for hit in found] == [
                hit.model_dump(exclude={"score", "best_region"}) for hit in expected
            ]
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        expected_within = http.within("dog", image=scene, collection=COLLECTION)
        found_within = over_grpc.within("dog", image=scene, collection=COLLECTION)
        assert found_within.union_mask == expected_within.union_mask
        for client in (http, over_grpc):
            bare = client.within("dog", image=scene, collection=COLLECTION, include=[])
            assert [(one.box, one.mask) for one in bare.regions] == [
                (one.box, None) for one in expected_within.regions
            ]
        assert [region.box for region in found_within.regions] == [
            region.box for region in expected_within.regions
        ]
        (again,) = over_grpc.ingest([scene], COLLECTION)
        assert again.outcome == "duplicate"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_known_files_are_not_sent_and_get_what_is_new(http: Client, stack: Stack, scheme: str) -> None:
    scene = held_out_scenes(4)[1].path
    with Client(stack.http if scheme == "http" else f"grpc://{stack.grpc}", retries=0) as client:
        client.wait_ready()
        known = http.regions(hashlib.sha256(scene.read_bytes()).hexdigest(), COLLECTION)
        (result,) = client.ingest([("another name", scene)], COLLECTION, tags=[scheme, "held-out"])
        assert (result.outcome, result.regions, result.known_as) == ("duplicate", len(known), scene.name)
        assert (result.added_tags, scheme in result.tags) == ((scheme,), True)
        found = client.search("dog", COLLECTION, filter={"tags": [scheme]}, min_seq=result.seq, min_score=-1)
        assert {hit.image_id for hit in found} == {result.image_id}
        (image,) = client.check_images([result.image_id, "0" * 64], COLLECTION)
        assert image.attributes == {"split": "test"}
        changed = client.update_image(
            result.image_id, COLLECTION, remove_tags=[scheme], attributes={"split": None, "s": scheme}
        )
        assert scheme not in changed.tags
        assert changed.attributes == {"s": scheme}
        back = client.update_image(result.image_id, COLLECTION, attributes={"split": "test", "s": None})
        assert (back.tags, back.attributes) == (("held-out",), {"split": "test"})
        assert client.search("x " * 500, COLLECTION).truncated == (True,)


def test_both_exclude_what_is_not_meant(http: Client, stack: Stack) -> None:
    plain = http.search("guitar", COLLECTION, level="region", page_size=50, include=["weak"])
    unlike = {
        "negatives": ["dog", NegativeExample(region_id=plain[-1].region_id)],
        "level": "region",
        "page_size": 50,
        "include": ["weak"],
    }
    expected = http.search("guitar", COLLECTION, **unlike)
    with Client(f"grpc://{stack.grpc}") as over_grpc:
        found = over_grpc.search("guitar", COLLECTION, **unlike)
    assert plain[-1].region_id not in {hit.region_id for hit in expected}
    assert [hit.region_id for hit in found] == [hit.region_id for hit in expected]


async def test_a_stream_of_images(http: Client, stack: Stack) -> None:
    scene, known = held_out_scenes(5)[4].path, held_out_scenes(1)[0].path
    with Client(f"grpc://{stack.grpc}") as client:
        told = list(client.ingest_stream([scene, ("broken.png", b"words"), known], COLLECTION))
    done = {one.name: one.result for one in told if one.result}
    assert [done[name].outcome for name in (scene.name, "broken.png", known.name)] == [
        "created", "failed", "duplicate",
    ]  # fmt: skip
    assert done["broken.png"].error.code == "UNSUPPORTED_IMAGE"
    stages = [one.stage for one in told if one.name == scene.name]
    assert stages == ["received", "segmenting", "embedding", "storing", "done"]
    async with AsyncClient(f"grpc://{stack.grpc}") as client:
        told = [one async for one in client.ingest_stream([scene], COLLECTION)]
    assert told[-1].result.outcome == "duplicate"


def test_what_http_alone_offers(http: Client) -> None:
    image = next(http.images(COLLECTION))
    assert COLLECTION in [collection.name for collection in http.collections()]
    assert len(http.regions(image.image_id, COLLECTION)) == image.region_count
    document = http.export_regions(image.image_id, COLLECTION)
    assert len(document["annotations"]) == image.region_count
    assert len(http.content(image.image_id, COLLECTION)) == image.size_bytes
    clicked = http.segment(image_id=image.image_id, collection=COLLECTION, points=[(20, 20)], multimask=True)
    assert len(clicked.results[0].candidates) == 3
    for zoom in (True, False):
        assert http.segment(
            image_id=image.image_id, collection=COLLECTION, points=[(20, 20)], zoom=zoom
        ).results
    data = held_out_scenes(1)[0].data
    assert http.embed(["a dog", "a guitar"]).shape == http.embed(images=[data, data]).shape


async def test_asynchronously_and_gone_after_deletion(http: Client, stack: Stack) -> None:
    async with AsyncClient(stack.http) as client:
        images = [image async for image in client.images(COLLECTION)]
        await client.delete_image(images[0].image_id, COLLECTION)
        assert images[0].image_id not in {image.image_id async for image in client.images(COLLECTION)}
        with pytest.raises(RegionSearchError) as caught:
            await client.delete_image(images[0].image_id, COLLECTION)
    assert caught.value.kind is Kind.NOT_FOUND
