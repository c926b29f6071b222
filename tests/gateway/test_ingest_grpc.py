"""Images in over gRPC, and options of everything mode over both transports."""

from __future__ import annotations

import json

import grpc
import numpy as np
import pytest

from regionsearch.client import EverythingOptions
from regionsearch.errors import Kind, from_rpc_error
from regionsearch.v1 import region_search_pb2, segment_pb2, types_pb2
from tests.gateway.conftest import BLUE, GREEN, RED, Running, World, add, count, scene, wait_for
from tests.gateway.fakes import Script


def test_options_of_everything_mode_reach_the_segmenter(
    gateway: Running, collection: str, script: Script
) -> None:
    """Over HTTP as over gRPC; what is kept says `max_regions`, which gRPC has in `selection`."""
    options = {"mode": "proposals", "crop_n_layers": 1, "min_mask_region_area": 30, "max_regions": 2}
    response = gateway.http.post(
        f"/v1/collections/{collection}/images",
        files=[("files", ("a.png", scene(RED, BLUE, GREEN)))],
        data={"everything": json.dumps(options)},
    )
    assert response.json()["results"][0]["regions"] == 2
    request = region_search_pb2.IngestImageRequest(
        collection=collection,
        image=types_pb2.Image(encoded=scene(GREEN, RED)),
        everything=EverythingOptions.model_validate(options | {"max_regions": 1}).to_proto(),
    )
    assert gateway.grpc.IngestImage(request).region_count == 1
    asked = [one for one in script.requests if isinstance(one, segment_pb2.SegmentRequest)][-2:]
    for one in asked:
        everything = one.everything
        assert everything.mode == segment_pb2.EVERYTHING_MODE_PROPOSALS
        assert (everything.crop_n_layers, everything.min_mask_region_area) == (1, 30)
        assert not everything.HasField("points_per_side")
    assert [one.everything.selection.max_regions for one in asked] == [2, 1]


def test_a_collection_says_how_regions_are_looked_for_unless_an_ingest_does(
    gateway: Running, script: Script
) -> None:
    options = {"points_per_side": 9, "pred_iou_thresh": 0.3, "max_regions": 2}
    made = gateway.http.post("/v1/collections", json={"name": "looked-for", "everything": options})
    assert made.status_code == 201, made.text
    shown = gateway.http.get("/v1/collections/looked-for").json()["everything"]
    assert {name: value for name, value in shown.items() if value is not None} == options
    sent = [scene(RED, BLUE, GREEN), scene(GREEN, RED)]
    add(gateway, "looked-for", ("a.png", sent[0]))
    request = region_search_pb2.IngestImageRequest(
        collection="looked-for",
        image=types_pb2.Image(encoded=sent[1]),
        everything={"selection": {"max_regions": 1}},
    )
    assert gateway.grpc.IngestImage(request).region_count == 1
    asked = [one.everything for one in script.requests if isinstance(one, segment_pb2.SegmentRequest)][-2:]
    assert [one.points_per_side for one in asked] == [9, 0]
    assert [one.selection.max_regions for one in asked] == [2, 1]
    gateway.http.delete("/v1/collections/looked-for")


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ('{"points_per_side": 0}', "everything/points_per_side"),
        ('{"pred_iou_thresh": 2}', "everything/pred_iou_thresh"),
        ('{"points": 9}', "everything/points"),
        ('{"mode": "dense"}', "everything/mode"),
        ('{"mode": "proposals", "points_per_side": 9}', "everything"),
        ("true", "everything"),
        ("{", "everything"),
    ],
)
def test_invalid_options_of_everything_mode_are_named(
    gateway: Running, collection: str, sent: str, named: str
) -> None:
    response = gateway.http.post(
        f"/v1/collections/{collection}/images",
        files=[("files", ("a.png", scene(RED)))],
        data={"everything": sent},
    )
    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"].lstrip("/") == named
    assert count(gateway, collection) == 0


class TestGrpc:
    def test_one_image_with_a_selection(self, gateway: Running, collection: str) -> None:
        request = region_search_pb2.IngestImageRequest(
            collection=collection,
            image=types_pb2.Image(encoded=scene(RED, BLUE, GREEN)),
            everything={"selection": {"max_regions": 2}},
        )
        answer = gateway.grpc.IngestImage(request)
        assert answer.outcome == region_search_pb2.INGEST_OUTCOME_CREATED
        assert answer.region_count == 2
        assert gateway.grpc.IngestImage(request).outcome == region_search_pb2.INGEST_OUTCOME_DUPLICATE

    def test_raw_pixels_are_kept_as_png(self, gateway: Running, collection: str) -> None:
        pixels = np.full((20, 30, 3), 255, np.uint8)
        pixels[5:10, 5:10] = (255, 0, 0)
        raw = types_pb2.RawImage(height=20, width=30, rgb=pixels.tobytes())
        answer = gateway.grpc.IngestImage(
            region_search_pb2.IngestImageRequest(collection=collection, image=types_pb2.Image(raw=raw))
        )
        stored = gateway.http.get(f"/v1/collections/{collection}/images/{answer.image_id}").json()
        assert (stored["width"], stored["height"], stored["content_type"]) == (30, 20, "image/png")

    def test_a_stream_reports_stages_and_survives_a_bad_image(
        self, gateway: Running, collection: str
    ) -> None:
        def item(key: str, data: bytes) -> region_search_pb2.IngestImagesRequest:
            request = region_search_pb2.IngestImageRequest(
                collection=collection, image=types_pb2.Image(encoded=data)
            )
            return region_search_pb2.IngestImagesRequest(key=key, request=request)

        images = {f"{i}": scene(("red", (i, 0, i + 5, 5))) for i in range(30)} | {"bad": b"not an image"}
        answers = list(gateway.grpc.IngestImages(item(key, data) for key, data in images.items()))
        done = {
            answer.key: answer for answer in answers if answer.stage == region_search_pb2.INGEST_STAGE_DONE
        }
        assert done.keys() == images.keys()
        assert done["bad"].WhichOneof("result") == "error"
        assert done["bad"].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert done["7"].response.outcome == region_search_pb2.INGEST_OUTCOME_CREATED
        stages = [answer.stage for answer in answers if answer.key == "7"]
        assert stages == sorted(stages)
        assert len(stages) == 5
        assert count(gateway, collection) == 30

    def test_a_deadline_is_handed_on(
        self, gateway: Running, collection: str, script: Script, world: World
    ) -> None:
        import asyncio

        script.hold["EmbedRegions"] = world.call(asyncio.Event)
        request = region_search_pb2.IngestImageRequest(
            collection=collection, image=types_pb2.Image(encoded=scene(RED))
        )
        for timeout_s in (0.5, 5, 50):
            with pytest.raises(grpc.RpcError) as caught:
                gateway.grpc.IngestImage(request, timeout=timeout_s)
            assert from_rpc_error(caught.value).kind is Kind.DEADLINE_EXCEEDED
            if script.calls["EmbedRegions"]:  # on a busy machine the first ones may end before they get there
                break
        wait_for(lambda: script.cancelled["EmbedRegions"] == script.calls["EmbedRegions"] > 0)
        assert count(gateway, collection) == 0
