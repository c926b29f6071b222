"""Clicks that mean nothing."""

import numpy as np
import pytest

from regionsearch.errors import RegionSearchError
from regionsearch.masks import encode_rle
from regionsearch.prompts import select_by_points

WHOLE = encode_rle(np.ones((4, 6), np.bool_))


@pytest.mark.parametrize("label", [-1, 2, 99])
def test_an_unknown_label_is_not_taken_for_background(label: int) -> None:
    with pytest.raises(RegionSearchError, match="neither") as caught:
        select_by_points([WHOLE], (4, 6), [(1, 1), (2, 2)], [1, label])
    assert caught.value.field == "points"


@pytest.mark.parametrize("point", [(6, 1), (-0.1, 1), (1, 4), (np.nan, 1), (1e300, 1), (np.inf, -np.inf)])
def test_points_outside_the_image_are_in_no_region(point: tuple[float, float]) -> None:
    assert select_by_points([WHOLE], (4, 6), [point], [1]) == []
    assert select_by_points([WHOLE], (4, 6), [(5.9, 3.9)], [1]) == [0]
