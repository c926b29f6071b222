"""Devices that are too small or get lost, in a process of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images import encode_image
from regionsearch.v1 import segment_pb2, segment_pb2_grpc, types_pb2
from services.runtime.batch import BatchSettings
from services.segmenter import everything
from services.segmenter.call_context import LazyImage
from services.segmenter.engine import SegmentEngine
from services.segmenter.everything import segment_everything
from services.segmenter.options import EverythingOptions
from tests.segmenter.conftest import port_of
from tests.segmenter.failing_process import DEADLY, ROOM, TroubledBackend

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
IMAGE = types_pb2.Image(encoded=encode_image(PIXELS))
OPTIONS = EverythingOptions(points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1)


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    weights = tmp_path / "segmenter.safetensors"
    weights.write_bytes(b"none")
    manifest = {
        "family": "failing",
        "variant": "",
        "sha256": hashlib.sha256(b"none").hexdigest(),
        "architecture": {},
    }
    weights.with_suffix(".json").write_text(json.dumps(manifest))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.segmenter.failing_process",
        "--port=0",
        f"--model={weights.with_suffix('.json')}",
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    port = await port_of(process)
    yield process, port
    if process.returncode is None:
        process.kill()
        await process.wait()


def prompts(*prompts: segment_pb2.Prompt) -> segment_pb2.SegmentRequest:
    return segment_pb2.SegmentRequest(image=IMAGE, prompts=segment_pb2.Prompts(prompts=prompts))


async def test_out_of_memory_is_halved_and_a_lost_device_ends_the_process(
    process: tuple[asyncio.subprocess.Process, int],
) -> None:
    child, port = process
    service = health_pb2.HealthCheckRequest(service="regionsearch.v1.SegmentService")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = segment_pb2_grpc.SegmentServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(service)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING

        everything = segment_pb2.EverythingOptions(
            points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1
        )
        request = segment_pb2.SegmentRequest(image=IMAGE, everything=everything)
        answer = await stub.Segment(request, timeout=60)
        roomy = TroubledBackend()
        roomy.decode_batch = ROOM
        expected = segment_everything(roomy, PIXELS, OPTIONS)
        assert [region.mask.coco_rle for region in answer.regions] == [
            region.runs.coco_rle() for region in expected
        ]
        clicks = [segment_pb2.Prompt(points=[types_pb2.Point(x=x, y=30)]) for x in range(2 * ROOM + 1)]
        assert len((await stub.Segment(prompts(*clicks), timeout=60)).results) == len(clicks)

        deadly = prompts(segment_pb2.Prompt(points=[types_pb2.Point(x=x, y=9) for x in range(DEADLY)]))
        calls = [stub.Segment(deadly, timeout=60), stub.Segment(prompts(clicks[0]), timeout=60)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calls[0]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.gather(calls[1], return_exceptions=True)  # before or after: both are right
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await asyncio.wait_for(child.wait(), 60) == 1


async def test_an_item_that_never_fits_into_memory_fails_its_call_only() -> None:
    """The halves end at one item."""

    backend = TroubledBackend()
    decode = backend.decode
    backend.decode = lambda embedding, batch: decode(  # type: ignore[method-assign]
        embedding, replace(batch, points=batch.points.repeat(ROOM + 1, 1, 1), labels=None)
    )
    engine = SegmentEngine(backend, BatchSettings(max_batch=8), cache_bytes=0)
    with pytest.raises(RegionSearchError) as caught:
        await engine.everything(LazyImage("", lambda: PIXELS), OPTIONS)
    assert caught.value.kind is Kind.TOO_LARGE
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    del backend.decode
    assert (await engine.everything(LazyImage("", lambda: PIXELS), OPTIONS)).regions
    await engine.close()


@pytest.mark.parametrize("size", [1, 3])
async def test_masks_that_fail_to_draw_outside_the_queue_are_drawn_in_it(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """As long as other work holds the memory, and where it suffices for some regions at a time only."""

    drawn: list[int] = []
    draw = everything.draw_candidates

    def crowded(backend: Any, embedding: Any, crop: Any, candidates: Any, image_size: Any) -> Any:
        drawn.append(len(candidates))
        if len(drawn) == 1 or len(candidates) > size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 MiB.")
        return draw(backend, embedding, crop, candidates, image_size)

    backend = TroubledBackend()
    backend.decode_batch = ROOM
    expected = segment_everything(backend, PIXELS, OPTIONS)
    monkeypatch.setattr("services.segmenter.everything_search.draw_candidates", crowded)
    monkeypatch.setattr("services.segmenter.tasks.draw_candidates", crowded)
    engine = SegmentEngine(backend, BatchSettings(max_batch=8), cache_bytes=0)
    found = await engine.everything(LazyImage("", lambda: PIXELS), OPTIONS)
    assert [region.runs.coco_rle() for region in found.regions] == [
        region.runs.coco_rle() for region in expected
    ]
    await engine.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), Kind.TOO_LARGE),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), Kind.UNAVAILABLE),
    ],
)
async def test_a_mask_that_can_never_be_drawn_reports_the_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: Kind
) -> None:
    def fail(*_: Any) -> Any:
        raise type(error)(str(error))

    monkeypatch.setattr("services.segmenter.everything_search.draw_candidates", fail)
    monkeypatch.setattr("services.segmenter.tasks.draw_candidates", fail)
    reasons: list[str] = []
    engine = SegmentEngine(
        TroubledBackend(), BatchSettings(max_batch=4), cache_bytes=0, on_fatal=reasons.append
    )
    with pytest.raises(RegionSearchError) as caught:
        await engine.everything(LazyImage("", lambda: PIXELS), OPTIONS)
    assert caught.value.kind is kind
    assert len(reasons) == (kind is Kind.UNAVAILABLE)
    await engine.close()
