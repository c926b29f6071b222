"""Everything mode by proposals: what a head sees is asked for by points and by boxes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import segment_pb2
from services.segmenter import messages
from services.segmenter.backends.base import Embedding, Geometry, ModelIdentity
from services.segmenter.backends.pocket import build_pocket_sam
from services.segmenter.backends.proposer import MAX_PEAKS, HeadProposer, ProposalHead, by_area, peaks
from services.segmenter.backends.sam import SamBackend
from services.segmenter.everything import (
    Candidate,
    decode_points,
    draw_candidates,
    filter_survivors,
    segment_everything,
    unanswered,
)
from services.segmenter.grid import Crop
from services.segmenter.options import Defaults, EverythingOptions, Mode
from services.segmenter.settings import EverythingSettings
from tests.segmenter.test_engine import Watched, engine_for, lazy_image

OPTIONS = EverythingOptions(pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=0.9)


@pytest.fixture(scope="module")
def proposing() -> SamBackend:
    torch.manual_seed(0)
    sam = build_pocket_sam(img_size=128, width=64, proposer={"channels": 64, "width": 16})
    torch.nn.init.constant_(sam.mask_decoder.iou_prediction_head.layers[-1].bias, 0.9)
    torch.nn.init.normal_(sam.proposer.layers[-1].weight, std=5)
    return SamBackend(sam, ModelIdentity("sam", "proposing", "0" * 64, "fp32", "cpu"))


def proposed(maps: Tensor, geometry: Geometry) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Points and boxes for a head that answers with `maps` (6, h, w)."""
    head = cast("ProposalHead", lambda features: maps[None])
    embedding = Embedding((torch.zeros(4, *maps.shape[1:]),), geometry)
    boxes, points = HeadProposer(head, nullcontext).propose(embedding, None, OPTIONS)
    return [tuple(point) for point in points.tolist()], [tuple(box) for box in boxes.tolist()]


def points_of(logits: Tensor, geometry: Geometry) -> list[tuple[float, ...]]:
    """Points for a head that answers with depths (h, w), and names no box."""
    nothing = torch.full((5, *logits.shape), -9.0)
    points, boxes = proposed(torch.cat([logits[None], nothing]), geometry)
    assert not boxes
    return points


def test_boxes_are_named_once_and_end_at_the_image() -> None:
    maps = torch.full((6, 16, 16), -9.0)
    maps[2:] = 2.0
    maps[1, 4, 4], maps[1, 4, 5], maps[1, 2, 14], maps[1, 14, 3] = 2.0, 1.0, 3.0, 4.0
    maps[2, 4, 5], maps[4, 4, 5] = 3.0, 1.0  # the same box, seen from the next cell
    geometry = Geometry((200, 400), (64, 128), (128, 128), ())
    points, boxes = proposed(maps, geometry)
    assert not points
    # 8 pixels of the input a cell, 3.125 of the image for one of the input: 25.
    assert boxes == [(312.5, 12.5, 400.0, 112.5), (62.5, 62.5, 162.5, 162.5)]  # from small to large


def test_points_lie_in_the_middle_of_peaks_best_first() -> None:
    logits = torch.full((16, 16), -9.0)
    logits[2, 3], logits[2, 4], logits[7, 10] = 1.0, 0.5, 2.0
    logits[14, 5] = 3.0  # in the padding
    geometry = Geometry((200, 400), (64, 128), (128, 128), ())
    # 8 pixels of the input a cell, 3.125 of the image for one of the input.
    assert points_of(logits, geometry) == [
        (83.5 * 3.125, 59.5 * 3.125),
        (27.5 * 3.125, 19.5 * 3.125),
    ]


def test_there_may_be_nothing_and_never_too_much() -> None:
    geometry = Geometry((128, 128), (128, 128), (128, 128), ())
    assert points_of(torch.full((16, 16), -9.0), geometry) == []
    scattered = torch.full((32, 32), -9.0)
    scattered[::2, ::2] = 2.0
    assert len(points_of(scattered, geometry)) == MAX_PEAKS
    assert len(points_of(torch.ones(1, 1), Geometry((1, 1), (1, 1), (8, 8), ()))) == 1


def test_peaks_of_a_plateau_are_all_of_it() -> None:
    found = peaks(torch.tensor([[0.1, 0.5, 0.5], [0.0, 0.2, 0.1]]), 3)
    assert found[:, 1:].tolist()[:2] == [[1, 0], [2, 0]]
    assert found[2, 0] == 0


async def test_the_engine_decodes_what_was_proposed(proposing: SamBackend) -> None:
    image = lazy_image(3)
    alone = segment_everything(proposing, image.decode(), OPTIONS, Mode.PROPOSALS)
    assert alone
    watched = Watched(proposing)
    async with engine_for(watched) as engine:
        found = (await engine.everything(image, OPTIONS, mode=Mode.PROPOSALS)).regions
        await engine.everything(image, replace(OPTIONS, crop_n_layers=1), mode=Mode.PROPOSALS)
    assert watched.log.count("encode") == 5  # the image, which is remembered, and its crops
    assert [region.runs.coco_rle() for region in found] == [region.runs.coco_rle() for region in alone]
    (embedding,) = proposing.encode([proposing.prepare(image.decode())])
    assert proposing.proposer is not None
    proposed = proposing.proposer.propose(embedding, None, OPTIONS)
    assert isinstance(proposed, tuple)
    boxes, points = proposed
    assert len(points)
    assert len(boxes)
    asked = [*points.tolist(), *boxes.reshape(-1, 2, 2).mean(axis=1).tolist()]
    assert {region.point for region in found} <= {tuple(point) for point in asked}
    assert len(decode_points(proposing, embedding, points, OPTIONS).scores) == 3 * len(points)
    assert len(decode_points(proposing, embedding, boxes, OPTIONS).scores) == len(boxes)


def test_the_mask_of_a_box_lies_near_it(proposing: SamBackend) -> None:
    image = lazy_image(3).decode()
    (embedding,) = proposing.encode([proposing.prepare(image)])
    crop = Crop.whole((image.shape[0], image.shape[1]))
    boxes = by_area(np.array([[20.0, 8, 60, 24], [2, 2, 14, 10], [0, 0, crop.right, crop.bottom]]))
    masks = decode_points(proposing, embedding, boxes, OPTIONS)
    found = filter_survivors(proposing, embedding, crop, masks, crop.size, OPTIONS)
    regions = draw_candidates(proposing, embedding, crop, found, crop.size)
    assert [region.point for region in regions] == [(8, 6), (40, 16), (40, 30)]  # from small to large
    # A quarter of the box's sides beyond each of its edges.
    for region, (left, top, right, bottom) in zip(regions, [(0, 0, 17, 12), (10, 4, 70, 28)], strict=False):
        mask = region.runs.to_mask()
        assert mask.any()
        assert mask[top:bottom, left:right].sum() == mask.sum()


def test_points_that_a_box_has_answered_are_not_asked(proposing: SamBackend) -> None:
    embedding = Embedding((), Geometry((60, 80), (96, 128), (128, 128), ()))
    logits = torch.full(proposing.mask_size, -1.0)  # 64 x 64 for 128 x 128 pixels of the input
    logits[:24, :32] = 1.0  # the quarter at the top left
    points, boxes = np.array([[10.0, 10], [50, 10], [39.9, 29.9], [79, 59]]), np.array([[0.0, 0, 40, 30]])

    def left(iou: float, prompts: NDArray[np.float64]) -> NDArray[np.float64]:
        found = Candidate(logits, (0, 0, 39, 29), iou, 1.0, (20, 15), clip=True)
        return unanswered(proposing, embedding, prompts, [found])

    assert left(0.9, points).tolist() == [[50, 10], [79, 59]]
    assert left(0.7, points) is points
    assert left(0.9, boxes) is boxes


async def test_an_image_without_proposals_has_no_regions(
    proposing: SamBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposing.proposer, "propose", lambda *_: (np.empty((0, 4)), np.empty((0, 2))))
    assert segment_everything(proposing, lazy_image(1).decode(), OPTIONS, Mode.PROPOSALS) == []
    async with engine_for(proposing) as engine:
        assert (await engine.everything(lazy_image(1), OPTIONS, mode=Mode.PROPOSALS)).regions == []


async def test_a_model_without_a_proposer_says_so(untrained: SamBackend) -> None:
    async with engine_for(untrained) as engine:
        with pytest.raises(RegionSearchError, match="untrained has no proposer") as caught:
            await engine.everything(lazy_image(1), OPTIONS, mode=Mode.PROPOSALS)
    assert (caught.value.kind, caught.value.field) == (Kind.FAILED_PRECONDITION, "everything.mode")


@pytest.mark.parametrize(
    ("default", "asked", "mode"),
    [
        (Mode.PROPOSALS, {}, Mode.PROPOSALS),
        (Mode.PROPOSALS, {"pred_iou_thresh": 0.5}, Mode.PROPOSALS),
        (Mode.PROPOSALS, {"points_per_side": 8}, Mode.GRID),
        (Mode.PROPOSALS, {"mode": segment_pb2.EVERYTHING_MODE_GRID}, Mode.GRID),
        (Mode.GRID, {}, Mode.GRID),
        (Mode.GRID, {"mode": segment_pb2.EVERYTHING_MODE_PROPOSALS}, Mode.PROPOSALS),
    ],
)
def test_requests_say_where_to_look(default: Mode, asked: dict[str, Any], mode: Mode) -> None:
    options = segment_pb2.EverythingOptions(**asked)
    assert messages.read_everything(options, Defaults(mode=default), 10_000)[2] is mode


def test_a_grid_of_proposals_is_refused() -> None:
    options = segment_pb2.EverythingOptions(points_per_side=8, mode=segment_pb2.EVERYTHING_MODE_PROPOSALS)
    with pytest.raises(RegionSearchError) as caught:
        messages.read_everything(options, Defaults(), 10_000)
    assert caught.value.field == "everything.points_per_side"


def test_settings_change_the_defaults_of_the_model() -> None:
    defaults = Defaults(EverythingOptions(16), Mode.PROPOSALS)
    assert EverythingSettings().applied_to(defaults) == defaults
    changed = EverythingSettings(points_per_side=9, min_mask_region_area=20).applied_to(defaults)
    assert (changed.mode, changed.everything) == (
        Mode.GRID,
        EverythingOptions(9, min_mask_region_area=20),
    )
    assert messages.write_everything(changed).mode == segment_pb2.EVERYTHING_MODE_GRID
    with pytest.raises(RegionSearchError, match="points_per_side"):
        EverythingSettings(points_per_side=1000).applied_to(defaults)
