"""The refiner's input, and its answers in the image."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.segmenter.backends.base import Geometry
from services.segmenter.backends.refiner import (
    MASKS,
    Refiner,
    RefinerInput,
    RefinerNet,
    input_maps,
    shrink_masks,
    shrink_pixels,
    shrunk_size,
)
from services.segmenter.everything import Region
from services.segmenter.grid import Crop
from services.segmenter.prompts import PromptedRegion
from services.segmenter.refine.cascade import (
    CLOSE_UPS,
    Refined,
    RefineTarget,
    draw_refined,
    first_masks,
    refine_in_passes,
)
from tests.segmenter.test_prompts import prompt

SIDE = 64


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    torch.manual_seed(0)
    net = RefinerNet(body="regnetx_002", width=32, detail=16, outline=8, last_blocks=2, img_size=SIDE)
    return Refiner(net.eval(), contextlib.nullcontext)


def view(seed: int, size: tuple[int, int] = (50, 40)) -> RefinerInput:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    masks = rng.integers(0, 256, (MASKS, 24, 24), np.uint8)
    points = rng.uniform(0, 40, (1 + seed % 3, 2))
    labels = np.arange(1, 2 + seed % 3, dtype=np.int32) % 2
    box = (3.0, 4.0, 30.0, 44.0) if seed % 2 else None
    return RefinerInput(pixels, points, labels, box, masks, (2.0, 3.0, 14.0, 18.0))


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), side=st.sampled_from([32, 128]))
def test_the_longer_side_fills_the_input(height: int, width: int, side: int) -> None:
    shrunk = shrunk_size((height, width), side)
    assert max(shrunk) == side
    assert min(shrunk) >= 1
    assert min(shrunk) == pytest.approx(side * min(height, width) / max(height, width), abs=1)


def test_refiner_input_is_grey_outside_the_close_up() -> None:
    shrunk = shrink_pixels(np.full((20, 40, 3), 200, np.uint8), SIDE)
    assert shrunk.shape == (3, SIDE, SIDE)
    assert (shrunk[:, : SIDE // 2] == 200).all()
    assert (shrunk[:, SIDE // 2 :].reshape(3, -1) == np.array([[124], [116], [104]])).all()


@given(left=st.floats(-20, 20), top=st.floats(-20, 20), width=st.floats(4, 60), height=st.floats(4, 60))
def test_refiner_masks_are_cut_to_the_close_up(left: float, top: float, width: float, height: float) -> None:
    """Of a mask that is a ramp along both axes, the part has the values of its own place."""
    ramp = np.add.outer(np.arange(32) * 4, np.arange(32) * 3).astype(np.uint8)
    size = (round(height * 10), round(width * 10))
    [shrunk] = shrink_masks(ramp[None], (left, top, left + width, top + height), size, SIDE)
    rows, columns = shrunk_size(size, SIDE)
    y = top + (np.arange(rows) + 0.5) * height / rows - 0.5
    x = left + (np.arange(columns) + 0.5) * width / columns - 0.5
    expected = np.add.outer(y * 4, x * 3)
    # Away from the edges of the mask, where there is nothing, and of the interpolation.
    far = np.logical_and.outer((y > 2) & (y < 29), (x > 2) & (x < 29))
    assert np.abs(shrunk[:rows, :columns] - expected)[far].max(initial=0) < 8
    outside = np.logical_or.outer((y < -2) | (y > 33), (x < -2) | (x > 33))
    assert not shrunk[:rows, :columns][outside].any()
    assert not shrunk[rows:].any()
    assert not shrunk[:, columns:].any()


def test_a_close_up_outside_the_masks_gets_empty_masks() -> None:
    assert not shrink_masks(np.full((1, 8, 8), 255, np.uint8), (8.0, 0.0, 16.0, 8.0), (8, 8), SIDE).any()


def test_points_and_box_appear_in_the_refiner_input() -> None:
    seen = torch.zeros(1, 3 + MASKS, SIDE, SIDE, dtype=torch.uint8)
    points = torch.tensor([[[10.0, 20.0], [40.0, 50.0], [30.0, 5.0]]])
    [maps] = input_maps(seen, points, torch.tensor([[1, 0, -1]]), torch.tensor([[8.0, 4.0, 24.0, 32.0]]))
    there, away, inside = maps[3:6]
    assert divmod(int(there.argmax()), SIDE) in {(19, 9), (19, 10), (20, 9), (20, 10)}
    assert divmod(int(away.argmax()), SIDE) in {(49, 39), (49, 40), (50, 39), (50, 40)}
    assert there[5, 30] < 0.2  # what is not a point is not seen
    assert inside.sum() == 16 * 28
    assert inside[4:32, 8:24].all()
    assert (maps[6:] == -1).all()


def test_refiner_input_without_a_prompt_is_empty() -> None:
    seen = torch.zeros(2, 3 + MASKS, SIDE, SIDE, dtype=torch.uint8)
    maps = input_maps(seen, torch.zeros(2, 0, 2), torch.zeros(2, 0), torch.full((2, 4), torch.nan))
    assert not maps[:, 3:6].any()


def test_several_close_ups_are_refined_as_each_is(refiner: Refiner) -> None:
    prepared = [refiner.prepare(view(seed)) for seed in range(5)]
    logits, ious = refiner.refine(prepared)
    assert logits.shape == (5, *refiner.mask_size)
    assert ((ious > 0) & (ious < 1)).all()
    for one, mask, iou in zip(prepared, logits, ious, strict=True):
        alone, score = refiner.refine([one])
        torch.testing.assert_close(alone[0], mask, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(score[0], iou, atol=1e-5, rtol=1e-4)


def test_a_shorter_body_is_one_of_its_first_blocks() -> None:
    def blocks(count: int) -> int:
        net = RefinerNet(body="regnetx_002", width=32, detail=16, outline=8, last_blocks=count, img_size=64)
        return sum(1 for name, _ in net.named_parameters() if name.startswith("body.s4") and "conv2" in name)

    assert blocks(2) * 2 == blocks(4)


@pytest.mark.parametrize("crop", [Crop(30, 40, 94, 104, 1), Crop(0, 10, 100, 60, 1)])
def test_a_refined_mask_is_drawn_at_its_close_up(refiner: Refiner, crop: Crop) -> None:
    """Logits lie over the square whose upper left corner is the part's."""
    height, width = refiner.mask_size
    side = max(crop.size)
    logits = torch.full((height, width), -9.0)
    logits[height // 4 : height // 2, width // 4 : width // 2] = 9.0
    geometry = Geometry((200, 300), (64, 96), (96, 96), ())
    [region] = draw_refined(refiner, Refined(logits, 0.7, crop), geometry)
    near, far = side // 4, side // 2 - 1
    expected = crop.left + near, crop.top + near, crop.left + far, crop.top + far
    assert np.abs(np.array(region.box) - expected).max() <= 1
    assert region.predicted_iou == pytest.approx(0.7)
    assert region.runs.size == (200, 300)
    assert region.crop == crop


@pytest.mark.parametrize("iou", [0.95, 0.7, 0.55, 0.1])
def test_pixels_are_drawn_that_raise_the_iou_to_be_expected(refiner: Refiner, iou: float) -> None:
    """Those whose odds are higher than the predicted IoU; below one half it is taken for that."""
    crop = Crop(0, 0, 256, 256, 1)
    odds = torch.linspace(0.3, 1.3, refiner.mask_size[1])
    logits = odds.log().expand(refiner.mask_size)
    [region] = draw_refined(refiner, Refined(logits, iou, crop), Geometry((256, 256), (96, 96), (96, 96), ()))
    first = np.interp(max(iou, 0.5), odds, (np.arange(len(odds)) + 0.5) * 256 / len(odds))
    assert region.box[0] == pytest.approx(first, abs=2)
    assert region.box[2] == 255


def test_a_close_up_holds_the_masks_of_the_first_pass() -> None:
    """Masks of a square input in which the image fills the upper part only."""
    geometry = Geometry((300, 600), (64, 128), (128, 128), ())
    logits = np.full((32, 32), -20, np.float32)
    logits[4:8, 8:12] = 20  # rows 75 to 150, columns 150 to 225 of the image
    pixels = np.zeros((300, 600, 3), np.uint8)
    crop = Crop(150, 75, 300, 225, 1)
    answer = PromptedRegion(cast("Region", None), logits)
    asked = prompt([(160, 80), (10, 10)], [1, 0])
    shown = RefineTarget(pixels, geometry, asked, first_masks([answer]), (150, 75, 224, 149)).close_up(crop)
    assert shown.pixels.shape == (150, 150, 3)
    assert shown.window == (8, 4, 16, 12)
    assert shown.points.tolist() == [[10, 5]]
    assert len(shown.masks) == MASKS  # the one mask in the place of all
    masks = shrink_masks(shown.masks, shown.window, crop.size, SIDE)
    inside: NDArray[np.bool_] = masks[0] > 127
    assert inside[: SIDE // 2, : SIDE // 2].mean() > 0.95
    assert inside[SIDE // 2 + 1 :].sum() == 0


class Drawing:
    """As a refiner whose mask is what is bright in a close-up, and that notes what it was shown."""

    mask_size = (SIDE // 2, SIDE // 2)

    def __init__(self) -> None:
        self.shown: list[list[RefinerInput]] = []

    def prepare(self, close_up: RefinerInput) -> RefinerInput:
        return close_up

    def refine(self, prepared: Sequence[RefinerInput]) -> tuple[torch.Tensor, torch.Tensor]:
        self.shown.append(list(prepared))
        planes = [shrink_pixels(one.pixels, SIDE)[0, ::2, ::2] > 150 for one in prepared]
        return torch.from_numpy(np.stack(planes)).float() * 18 - 9, torch.arange(1, 1 + len(prepared)) / 10


def bright(left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    return pixels


def subject(pixels: NDArray[np.uint8], box: tuple[int, int, int, int]) -> RefineTarget:
    geometry = Geometry((200, 300), (64, 96), (96, 96), ())
    point = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return RefineTarget(pixels, geometry, prompt([point]), np.zeros((MASKS, 24, 24), np.uint8), box)


def test_each_pass_is_centred_on_the_mask_of_the_one_before() -> None:
    drawing = Drawing()
    objects = [
        subject(bright(100, 60, 160, 90), (110, 65, 130, 85)),
        subject(bright(0, 0, 9, 9), (0, 0, 8, 8)),
    ]
    results = refine_in_passes(cast("Refiner", drawing), objects)
    assert [len(shown) for shown in drawing.shown] == [2, 2, 2]  # all objects together
    sides = [max(shown[0].pixels.shape) for shown in drawing.shown]
    # Of the 21 pixels of the first box, then of what a look saw of the 60.
    assert sides[0] == round(21 * CLOSE_UPS[0])
    assert sides[1] > sides[0]
    assert sides[2] == pytest.approx(60 * CLOSE_UPS[2], abs=6)
    for result, pixels in zip(results, objects, strict=True):
        assert result is not None
        [region] = draw_refined(cast("Refiner", drawing), result, pixels.geometry)
        truth = pixels.pixels[..., 0] > 0
        mask = region.runs.to_mask()
        assert (mask & truth).sum() / (mask | truth).sum() > 0.85
    assert [result.iou for result in results if result] == pytest.approx([0.1, 0.2])


def test_passes_end_when_one_finds_nothing() -> None:
    drawing = Drawing()
    dark, light = (
        subject(bright(0, 0, 0, 0), (50, 50, 80, 80)),
        subject(bright(100, 60, 160, 90), (110, 65, 130, 85)),
    )
    nothing, something = refine_in_passes(cast("Refiner", drawing), [dark, light])
    assert nothing is None
    assert something is not None
    assert [len(shown) for shown in drawing.shown] == [2, 1, 1]
    assert refine_in_passes(cast("Refiner", drawing), [dark]) == [None]
    assert len(drawing.shown) == 4
