"""Prompts for models without a mask decoder: each selects among the regions that the model has proposed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.masks import RunLengthMask
from regionsearch.prompts import merge_masks, select_by_prompt
from regionsearch.v1 import segment_pb2
from services.segmenter.backends.base import Size
from services.segmenter.everything import Region
from services.segmenter.prompts import NO_LOGITS, Prompt, PromptedRegion


def check_choosable(request: segment_pb2.SegmentRequest, variant: str) -> None:
    """Checks that a request does not need a mask decoder.

    Raises:
        RegionSearchError: FAILED_PRECONDITION, naming the field.
    """
    asked = {
        f"prompts.prompts[{index}].{prompt.WhichOneof('prior')}": "give points or a box instead"
        for index, prompt in enumerate(request.prompts.prompts)
        if prompt.WhichOneof("prior")
    }
    if request.prompts.zoom:
        asked["prompts.zoom"] = "leave it out"
    if request.output.low_res_logits:
        asked["output.low_res_logits"] = "leave it out"
    for field, remedy in asked.items():
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"{field} needs a mask decoder, which {variant} does not have: a prompt chooses among its "
            f"regions; {remedy}",
            field=field,
        )


def choose_regions(regions: Sequence[Region], prompts: Sequence[Prompt]) -> list[list[PromptedRegion]]:
    """Selects the region that each prompt means, or the union of several; none if nothing matches.

    Args:
        regions: All regions of the image.
        prompts: Points and boxes, see `regionsearch.prompts.select_by_prompt`.
    """
    if not regions:
        return [[] for _ in prompts]
    size = regions[0].runs.size
    masks, areas = [region.runs.coco_rle() for region in regions], [region.area for region in regions]
    boxes = np.array([region.box for region in regions]) + np.array([0, 0, 1, 1])
    answers = []
    for prompt in prompts:
        chosen = select_by_prompt(masks, boxes, areas, size, prompt.points, prompt.labels, prompt.box)
        found = [regions[index] for index in chosen]
        answers.append([PromptedRegion(_joined(found, size), NO_LOGITS)] if found else [])
    return answers


def _joined(regions: Sequence[Region], size: Size) -> Region:
    if len(regions) == 1:
        return regions[0]
    runs = RunLengthMask.from_coco_rle(merge_masks([one.runs.coco_rle() for one in regions], size), *size)
    weakest = min(regions, key=lambda region: region.rank)
    return Region(runs, runs.box, weakest.predicted_iou, weakest.stability_score, None, weakest.crop)
