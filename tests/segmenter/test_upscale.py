"""Windowed upscaling against torch's interpolation of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.segmenter.backends.base import ResizeStep
from services.segmenter.masks import PassCost, plan_tiles
from services.segmenter.upscale import Tile, Upscaler

sides = st.integers(1, 90)


def reference(logits: Tensor, steps: tuple[ResizeStep, ...]) -> Tensor:
    values = logits[None, None]
    for step in steps:
        values = F.interpolate(values, step.size, mode="bilinear", align_corners=False)
        values = values[..., : step.crop[0], : step.crop[1]]
    return values[0, 0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, tuple[ResizeStep, ...], Tile]:
    """Three masks, and two windows of one shape in two of them."""
    low = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    padded = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    crop = draw(st.integers(1, padded[0])), draw(st.integers(1, padded[1]))
    final = draw(sides), draw(sides)
    steps = (ResizeStep(padded, crop), ResizeStep(final, final))[draw(st.integers(0, 1)) :]
    torch.manual_seed(draw(st.integers(0, 1000)))
    height, width = draw(st.integers(1, final[0])), draw(st.integers(1, final[1]))
    tops = draw(st.lists(st.integers(0, final[0] - height), min_size=2, max_size=2))
    lefts = draw(st.lists(st.integers(0, final[1] - width), min_size=2, max_size=2))
    tile = Tile(np.array([2, 0]), np.array(tops), np.array(lefts), height, width)
    return torch.randn(3, *low) * 5, steps, tile


@settings(max_examples=150, deadline=None)
@given(cases())
def test_any_windows_have_torchs_values(case: tuple[Tensor, tuple[ResizeStep, ...], Tile]) -> None:
    logits, steps, tile = case
    upscaler = Upscaler((logits.shape[1], logits.shape[2]), steps, torch.device("cpu"))
    found = upscaler.evaluate(logits, tile)
    for ours, mask, top, left in zip(found, tile.masks, tile.tops, tile.lefts, strict=True):
        expected = reference(logits[mask], steps)[top : top + tile.height, left : left + tile.width]
        # Torch has another kernel, with another rounding, for maps of a few pixels.
        torch.testing.assert_close(ours, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("final", [(540, 720), (333, 120), (1200, 1600)])
def test_maps_of_real_size_are_equal_to_the_last_bit(final: tuple[int, int]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 128, 128) * 5
    steps = (ResizeStep((256, 256), (192, 256)), ResizeStep(final, final))
    whole = Tile(np.arange(2), np.zeros(2, int), np.zeros(2, int), *final)
    found = Upscaler((128, 128), steps, torch.device("cpu")).evaluate(logits, whole)
    assert torch.equal(found, torch.stack([reference(mask, steps) for mask in logits]))


@settings(max_examples=150, deadline=None)
@given(cases(), st.floats(-8, 8))
def test_nothing_outside_of_the_support_exceeds_the_threshold(
    case: tuple[Tensor, tuple[ResizeStep, ...], Tile], threshold: float
) -> None:
    logits, steps, _ = case
    upscaler = Upscaler((logits.shape[1], logits.shape[2]), steps, torch.device("cpu"))
    for mask, (top, bottom, left, right) in zip(logits, upscaler.support(logits, threshold), strict=True):
        outside = reference(mask, steps) > threshold
        outside[top:bottom, left:right] = False
        assert not outside.any()


@given(
    st.lists(st.tuples(*[st.integers(0, 40), st.integers(0, 40)] * 2), min_size=1, max_size=12),
    st.integers(1, 900),
    st.integers(0, 900),
)
def test_tiles_cover_every_window_and_stay_within_a_pass(
    edges: list[tuple[int, ...]], pixels: int, overhead: int
) -> None:
    windows = np.array([[*sorted(each[:2]), *sorted(each[2:])] for each in edges])
    covered = np.zeros((len(windows), 40, 40), int)
    for tile in plan_tiles(windows, (40, 40), PassCost(pixels, overhead)):
        assert len(tile.masks) * tile.height * tile.width <= pixels or len(tile.masks) * tile.width == 1
        for mask, top, left in zip(tile.masks, tile.tops, tile.lefts, strict=True):
            assert top >= 0 <= left
            assert top + tile.height <= 40 >= left + tile.width
            covered[mask, top : top + tile.height, left : left + tile.width] += 1
    assert covered.max() <= 1  # a pixel is counted once
    for shown, (top, bottom, left, right) in zip(covered, windows, strict=True):
        assert shown[top:bottom, left:right].all()
