import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from evaluation import rle


def test_the_innermost_point_is_the_middle_of_a_square_and_of_a_bar():
    mask = np.zeros((20, 30), dtype=bool)
    mask[3:8, 10:15] = True
    assert rle.innermost_point(mask) == (12, 5)


def test_a_ring_is_clicked_on_its_body_not_in_its_hole():
    y, x = np.mgrid[:41, :41]
    radius = np.hypot(x - 20, y - 20)
    ring = (radius < 19) & (radius > 9)
    px, py = rle.innermost_point(ring)
    assert ring[py, px]


def test_the_innermost_point_is_as_deep_as_any(rng):
    for _ in range(10):
        mask = np.zeros((40, 50), dtype=bool)
        for _ in range(6):
            y, x = rng.integers(0, 40), rng.integers(0, 50)
            mask[max(0, y - 9) : y + 9, max(0, x - 7) : x + 7] = True
        depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        x, y = rle.innermost_point(mask)
        assert depth[y, x] == pytest.approx(depth.max())


def test_an_empty_mask_has_no_innermost_point():
    with pytest.raises(ValueError, match="empty"):
        rle.innermost_point(np.zeros((4, 4), dtype=bool))


def test_overlaps_of_packed_masks_are_those_of_their_pixels(rng):
    planes = [rng.random((13, 17)) < 0.5 for _ in range(4)]
    packed = [rle.encode(plane) for plane in planes]
    expected = [[(a & b).sum() / (a | b).sum() for b in planes[:2]] for a in planes]
    assert np.allclose(rle.iou(packed, packed[:2]), expected)
    assert rle.iou([], packed).shape == (0, 4)
    assert (rle.decode(rle.union(packed[:3])) == np.any(planes[:3], axis=0)).all()
    assert rle.area(packed[0]) == planes[0].sum()


def test_a_rectangle_has_half_open_edges_and_is_cut_at_the_image():
    assert rle.area(rle.rectangle(10, 10, (2, 3, 5, 7))) == 12
    assert rle.area(rle.rectangle(10, 10, (-5, -5, 100, 100))) == 100
