"""Closer looks at what a prompt found."""

from __future__ import annotations

import asyncio
import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from segment_anything import SamPredictor

from evaluation import rle
from evaluation.loaders import load
from regionsearch.masks import RunLengthMask
from services.segmenter.backends.base import Geometry
from services.segmenter.backends.sam import SamBackend
from services.segmenter.call_context import LazyImage, Prompted
from services.segmenter.everything import Region
from services.segmenter.grid import Crop
from services.segmenter.prompts import Prompt, PromptedRegion
from services.segmenter.refine.cascade import (
    CLOSE_UPS,
    SURROUNDINGS,
    agree,
    enlarged,
    seen_from,
    square_around,
    surroundings,
)
from services.segmenter.regions import pool_features
from tests.segmenter.test_engine import Watched, engine_for
from tests.segmenter.test_prompts import prompt, rough

GEOMETRY = Geometry((600, 800), (288, 384), (384, 384), ())
CROP = Crop(100, 50, 200, 150, 1)


@pytest.fixture(scope="module")
def unrefined(pocket: SamBackend) -> SamBackend:
    """The bundled model without its refiner, as published models are."""
    backend = copy.copy(pocket)
    backend.refiner = None
    return backend


def region(left: int, top: int, width: int, height: int) -> Region:
    """A rectangle in an image of 800 x 600."""
    whole = Crop.whole(GEOMETRY.image_size)
    runs = RunLengthMask.from_windows(GEOMETRY.image_size, [(np.ones((height, width), bool), top, left)])
    return Region(runs, (left, top, left + width - 1, top + height - 1), 0.9, 0.9, None, whole)


def ask(backend: Any, pixels: NDArray[np.uint8], *prompts: Prompt, **options: Any) -> Prompted:
    async def main() -> Prompted:
        async with engine_for(backend) as engine:
            return await engine.prompts(LazyImage("image", lambda: pixels), prompts, **options)

    return asyncio.run(main())


def answer(found: Region) -> PromptedRegion:
    return PromptedRegion(found, np.zeros((1, 1), np.float32))


@given(
    x=st.floats(-50, 900),
    y=st.floats(-50, 700),
    side=st.floats(1, 2000),
)
def test_the_square_lies_in_the_image(x: float, y: float, side: float) -> None:
    crop = square_around((x, y), side, (600, 800))
    assert 0 <= crop.left < crop.right <= 800
    assert 0 <= crop.top < crop.bottom <= 600
    assert crop.size == (min(round(side), 600), min(round(side), 800))


@given(data=st.data())
def test_the_zoom_crop_holds_the_mask_the_points_and_the_box(data: st.DataObject) -> None:
    left, top = data.draw(st.integers(0, 790)), data.draw(st.integers(0, 590))
    width, height = data.draw(st.integers(1, 800 - left)), data.draw(st.integers(1, 600 - top))
    point = data.draw(st.tuples(st.floats(0, 799), st.floats(0, 599)))
    sides = data.draw(st.sampled_from(SURROUNDINGS + CLOSE_UPS))
    asked, found = prompt([point]), region(left, top, width, height)
    wide = max(left + width, point[0]) - min(left, point[0])
    high = max(top + height, point[1]) - min(top, point[1])
    crop = surroundings(asked, found.box, sides, GEOMETRY.image_size)
    assert max(crop.size) >= min(600, int(sides * max(wide, high)))
    assert crop.left <= left
    assert crop.top <= top
    assert crop.right >= left + width
    assert crop.bottom >= top + height
    assert crop.left <= point[0] < crop.right + 1
    assert crop.top <= point[1] < crop.bottom + 1
    larger = enlarged(asked, found, sides, GEOMETRY)
    if larger is not None:
        assert 48 <= max(larger.size) <= 800 / 1.1 + 1
        assert larger.size >= crop.size


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (prompt([(400, 300)]), region(200, 100, 300, 300)),  # there is no more around it than the image
        (prompt([(400, 300)]), region(0, 0, 0, 0)),  # nothing
        (prompt([(10, 10), (790, 590)]), region(0, 0, 20, 20)),  # points far apart
    ],
)
def test_prompts_that_are_not_zoomed(asked: Prompt, found: Region) -> None:
    assert enlarged(asked, found, 5.0, GEOMETRY) is None


def test_an_object_is_enlarged_up_to_a_limit() -> None:
    crop = enlarged(prompt([(400, 300)]), region(399, 299, 2, 2), 2.0, GEOMETRY)
    assert crop is not None
    assert crop.size == (48, 48)  # 384 / 8


def test_the_zoom_crop_includes_the_box_of_the_prompt() -> None:
    asked = prompt([], box=(300, 200, 400, 300))
    crop = surroundings(asked, region(340, 240, 5, 5).box, 5.5, GEOMETRY.image_size)
    assert crop.size == (550, 550)


def test_prompts_are_moved_into_the_crop() -> None:
    points = [(110.0, 60.0), (90.0, 60.0), (300.0, 60.0), (150.0, 100.0)]
    moved = seen_from(CROP, prompt(points, [1, 0, 1, 0], box=(120, 70, 160, 90)))
    assert moved.points.tolist() == [[10, 10], [200, 10], [50, 50]]  # without the background outside
    assert moved.labels.tolist() == [1, 1, 0]
    assert moved.box == (20, 20, 60, 40)


def test_passes_that_agree_keep_their_mask() -> None:
    found = region(10, 10, 20, 20)
    [both] = agree([[answer(found)], [answer(found)]])
    assert both.region.runs.coco_rle() == found.runs.coco_rle()
    assert both.region.box == found.box


def test_all_masks_vote_with_their_rank() -> None:
    small, large = region(10, 10, 20, 20), region(10, 10, 40, 20)
    third = replace(region(0, 0, 25, 100), predicted_iou=0.5)
    found = agree([[answer(small)], [answer(large), answer(third)]])
    assert found[0].region.box == (10, 10, 29, 29)  # small and large together beat small, and third large
    assert found[0].region.predicted_iou == large.predicted_iou
    assert found[1].region == third


def test_a_vote_without_a_majority_keeps_the_best_pass() -> None:
    looks = [[answer(region(100 * place, 0, 50, 50))] for place in range(3)]
    looks[1] = [answer(replace(looks[1][0].region, predicted_iou=0.95))]
    assert agree(looks) == looks[1]


def test_every_zoom_pass_matches_the_reference_on_its_crop(
    unrefined: SamBackend, scene: NDArray[np.uint8]
) -> None:
    """The answer is what the masks of SamPredictor on the looked-at parts vote for."""
    whole, part = SamPredictor(unrefined.model), SamPredictor(unrefined.model)
    whole.set_image(scene)
    asked = [prompt([(x, y)]) for x in range(40, 340, 60) for y in range(40, 250, 60)]
    found = ask(unrefined, scene, *asked, multimask=True, zoom=True).answers
    geometry = unrefined.prepare(scene)[1]
    closer = 0
    for one, answers in zip(asked, found, strict=True):
        looks = [answers_of(whole, scene.shape[:2], one, Crop.whole(geometry.image_size))]
        for sides in SURROUNDINGS:
            best = max((look[0].region for look in looks), key=lambda one: one.rank)
            if crop := enlarged(one, best, sides, geometry):
                part.set_image(crop.cut(scene))
                looks.append(answers_of(part, scene.shape[:2], one, crop))
        expected = (agree(looks) if len(looks) > 1 else looks[0])[0].region
        best = answers[0].region
        assert best.crop == expected.crop
        assert best.predicted_iou == pytest.approx(expected.predicted_iou, abs=1e-4)
        mask = best.runs.to_mask()
        assert (mask != expected.runs.to_mask()).mean() < 1e-3
        if mask.any():
            rows, columns = mask.nonzero()
            assert best.box == (columns.min(), rows.min(), columns.max(), rows.max())
        closer += len(looks) > 1
    assert closer >= 5


def answers_of(
    predictor: SamPredictor, size: tuple[int, int], asked: Prompt, crop: Crop
) -> list[PromptedRegion]:
    """What the reference, which was given a crop of an image of that size, finds in it, best first."""
    points = asked.points - [crop.left, crop.top]
    logits, ious, _ = predictor.predict(points, asked.labels, return_logits=True)
    regions = []
    for mask, iou in zip(logits, ious, strict=True):
        runs = RunLengthMask.from_windows(size, [(mask > 0, crop.top, crop.left)])
        stability = (mask > 1).sum() / max(1, (mask > -1).sum())
        regions.append(Region(runs, runs.box, float(iou), float(stability), None, crop))
    return sorted(map(answer, regions), key=lambda one: one.region.rank, reverse=True)


async def test_a_repeated_zoomed_click_runs_no_encoder(
    unrefined: SamBackend, scene: NDArray[np.uint8]
) -> None:
    watched = Watched(unrefined)
    decoded = []

    def decode() -> NDArray[np.uint8]:
        decoded.append(1)
        return scene

    async with engine_for(watched) as engine:
        for _ in range(2):
            answer = await engine.prompts(LazyImage("image", decode), [prompt([(60, 60)])], zoom=True)
    assert answer.cached
    assert watched.log.count("encode") == 3  # the whole and its parts, once each
    assert len(decoded) == 2


async def test_zoom_passes_of_several_prompts_decode_the_image_once(
    unrefined: SamBackend, scene: NDArray[np.uint8]
) -> None:
    decoded = []

    def decode() -> NDArray[np.uint8]:
        decoded.append(1)
        time.sleep(0.1)
        return scene

    async with engine_for(unrefined, max_batch=64) as engine:
        asked = [prompt([(60, 60)]), prompt([(61, 61)], box=(30, 30, 90, 90)), prompt([(62, 60), (60, 58)])]
        await engine.prompts(LazyImage("image", decode), asked, zoom=True)
    assert len(decoded) == 2  # for the first look, and for all others


async def test_features_of_zoomed_prompts_are_those_of_the_whole_image(
    pocket: SamBackend, scene: NDArray[np.uint8]
) -> None:
    async with engine_for(pocket) as engine:
        found = await engine.prompts(
            LazyImage("image", lambda: scene), [prompt([(60, 60)])], zoom=True, features=0
        )
    assert found.features is not None
    [[answer]] = found.answers
    [whole] = pocket.encode([pocket.prepare(scene)])
    np.testing.assert_allclose(found.features[0], pool_features(whole, [answer.region.runs]), atol=1e-5)


async def test_refining_runs_the_encoder_once(pocket: SamBackend, scene: NDArray[np.uint8]) -> None:
    watched = Watched(pocket)
    async with engine_for(watched) as engine:
        for place in ((60, 60), (64, 58)):
            await engine.prompts(LazyImage("image", lambda: scene), [prompt([place])], zoom=True)
    assert watched.log.count("encode") == 1


@pytest.mark.parametrize("multimask", [False, True])
def test_the_first_mask_is_refined(pocket: SamBackend, scene: NDArray[np.uint8], multimask: bool) -> None:
    asked = [prompt([(60, 60)]), prompt([], box=(30, 30, 120, 120)), prompt([(200, 100), (60, 60)], [1, 0])]
    plain = ask(pocket, scene, *asked, multimask=multimask).answers
    zoomed = ask(pocket, scene, *asked, multimask=multimask, zoom=True).answers
    for before, after in zip(plain, zoomed, strict=True):
        assert len(after) == (3 if multimask else 1)
        assert [other.region.box for other in after[1:]] == [other.region.box for other in before[1:]]
        best = after[0].region
        mask = best.runs.to_mask()
        rows, columns = mask.nonzero()
        assert best.box == (columns.min(), rows.min(), columns.max(), rows.max())
        assert 0 < best.predicted_iou <= before[0].region.predicted_iou + 1e-4
        assert best.crop != Crop.whole(scene.shape[:2]) or max(best.crop.size) == max(scene.shape[:2])


@pytest.mark.parametrize(
    "asked",
    [
        prompt([(60, 60)], mask=rough(np.ones((270, 360), bool))),
        prompt([(60, 60)], mask_logits=np.zeros((192, 192), np.float32)),
    ],
)
@pytest.mark.parametrize("model", ["pocket", "unrefined"])
def test_prompts_with_a_mask_are_not_zoomed(
    request: pytest.FixtureRequest, scene: NDArray[np.uint8], asked: Prompt, model: str
) -> None:
    backend = request.getfixturevalue(model)
    [[once]], [[zoomed]] = (ask(backend, scene, asked, zoom=zoom).answers for zoom in (False, True))
    assert zoomed.region.runs.coco_rle() == once.region.runs.coco_rle()
    assert zoomed.region.crop == once.region.crop


@pytest.mark.parametrize("model", ["pocket", "unrefined"])
async def test_zoom_improves_masks_of_small_objects(request: pytest.FixtureRequest, model: str) -> None:
    """On the fixture; what closer looks are for."""
    once, twice = [], []
    async with engine_for(request.getfixturevalue(model)) as engine:  # which encodes each image once
        for sample in load(Path("evaluation/fixture")).samples[:15]:
            truths = [rle.decode(i.mask) for i in sample.instances if rle.area(i.mask) < 32**2]
            if not truths:
                continue
            asked = [prompt([rle.innermost_point(truth)]) for truth in truths]
            for ious, again in ((once, False), (twice, True)):
                image = LazyImage(str(sample.path), sample.pixels)
                answers = (await engine.prompts(image, asked, multimask=True, zoom=again)).answers
                for truth, answer in zip(truths, answers, strict=True):
                    mask = answer[0].region.runs.to_mask()
                    ious.append((mask & truth).sum() / (mask | truth).sum())
    assert len(once) > 10
    assert np.mean(twice) > np.mean(once)
