from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from regionsearch.masks import BoolMask, RunLengthMask
from services.segmenter.backends.base import Embedding, Geometry
from services.segmenter.regions import cover, pool_features

runs = RunLengthMask.from_mask
GEOMETRY = Geometry(image_size=(40, 50), input_size=(80, 100), padded_size=(100, 100), steps=())


def mask_at(top: int, left: int, height: int, width: int) -> BoolMask:
    mask = np.zeros((40, 50), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_cells_share_a_region_by_pixels() -> None:
    shares = cover(runs(mask_at(5, 0, 10, 5)), GEOMETRY, (10, 10))  # a cell is 5 x 5 pixels
    assert shares[1, 0] == shares[2, 0] == 0.5
    assert shares.sum() == 1
    quarter = cover(runs(mask_at(4, 4, 2, 2)), GEOMETRY, (10, 10))
    assert (quarter[:2, :2] == 0.25).all()


def test_features_are_means_over_the_mask_with_length_one() -> None:
    maps = torch.rand(7, 10, 10)
    whole = Embedding((maps,), GEOMETRY)
    one_pixel, cells = runs(mask_at(39, 49, 1, 1)), runs(mask_at(5, 0, 10, 5))
    pooled = pool_features(whole, [one_pixel, cells])
    expected = torch.stack([maps[:, 7, 9], (maps[:, 1, 0] + maps[:, 2, 0]) / 2])
    expected = torch.nn.functional.normalize(expected, dim=1)
    np.testing.assert_allclose(pooled, expected.numpy(), atol=1e-6)


def test_no_regions_have_no_features() -> None:
    assert pool_features(Embedding((torch.rand(7, 10, 10),), GEOMETRY), []).shape == (0, 7)


def test_a_level_names_the_map() -> None:
    coarse, fine = torch.rand(7, 10, 10), torch.rand(3, 20, 20)
    whole = Embedding((coarse, fine), GEOMETRY)
    [pooled] = pool_features(whole, [runs(mask_at(0, 0, 1, 1))], level=1)
    expected = torch.nn.functional.normalize(fine[:, 0, 0], dim=0)
    np.testing.assert_allclose(pooled, expected.numpy(), atol=1e-6)


def test_cells_are_found_where_the_image_begins_inside_the_input() -> None:
    """A letterboxed image, 25 pixels below the top of the input."""
    letterboxed = replace(GEOMETRY, input_size=(50, 100), corner=(25, 0), image_size=(25, 50))
    mask = np.zeros((25, 50), bool)
    mask[0, 0] = True
    assert cover(runs(mask), letterboxed, (20, 20))[5, 0] == 1.0
