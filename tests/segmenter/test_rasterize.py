"""Masks are looked at where they are, on a device or not, with one result."""

import numpy as np
import pytest
import torch

from services.segmenter.masks.rasterize import count_on_device, count_on_host


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (40, 7)])
@pytest.mark.parametrize("shift", [-9.0, -2.0, 0.0, 9.0])  # from no pixel to all
def test_masks_measure_the_same_on_host_and_device(shape, shift):
    values = torch.from_numpy(np.random.default_rng(1).normal(shift, 1, shape).astype(np.float32))
    values.flatten()[0] = 0.5  # just on a threshold
    for threshold, offset in ((0.0, 1.0), (0.5, 0.0)):
        host, device = count_on_host(values, threshold, offset), count_on_device(values, threshold, offset)
        assert host[:2] == device[:2]
        for ours, theirs in zip(host[2:], device[2:], strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert theirs.dtype == np.bool_
