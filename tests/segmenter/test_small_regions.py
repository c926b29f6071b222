"""Holes and islands against segment_anything's version, which looks at whole images."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from segment_anything.utils.amg import remove_small_regions

from regionsearch.masks import BoolMask, RunLengthMask, mask_box
from services.segmenter.masks import remove_small_parts


@st.composite
def images(draw: st.DrawFn) -> BoolMask:
    """A coarse random mask, enlarged, somewhere in an image that it may touch the edges of."""
    coarse = draw(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
    scale = draw(st.integers(1, 3))
    margins = [draw(st.sampled_from([0, 1, 2, 7, 30])) for _ in range(4)]
    mask = np.pad(coarse.repeat(scale, 0).repeat(scale, 1), (margins[:2], margins[2:]))
    mask[margins[0], margins[2]] = True  # everything mode has cleaned no empty mask yet
    return mask


@settings(max_examples=300, deadline=None)
@given(images(), st.integers(1, 60))
def test_removing_small_parts_matches_the_reference(mask: BoolMask, min_area: int) -> None:
    expected, filled = remove_small_regions(mask, min_area, mode="holes")
    expected, dropped = remove_small_regions(expected, min_area, mode="islands")
    runs = RunLengthMask.from_windows((mask.shape[0], mask.shape[1]), [(mask, 0, 0)])
    x_min, y_min, x_max, y_max = (int(edge) for edge in mask_box(mask) or (0, 0, 1, 1))
    cleaned = remove_small_parts(runs, (x_min, y_min, x_max - 1, y_max - 1), min_area)
    if cleaned is None:
        assert not filled
        assert not dropped
        return
    np.testing.assert_array_equal(cleaned[0].to_mask(), expected)
    left, top, right, bottom = cleaned[1]
    assert (left, top, right + 1, bottom + 1) == mask_box(expected)
