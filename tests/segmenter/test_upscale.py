"""Windowed upscaling against torch's interpolation of the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.segmenter.backends.base import ResizeStep
from services.segmenter.upscale import Upscaler, Window

sides = st.integers(1, 90)


def reference(logits: Tensor, steps: tuple[ResizeStep, ...]) -> Tensor:
    values = logits[None, None]
    for step in steps:
        values = F.interpolate(values, step.size, mode="bilinear", align_corners=False)
        values = values[..., : step.crop[0], : step.crop[1]]
    return values[0, 0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, tuple[ResizeStep, ...], Window]:
    low = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    padded = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    crop = draw(st.integers(1, padded[0])), draw(st.integers(1, padded[1]))
    final = draw(sides), draw(sides)
    steps = (ResizeStep(padded, crop), ResizeStep(final, final))[draw(st.integers(0, 1)) :]
    torch.manual_seed(draw(st.integers(0, 1000)))
    top, left = draw(st.integers(0, final[0] - 1)), draw(st.integers(0, final[1] - 1))
    bottom, right = draw(st.integers(top + 1, final[0])), draw(st.integers(left + 1, final[1]))
    return torch.randn(low) * 5, steps, Window(top, bottom, left, right)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_any_window_has_torchs_values(case: tuple[Tensor, tuple[ResizeStep, ...], Window]) -> None:
    logits, steps, window = case
    upscaler = Upscaler((logits.shape[0], logits.shape[1]), steps, torch.device("cpu"))
    ours = upscaler.evaluate(upscaler.cut(logits, window), window)
    expected = reference(logits, steps)[window.top : window.bottom, window.left : window.right]
    # Torch has another kernel, with another rounding, for maps of a few pixels.
    torch.testing.assert_close(ours, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("final", [(540, 720), (333, 120), (1200, 1600)])
def test_maps_of_real_size_are_equal_to_the_last_bit(final: tuple[int, int]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(128, 128) * 5
    steps = (ResizeStep((256, 256), (192, 256)), ResizeStep(final, final))
    whole = Window(0, final[0], 0, final[1])
    upscaler = Upscaler((128, 128), steps, torch.device("cpu"))
    assert torch.equal(upscaler.evaluate(upscaler.cut(logits, whole), whole), reference(logits, steps))


@settings(max_examples=150, deadline=None)
@given(cases(), st.floats(-8, 8))
def test_nothing_outside_of_the_support_exceeds_the_threshold(
    case: tuple[Tensor, tuple[ResizeStep, ...], Window], threshold: float
) -> None:
    logits, steps, _ = case
    upscaler = Upscaler((logits.shape[0], logits.shape[1]), steps, torch.device("cpu"))
    (window,) = upscaler.support(logits[None], threshold)
    outside = reference(logits, steps) > threshold
    outside[window.top : window.bottom, window.left : window.right] = False
    assert not outside.any()


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 400))
def test_strips_tile_the_window(height: int, width: int, max_pixels: int) -> None:
    window = Window(3, 3 + height, 7, 7 + width)
    strips = list(window.strips(max_pixels))
    assert [strip.left for strip in strips] == [7, *(strip.right for strip in strips[:-1])]
    assert strips[-1].right == window.right
    assert all((strip.top, strip.bottom) == (3, 3 + height) for strip in strips)
    assert all(strip.area <= max(max_pixels, height) for strip in strips)
