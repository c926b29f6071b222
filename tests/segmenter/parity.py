"""What "the answer of SamAutomaticMaskGenerator" means, exactly.

The published decoder multiplies the feature map of every prompt with its projections; ours multiplies the
few tokens instead (see `sam_decoder`), which is where its speed comes from. That is the same sum in another
order, so that logits differ in their last bits: by up to 3.4e-5, of logits between -26 and +7 (bundled
model, 256 points on a photograph and on a scene). The published generator differs from itself by as much,
2.5e-5, when it gets its points one by one instead of 64 at a time: below that there is no answer to agree
with.

A pixel can only change sides if its logit is that near to the threshold. So this is what is demanded, with
the bound `LOGIT`: every pixel whose reference logit is further than it from the threshold is the same; the
stability score is equal unless there are such pixels at its two thresholds, and then lies where they can
move it; predicted IoUs differ by less than `IOU`; how many regions there are, in which order, from which
point and crop, is equal.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator
from torch import Tensor

from services.segmenter.backends.sam import SamBackend
from services.segmenter.everything import Region, segment_everything
from services.segmenter.options import EverythingOptions

LOGIT = 1e-4  # three times what was seen
IOU = 5e-6


class Reference(SamAutomaticMaskGenerator):  # type: ignore[misc]
    """The published generator; remembers the logits that its masks were made of."""

    def __init__(self, backend: SamBackend, options: EverythingOptions, points_per_batch: int = 64) -> None:
        super().__init__(backend.model, **asdict(options), points_per_batch=points_per_batch)
        self._offset = options.stability_score_offset
        self._threshold = backend.mask_threshold
        self._seen: dict[tuple[Any, ...], tuple[NDArray[Any], NDArray[Any]]] = {}

    def _process_batch(
        self, points: NDArray[Any], im_size: Any, crop_box: list[int], orig_size: Any
    ) -> dict[str, Any]:
        predict = self.predictor.predict_torch

        def remember(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
            masks, ious, low = predict(*args, **kwargs)
            for point, logits, qualities in zip(points, masks.numpy(), ious.numpy(), strict=True):
                place = point[0] + crop_box[0], point[1] + crop_box[1], *crop_box
                self._seen[place] = logits, qualities
            return masks, ious, low

        self.predictor.predict_torch = remember
        try:
            data: dict[str, Any] = super()._process_batch(points, im_size, crop_box, orig_size)
        finally:
            self.predictor.predict_torch = predict
        return data

    def logits(self, record: dict[str, Any]) -> NDArray[np.float32]:
        """Full-resolution logits of a record's crop, before parts were removed."""
        left, top, width, height = record["crop_box"]
        (x, y) = record["point_coords"][0]
        logits, qualities = self._seen[x, y, left, top, left + width, top + height]
        found: NDArray[np.float32] = logits[
            np.flatnonzero(qualities == np.float32(record["predicted_iou"]))[0]
        ]
        return found

    def check(self, region: Region, record: dict[str, Any]) -> None:
        """Demands what the module's description says of one region."""
        left, top, right, bottom = region.box
        crop = region.crop
        assert [list(region.point or ())] == record["point_coords"]
        assert [crop.left, crop.top, crop.size[1], crop.size[0]] == record["crop_box"]
        assert region.predicted_iou == pytest.approx(record["predicted_iou"], rel=0, abs=IOU)

        logits = self.logits(record)
        tied = np.zeros(region.runs.size, bool)
        tied[crop.top : crop.bottom, crop.left : crop.right] = abs(logits - self._threshold) <= LOGIT
        different = region.runs.to_mask() != record["segmentation"]
        assert not (different & ~tied).any()
        if not different.any():
            assert [left, top, right - left, bottom - top] == record["bbox"]
            assert region.area == record["area"]

        high, low = (logits - (self._threshold + shift) for shift in (self._offset, -self._offset))
        if (abs(high) > LOGIT).all() and (abs(low) > LOGIT).all():
            np.testing.assert_equal(region.stability_score, record["stability_score"])
        else:
            least = (high > LOGIT).sum() / max(1, (low > -LOGIT).sum())
            most = (high > -LOGIT).sum() / max(1, (low > LOGIT).sum())
            for score in (region.stability_score, record["stability_score"]):
                assert least - 1e-7 <= score <= most + 1e-7


def assert_parity(
    backend: SamBackend,
    image: NDArray[np.uint8],
    options: EverythingOptions,
    points_per_batch: int = 64,
) -> list[Region]:
    """Demands the reference's answer; returns it."""
    reference = Reference(backend, options, points_per_batch)
    expected = reference.generate(image)
    regions = segment_everything(backend, image, options)
    assert len(regions) == len(expected)
    for region, record in zip(regions, expected, strict=True):
        reference.check(region, record)
    return regions
