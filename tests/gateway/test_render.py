"""Drawing: where pixels change and where they must not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gateway import render
from regionsearch.masks import mask_box
from regionsearch.tensors import mask_to_proto
from regionsearch.v1 import types_pb2

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda shape: arrays(bool, shape))


def find(mask: np.ndarray, group: int = 0) -> render.Overlay:
    left, top, right, bottom = mask_box(mask) or (0, 0, 0, 0)
    box = types_pb2.Box(x_min=left, y_min=top, x_max=right, y_max=bottom)
    return render.Overlay(mask_to_proto(mask), box, group)


def disc(height: int, width: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


@given(masks, st.integers(0, 4))
def test_dilation_is_that_of_a_square(mask: np.ndarray, radius: int) -> None:
    expected = np.zeros_like(mask)
    for row, column in zip(*np.nonzero(mask), strict=True):
        expected[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1] = (
            True
        )
    assert (render.dilate(mask, radius) == expected).all()


@pytest.mark.parametrize("style", ["outline", "boxes", "mask"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (240, 180), (1200, 40)])
def test_drawing_keeps_the_size_and_the_input(style: render.Style, shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 90, np.uint8)
    drawn = render.draw(pixels, [find(np.ones(shape, bool))], style)
    assert drawn.shape == pixels.shape
    assert (pixels == 90).all()


@pytest.mark.parametrize("centre", [(60, 80), (0, 0), (119, 159), (60, 0)])
def test_an_outline_is_a_ring_outside_of_the_mask(centre: tuple[int, int]) -> None:
    pixels = np.zeros((320, 480, 3), np.uint8)
    mask = disc(320, 480, centre, 30)
    drawn = render.draw(pixels, [find(mask)], "outline")
    changed = drawn.any(axis=2)
    assert (changed == render.ring(mask, 2)).all()
    assert not changed[mask].any()
    assert (drawn[changed] == render.PALETTE[0]).all()


def test_boxes_are_frames_outside_of_the_box() -> None:
    pixels = np.zeros((320, 320, 3), np.uint8)
    mask = np.zeros((320, 320), bool)
    mask[100:150, 200:260] = True
    changed = render.draw(pixels, [find(mask)], "boxes").any(axis=2)
    expected = np.zeros_like(mask)
    expected[98:152, 198:262] = True
    assert (changed == (expected & ~mask)).all()


def test_filled_masks_are_tinted_and_the_best_is_on_top() -> None:
    pixels = np.full((100, 100, 3), 200, np.uint8)
    large, small = disc(100, 100, (50, 50), 30), disc(100, 100, (50, 50), 10)
    drawn = render.draw(pixels, [find(small, 1), find(large, 0)], "mask")
    assert (drawn[~large] == 200).all()
    ring = large & ~small
    assert len(np.unique(drawn[ring], axis=0)) == 1
    assert len(np.unique(drawn[small], axis=0)) == 1
    assert (drawn[ring][0] != drawn[small][0]).any()


def test_a_legend_appears_only_for_several_phrases_and_fits_any_size() -> None:
    for shape in ((400, 600, 3), (12, 9, 3)):
        pixels = np.full(shape, 255, np.uint8)
        assert (render.draw(pixels, [], "outline", ["one"]) == 255).all()
        drawn = render.draw(pixels, [], "outline", ["dog", "a very long phrase indeed " * 10])
        assert drawn.shape == shape
        assert (drawn[0, 0] != 255).any()


def test_a_cut_out_is_transparent_outside_of_the_mask() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3)).astype(np.uint8)
    mask = disc(50, 40, (20, 15), 10)
    one = find(mask)
    cut = render.cut_out(pixels, one.mask, one.box)
    left, top, right, bottom = (int(v) for v in mask_box(mask) or ())
    assert cut.shape == (bottom - top, right - left, 4)
    assert (cut[:, :, 3] == mask[top:bottom, left:right] * 255).all()
    assert (cut[:, :, :3] == pixels[top:bottom, left:right]).all()


def test_a_huge_image_is_modified_only_around_the_hit() -> None:
    pixels = np.zeros((1600, 2400, 3), np.uint8)
    mask = np.zeros((1600, 2400), bool)
    mask[1590:, 2390:] = True
    changed = render.draw(pixels, [find(mask)], "outline").any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), columns.min()) == (1580, 2380)
    assert not changed[mask].any()


def test_a_legend_is_never_larger_than_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 long phrases on an image of 50 megapixels would be three times the image."""
    made: list[tuple[int, int]] = []
    new = render.Image.new

    def noted(mode: str, size: tuple[int, int], *arguments: object) -> object:
        made.append(size)
        return new(mode, size, *arguments)

    monkeypatch.setattr(render.Image, "new", noted)
    drawn = render.draw(np.zeros((400, 500, 3), np.uint8), [], "outline", [f"{i} " * 20 for i in range(64)])
    assert drawn.shape == (400, 500, 3)
    assert made
    assert all(width <= 500 and height <= 400 for width, height in made)
