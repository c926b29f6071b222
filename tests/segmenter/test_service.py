"""The real thing over gRPC loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from regionsearch.errors import Kind, RegionSearchError, from_rpc_error
from regionsearch.images import encode_image
from regionsearch.tensors import mask_from_proto, mask_to_proto, tensor_from_proto, tensor_to_proto
from regionsearch.v1 import segment_pb2, segment_pb2_grpc, types_pb2
from services.runtime.batch import BatchSettings
from services.runtime.server import serving
from services.segmenter.backends.sam import SamBackend
from services.segmenter.engine import SegmentEngine
from services.segmenter.options import Defaults
from services.segmenter.service import segmenter
from services.segmenter.servicer import SegmentServicer
from services.segmenter.settings import SegmenterSettings
from tests.segmenter.conftest import port_of
from tests.waiting import until

SERVICES = [segment_pb2.DESCRIPTOR.services_by_name["SegmentService"]]
GRID = segment_pb2.EverythingOptions(
    points_per_side=4, pred_iou_thresh=0.1, stability_score_thresh=0.1, box_nms_thresh=0.9
)
OPEN_GRID = segment_pb2.EverythingOptions(
    points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1
)
CLICK = segment_pb2.Prompt(points=[types_pb2.Point(x=150, y=100)])


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub() -> AsyncIterator[Any]:
    """One service for all tests here: it remembers the embeddings of images it has seen."""
    settings = SegmenterSettings(
        port=0,
        max_image_pixels=1_000_000,
        max_prompts=8,
        max_points=4,
        max_grid_points=32 * 32 + 16,
        drain_delay_s=0,
    )
    async with (
        serving(settings, SERVICES, segmenter(settings)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield segment_pb2_grpc.SegmentServiceStub(channel)


@pytest.fixture
def image(scene: NDArray[np.uint8]) -> types_pb2.Image:
    return types_pb2.Image(encoded=encode_image(scene))


async def test_everything_mode_returns_the_same_masks_in_every_encoding(
    stub: Any, image: types_pb2.Image
) -> None:
    masks = []
    for encoding in (
        types_pb2.MASK_ENCODING_UNSPECIFIED,
        types_pb2.MASK_ENCODING_PACKED_BITS,
        types_pb2.MASK_ENCODING_PNG,
    ):
        output = segment_pb2.OutputOptions(mask_encoding=encoding, features=True)
        request = segment_pb2.SegmentRequest(image=image, everything=GRID, output=output)
        answer = await stub.Segment(request, timeout=60)
        masks.append([mask_from_proto(region.mask) for region in answer.regions])
    assert len(masks[0]) > 1
    assert (answer.image_height, answer.image_width) == masks[0][0].shape == (270, 360)
    for versions in zip(*masks, strict=True):
        assert all(np.array_equal(version, versions[0]) for version in versions)
    for region, mask in zip(answer.regions, masks[0], strict=True):
        rows, columns = mask.nonzero()
        box = region.box
        assert (box.x_min, box.y_min) == (columns.min(), rows.min())
        assert (box.x_max, box.y_max) == (columns.max() + 1, rows.max() + 1)
        assert region.area == mask.sum()
        assert (region.crop_box.x_max, region.crop_box.y_max) == (360, 270)
        assert region.HasField("prompt_point")
        features = tensor_from_proto(region.features, "features")
        assert np.linalg.norm(features) == pytest.approx(1, abs=1e-5)


async def test_known_regions_have_the_features_of_found_ones(stub: Any, image: types_pb2.Image) -> None:
    output = segment_pb2.OutputOptions(features=True)
    found = await stub.Segment(
        segment_pb2.SegmentRequest(image=image, everything=GRID, output=output), timeout=60
    )
    del found.regions[8:]  # max_prompts
    known = segment_pb2.KnownRegions(masks=[region.mask for region in found.regions])
    answer = await stub.Segment(segment_pb2.SegmentRequest(image=image, known=known), timeout=60)
    assert answer.embedding_cached
    for name in ("features", "image_features"):
        mine, theirs = (
            [one.image_features] if name == "image_features" else [region.features for region in one.regions]
            for one in (answer, found)
        )
        for first, second in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(tensor_from_proto(first, name), tensor_from_proto(second, name))
    channels = (await stub.GetModel(segment_pb2.SegmentServiceGetModelRequest())).feature_channels
    assert answer.image_features.shape == [channels[0]]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"known": {"masks": [{"height": 3, "width": 5, "coco_rle": "?"}]}}, "known.masks[0]"),
        ({"known": {"masks": [{"height": 1 << 20, "width": 1 << 20}]}}, "known.masks[0]"),
        ({"known": {}, "output": {"features_level": 1}}, "output.features_level"),
        ({"everything": GRID, "output": {"features_level": -1}}, "output.features_level"),
    ],
)
async def test_features_that_cannot_be_are_refused(
    stub: Any, image: types_pb2.Image, request_: dict[str, Any], field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Segment(segment_pb2.SegmentRequest(image=image, **request_), timeout=60)
    assert (from_rpc_error(caught.value).field or "").startswith(field)


async def test_a_second_click_and_a_refined_one_need_no_encoder(stub: Any, scene: NDArray[np.uint8]) -> None:
    image = types_pb2.Image(encoded=encode_image(scene[:, ::-1]))  # which no other test sends
    output = segment_pb2.OutputOptions(low_res_logits=True)
    prompts = segment_pb2.Prompts(prompts=[CLICK], multimask=True)
    request = segment_pb2.SegmentRequest(image=image, prompts=prompts, output=output)
    first = await stub.Segment(request, timeout=60)
    assert not first.embedding_cached
    candidates = first.results[0].candidates
    ranks = [candidate.predicted_iou * candidate.stability_score for candidate in candidates]
    assert len(ranks) == 3
    assert ranks == sorted(ranks, reverse=True)
    refined = segment_pb2.Prompt(points=CLICK.points, mask_logits=candidates[0].low_res_logits)
    request.prompts.CopyFrom(segment_pb2.Prompts(prompts=[refined, CLICK]))
    second = await stub.Segment(request, timeout=60)
    assert second.embedding_cached
    assert [len(result.candidates) for result in second.results] == [1, 1]


async def test_zoom_defaults_to_that_of_the_model(stub: Any, image: types_pb2.Image) -> None:
    model = await stub.GetModel(segment_pb2.SegmentServiceGetModelRequest())
    assert model.zoom_default
    small = segment_pb2.Prompt(points=[types_pb2.Point(x=60, y=60)])
    crops = []
    for zoom in (None, True, False):
        prompts = segment_pb2.Prompts(prompts=[small], zoom=zoom)
        answer = await stub.Segment(segment_pb2.SegmentRequest(image=image, prompts=prompts), timeout=60)
        crop = answer.results[0].candidates[0].crop_box
        crops.append((crop.x_max - crop.x_min, crop.y_max - crop.y_min))
    assert crops[0] == crops[1] < crops[2] == (360, 270)


async def test_low_res_logits_belong_to_the_whole_image(stub: Any, image: types_pb2.Image) -> None:
    output = segment_pb2.OutputOptions(low_res_logits=True)
    prompts = segment_pb2.Prompts(prompts=[segment_pb2.Prompt(points=[types_pb2.Point(x=60, y=60)])])
    request = segment_pb2.SegmentRequest(image=image, prompts=prompts, output=output)
    answer = await stub.Segment(request, timeout=60)
    assert answer.results[0].candidates[0].crop_box.x_max == 360
    request.prompts.zoom = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Segment(request, timeout=60)
    assert from_rpc_error(caught.value).field == "prompts.zoom"


async def test_a_selection_is_ranked_and_limited(stub: Any, image: types_pb2.Image) -> None:
    options = segment_pb2.EverythingOptions()
    options.CopyFrom(GRID)
    options.selection.max_regions = 2
    answer = await stub.Segment(segment_pb2.SegmentRequest(image=image, everything=options), timeout=60)
    ranks = [region.predicted_iou * region.stability_score for region in answer.regions]
    assert 0 < len(ranks) <= 2
    assert ranks == sorted(ranks, reverse=True)


async def test_get_model_names_the_defaults(stub: Any) -> None:
    answer = await stub.GetModel(segment_pb2.SegmentServiceGetModelRequest())
    assert (answer.model.family, answer.model.variant, answer.model.precision) == ("sam", "pocket", "fp32")
    assert len(answer.model.weights_digest) == 64
    assert answer.everything_defaults.points_per_side > 0


async def test_lower_precision_is_a_setting_that_every_answer_names(image: types_pb2.Image) -> None:
    logits = {}
    output = segment_pb2.OutputOptions(low_res_logits=True)
    request = segment_pb2.SegmentRequest(image=image, output=output, **prompted(CLICK))
    for precision in ("fp32", "bf16"):
        settings = SegmenterSettings(port=0, device="cpu", precision=precision, drain_delay_s=0)
        async with (
            serving(settings, SERVICES, segmenter(settings)) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            stub = segment_pb2_grpc.SegmentServiceStub(channel)
            model = (await stub.GetModel(segment_pb2.SegmentServiceGetModelRequest())).model
            answer = await stub.Segment(request, timeout=60)
        assert model.precision == answer.model.precision == precision
        candidate = answer.results[0].candidates[0]
        logits[precision] = tensor_from_proto(candidate.low_res_logits, "low_res_logits")
    difference = np.abs(logits["bf16"] - logits["fp32"])
    assert 1e-4 < difference.max() < 5  # eight bits of mantissa, not twenty-four
    assert ((logits["bf16"] > 0) == (logits["fp32"] > 0)).mean() > 0.95


async def test_a_stream_answers_every_key_and_survives_a_bad_item(stub: Any, image: types_pb2.Image) -> None:
    async def requests() -> AsyncIterator[segment_pb2.SegmentStreamRequest]:
        for number in range(12):
            sent = image if number != 5 else types_pb2.Image(encoded=b"not an image")
            request = segment_pb2.SegmentRequest(image=sent, prompts=segment_pb2.Prompts(prompts=[CLICK]))
            yield segment_pb2.SegmentStreamRequest(key=f"item {number}", request=request)

    answers = {answer.key: answer async for answer in stub.SegmentStream(requests(), timeout=60)}
    assert set(answers) == {f"item {number}" for number in range(12)}
    assert answers["item 5"].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert all(answers[key].WhichOneof("outcome") == "response" for key in answers if key != "item 5")


class FakeContext:
    def time_remaining(self) -> None:
        return None


async def test_a_stream_takes_no_more_than_is_read_of_it(
    untrained: SamBackend, image: types_pb2.Image
) -> None:
    engine = SegmentEngine(untrained, BatchSettings(), cache_bytes=1 << 24)
    servicer = SegmentServicer(engine, Defaults(), SegmenterSettings(max_stream_calls=3))
    taken = 0

    async def requests() -> AsyncIterator[segment_pb2.SegmentStreamRequest]:
        nonlocal taken
        for number in range(20):
            taken = number + 1
            item = segment_pb2.SegmentRequest(image=image, **prompted(CLICK))
            yield segment_pb2.SegmentStreamRequest(key=str(number), request=item)

    answers = servicer.SegmentStream(requests(), FakeContext())
    seen = {(await anext(answers)).key}
    await until(lambda: taken == 4)
    await asyncio.sleep(0.3)
    assert taken == 4  # three are worked on or not yet read, one waits its turn
    seen |= {answer.key async for answer in answers}
    assert len(seen) == 20
    await engine.close()


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), asyncio.CancelledError("secret")])
async def test_an_unexpected_error_of_an_item_does_not_end_its_stream(
    untrained: SamBackend, image: types_pb2.Image, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    engine = SegmentEngine(untrained, BatchSettings(), cache_bytes=1 << 24)
    servicer = SegmentServicer(engine, Defaults(), SegmenterSettings())
    answer = engine.prompts

    async def fall(image: Any, prompts: Any, **options: Any) -> Any:
        if len(prompts) == 2:
            raise error
        return await answer(image, prompts, **options)

    monkeypatch.setattr(engine, "prompts", fall)

    async def requests() -> AsyncIterator[segment_pb2.SegmentStreamRequest]:
        for clicks in (1, 2, 3):
            item = segment_pb2.SegmentRequest(image=image, **prompted(*[CLICK] * clicks))
            yield segment_pb2.SegmentStreamRequest(key=str(clicks), request=item)

    answers = {answer.key: answer async for answer in servicer.SegmentStream(requests(), FakeContext())}
    assert {key: answer.WhichOneof("outcome") for key, answer in answers.items()} == {
        "1": "response",
        "2": "error",
        "3": "response",
    }
    assert answers["2"].error.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in answers["2"].error.message
    await engine.close()


async def test_a_response_over_the_message_limit_names_the_remedy(
    untrained: SamBackend, image: types_pb2.Image
) -> None:
    engine = SegmentEngine(untrained, BatchSettings(), cache_bytes=1 << 24)
    servicer = SegmentServicer(engine, Defaults(), SegmenterSettings(max_message_bytes=100_000))
    output = segment_pb2.OutputOptions(mask_encoding=types_pb2.MASK_ENCODING_PACKED_BITS)
    for mode in (prompted(*[CLICK] * 9), {"everything": OPEN_GRID}):
        with pytest.raises(RegionSearchError) as caught:
            await servicer.Segment(
                segment_pb2.SegmentRequest(image=image, output=output, **mode), FakeContext()
            )
        assert (caught.value.kind, caught.value.field) == (Kind.TOO_LARGE, "output")
    await engine.close()


def prompted(*prompts: segment_pb2.Prompt) -> dict[str, segment_pb2.Prompts]:
    return {"prompts": segment_pb2.Prompts(prompts=prompts)}


@pytest.mark.parametrize(
    ("request_parts", "kind", "field"),
    [
        ({}, Kind.INVALID_ARGUMENT, "mode"),
        (prompted(), Kind.INVALID_ARGUMENT, "prompts.prompts"),
        (prompted(*[CLICK] * 9), Kind.TOO_LARGE, "prompts.prompts"),
        (prompted(CLICK, segment_pb2.Prompt()), Kind.INVALID_ARGUMENT, "prompts.prompts[1]"),
        (
            prompted(segment_pb2.Prompt(points=[types_pb2.Point(x=1, y=1)] * 5)),
            Kind.TOO_LARGE,
            "prompts.prompts[0].points",
        ),
        (
            prompted(segment_pb2.Prompt(points=[types_pb2.Point(x=1, y=1, label=2)])),
            Kind.INVALID_ARGUMENT,
            "prompts.prompts[0].points",
        ),
        (
            prompted(segment_pb2.Prompt(points=[types_pb2.Point(x=float("nan"), y=1)])),
            Kind.INVALID_ARGUMENT,
            "prompts.prompts[0].points",
        ),
        (
            prompted(segment_pb2.Prompt(box=types_pb2.Box(x_min=5, y_min=5, x_max=5, y_max=9))),
            Kind.INVALID_ARGUMENT,
            "prompts.prompts[0].box",
        ),
        (
            prompted(CLICK, segment_pb2.Prompt(points=[*CLICK.points, types_pb2.Point(x=5000, y=5000)])),
            Kind.INVALID_ARGUMENT,
            "prompts.prompts[1].points[1]",
        ),
        (
            prompted(segment_pb2.Prompt(points=[types_pb2.Point(x=-1.5, y=9)])),
            Kind.INVALID_ARGUMENT,
            "prompts.prompts[0].points[0]",
        ),
        (
            prompted(segment_pb2.Prompt(box=types_pb2.Box(x_min=-100, y_min=-100, x_max=-1, y_max=-1))),
            Kind.INVALID_ARGUMENT,
            "prompts.prompts[0].box",
        ),
        (prompted(CLICK) | {"priority": 99}, Kind.INVALID_ARGUMENT, "priority"),
        (
            prompted(CLICK) | {"output": segment_pb2.OutputOptions(mask_encoding=99)},  # type: ignore[arg-type]
            Kind.INVALID_ARGUMENT,
            "output.mask_encoding",
        ),
        (
            prompted(segment_pb2.Prompt(mask_logits=types_pb2.Tensor(dtype=99))),  # type: ignore[arg-type]
            Kind.INVALID_ARGUMENT,
            "prompts.prompts[0].mask_logits.dtype",
        ),
        (
            prompted(segment_pb2.Prompt(mask=mask_to_proto(np.ones((2, 2), bool)))),
            Kind.INVALID_ARGUMENT,
            "prompts.prompts[0].mask",
        ),
        (
            prompted(segment_pb2.Prompt(mask_logits=tensor_to_proto(np.zeros((2, 2), np.float32)))),
            Kind.INVALID_ARGUMENT,
            "prompts.prompts[0].mask_logits",
        ),
        (
            {"everything": segment_pb2.EverythingOptions(points_per_side=0)},
            Kind.INVALID_ARGUMENT,
            "everything.points_per_side",
        ),
        (
            {"everything": segment_pb2.EverythingOptions(points_per_side=33)},
            Kind.TOO_LARGE,
            "everything.points_per_side",
        ),
        (
            {
                "everything": segment_pb2.EverythingOptions(
                    points_per_side=16, crop_n_layers=4, crop_n_points_downscale_factor=2
                )
            },
            Kind.TOO_LARGE,
            "everything.crop_n_layers",
        ),
        (
            {
                "everything": GRID,
                "image": types_pb2.Image(encoded=encode_image(np.zeros((1001, 1000, 3), np.uint8))),
            },
            Kind.TOO_LARGE,
            "image.encoded",
        ),
        ({"everything": GRID, "image": types_pb2.Image()}, Kind.INVALID_ARGUMENT, "image"),
        (
            {"everything": GRID, "image": types_pb2.Image(encoded=b"\xff\xd8\xff")},
            Kind.UNSUPPORTED_IMAGE,
            "image.encoded",
        ),
    ],
)
async def test_bad_requests_are_refused_by_field(
    stub: Any, image: types_pb2.Image, request_parts: dict[str, Any], kind: Kind, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Segment(segment_pb2.SegmentRequest(**({"image": image} | request_parts)), timeout=60)
    error = from_rpc_error(caught.value)
    assert (error.kind, error.field) == (kind, field)


async def test_the_process_serves_and_stops(tmp_path: Path, image: types_pb2.Image) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.segmenter",
        "--port=0",
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    port = await port_of(process)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        status = await health.Check(health_pb2.HealthCheckRequest(service="regionsearch.v1.SegmentService"))
        assert status.status == health_pb2.HealthCheckResponse.SERVING
        stub = segment_pb2_grpc.SegmentServiceStub(channel)
        answer = await stub.Segment(segment_pb2.SegmentRequest(image=image, **prompted(CLICK)), timeout=60)
        assert len(answer.results) == 1
        process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 120) == 0
