"""Masks are looked at where they are, on a device or not, with one result."""

import numpy as np
import pytest
import torch

from services.segmenter.masks import count_on_device, count_on_host


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (40, 7)])
@pytest.mark.parametrize("shift", [-9.0, -2.0, 0.0, 9.0])  # from no pixel to all
def test_masks_measure_the_same_on_host_and_device(shape, shift):
    values = torch.from_numpy(np.random.default_rng(1).normal(shift, 1, (3, *shape)).astype(np.float32))
    values[:, 0, 0] = 0.5  # just on a threshold
    for threshold, offset in ((0.0, 1.0), (0.5, 0.0)):
        host, device = (count(values, threshold, offset) for count in (count_on_host, count_on_device))
        assert torch.equal(host, device)
        counts = host[:, :16].numpy().view(np.int64)
        for mask, (raised, lowered) in zip(values, counts, strict=True):
            assert (raised, lowered) == ((mask > threshold + offset).sum(), (mask > threshold - offset).sum())
