"""Everything mode: the answer of ``SamAutomaticMaskGenerator``, with less work.

The published generator enlarges every candidate to the whole image before it checks its quality, and encodes
it before it removes duplicates. Here the order is: quality, then measuring inside the mask's window, then
duplicates, and run lengths only for the regions that remain. The filters, their order and the order of the
results are unchanged.

The steps are functions of their own, so that a scheduler can run other work in between. Only
:func:`decode_points` runs the model, over any slice of the points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops.boxes import batched_nms

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images import Pixels
from regionsearch.masks import PixelBox, RunLengthMask
from services.segmenter.backends.base import (
    Backend,
    DecodedMasks,
    Embedding,
    PromptBatch,
    Proposals,
    Proposer,
    Size,
)
from services.segmenter.grid import Crop, grid_points, plan_crops
from services.segmenter.masks import draw, measure, remove_small_parts
from services.segmenter.options import EverythingOptions, Mode
from services.segmenter.upscale import Indices, upscaler_for
from services.torch_runtime.devices import to_device

# A box this close to the edge of a crop, but not of the image, is treated as a part of a larger object.
_CROP_EDGE_PIXELS = 20.0
# Predicted IoU from which a box has found the object: at .8 its mask covers things next to it now and then.
_SURE_IOU = 0.9
_BOX_MARGIN = 0.25  # of a box's sides: how far the mask of a box may reach beyond it


@dataclass(frozen=True)
class Region:
    """One region.

    Attributes:
        runs: The mask.
        box: (left, top, right, bottom) as the reference counts it: the indices of the outermost pixels, so
            that a box around one pixel has no width.
        predicted_iou: The model's own estimate.
        stability_score: IoU of the masks at the threshold raised and lowered.
        point: The point (x, y) that produced it, or the center of the box that did; None for prompts.
        crop: The crop it was found in.
    """

    runs: RunLengthMask
    box: PixelBox
    predicted_iou: float
    stability_score: float
    point: tuple[float, float] | None
    crop: Crop

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.runs.area

    @property
    def rank(self) -> tuple[float, int]:
        """Sort key, larger is better: predicted IoU times stability, then the area.

        Empty masks rank below all others.
        """
        return (self.predicted_iou * self.stability_score if self.area else -math.inf), self.area


@dataclass(frozen=True)
class Candidate:
    """A mask that passed the filters, still at low resolution; box and point are in pixels of its crop.

    Attributes:
        logits: float32 (h, w), on the device; a view of the logits of its batch.
        box: Inclusive edges; zeros for an empty mask, as in the reference.
        clip: Whether drawing drops what lies outside of the box.
    """

    logits: Tensor
    box: PixelBox
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]
    clip: bool

    @property
    def nbytes(self) -> int:
        """Memory of the mask."""
        return self.logits.nbytes


def segment_everything(
    backend: Backend, image: Pixels, options: EverythingOptions, mode: Mode = Mode.GRID
) -> list[Region]:
    """Runs all steps of everything mode on the calling thread.

    Args:
        backend: The model.
        image: uint8 RGB (height, width, 3).
        options: Checked options.
        mode: Where to look.

    Returns:
        The regions, in the order of the reference.
    """
    size = image.shape[0], image.shape[1]
    check_mode(backend, mode)
    found: list[Region] = []
    for crop in plan_crops(size, options):
        pixels = crop.cut(image)
        (embedding,) = backend.encode([backend.prepare(pixels)])
        proposed: Proposals = (grid_points(crop, options),)
        if mode is Mode.PROPOSALS:
            proposer = find_proposer(backend)
            proposed = proposer.propose(embedding, proposer.prepare(pixels), options)
        if isinstance(proposed, DecodedMasks):
            candidates = filter_survivors(backend, embedding, crop, proposed, size, options)
        else:
            every: list[Candidate] = []
            for prompts in filter(len, proposed):
                asked = unanswered(backend, embedding, prompts, every)
                if len(asked):
                    masks = decode_points(backend, embedding, asked, options)
                    every += filter_survivors(backend, embedding, crop, masks, size, options)
            candidates = deduplicate(every, options)
        found += draw_candidates(backend, embedding, crop, candidates, size)
    return finish_image(found, options)


def check_mode(backend: Backend, mode: Mode) -> None:
    """Checks that the model supports a mode.

    Raises:
        RegionSearchError: FAILED_PRECONDITION.
    """
    if mode is Mode.PROPOSALS:
        find_proposer(backend)
    elif backend.choices is not None:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"everything.mode is grid, and {backend.identity.variant} cannot be asked about points; ask for "
            "proposals",
            field="everything.mode",
        )


def find_proposer(backend: Backend) -> Proposer:
    """Returns the model's proposer.

    Raises:
        RegionSearchError: FAILED_PRECONDITION when the model does not have one.
    """
    if backend.proposer is None:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"everything.mode is proposals, and {backend.identity.variant} has no proposer; ask for grid, or "
            "serve a model that has one",
            field="everything.mode",
        )
    return backend.proposer


def unanswered(
    backend: Backend, embedding: Embedding, prompts: NDArray[np.float64], found: Sequence[Candidate]
) -> NDArray[np.float64]:
    """The prompts of a proposer without the points that lie in a sure mask of what it has found before."""
    sure = [candidate.logits for candidate in found if candidate.predicted_iou >= _SURE_IOU]
    if prompts.shape[1] != 2 or not sure:
        return prompts
    geometry, (height, width) = embedding.geometry, backend.mask_size
    scale = np.array([width, height]) / geometry.padded_size[::-1]
    places = (geometry.to_input(prompts) * scale).astype(np.int64).clip(0, [width - 1, height - 1])
    cells = to_device(torch.from_numpy(places[:, 1] * width + places[:, 0]), backend.device)
    inside = torch.stack(sure).flatten(1).index_select(1, cells) > backend.mask_threshold
    left: NDArray[np.float64] = prompts[~inside.any(dim=0).cpu().numpy()]
    return left


@torch.inference_mode()
def decode_points(
    backend: Backend, embedding: Embedding, points: NDArray[np.float64], options: EverythingOptions
) -> DecodedMasks:
    """Decodes three masks per point, or one per box, and keeps those whose predicted IoU is high enough.

    Of the mask of a box only what lies near it is looked at. Runs on the device.

    Args:
        backend: The model.
        embedding: The crop's embedding.
        points: (n, 2) as x, y in pixels of the crop, or boxes (n, 4) as x_min, y_min, x_max, y_max.
        options: Thresholds.

    Returns:
        Masks in the order of the points; those of one point in the decoder's order.
    """
    geometry, are_boxes = embedding.geometry, points.shape[1] == 4
    looked_at = np.array([[0.0, 0.0, *geometry.image_size[::-1]]])
    if are_boxes:
        margin = _BOX_MARGIN * np.tile(points[:, 2:] - points[:, :2], 2) * (-1, -1, 1, 1)
        looked_at = (points + margin).clip(0, np.tile(looked_at[0, 2:], 2))
    windows = np.broadcast_to(geometry.to_logits(looked_at, backend.mask_size), (len(points), 4))
    logits, scores, places, limits = [], [], [], []
    for start in range(0, len(points), backend.decode_batch):
        batch = points[start : start + backend.decode_batch].reshape(-1, points.shape[1] // 2, 2)
        coords = torch.from_numpy(geometry.to_input(batch))
        if not are_boxes:
            labels = torch.ones(coords.shape[:2], dtype=torch.int32)
            prompts, columns_asked = PromptBatch(points=coords, labels=labels), slice(1, None)
        else:  # a box is unambiguous
            prompts, columns_asked = PromptBatch(boxes=coords.float().flatten(1)), slice(0, 1)
        decoding = backend.decode(embedding, prompts)
        # Selecting on the host makes the number of masks known there; nothing else waits for the device.
        ious = decoding.ious[:, columns_asked].cpu().numpy()
        rows, columns = (
            ious > (options.pred_iou_thresh if options.pred_iou_thresh > 0 else -np.inf)
        ).nonzero()
        chosen = torch.from_numpy(columns + columns_asked.start)
        logits.append(decoding.logits(torch.from_numpy(rows), chosen, windows[start : start + len(batch)]))
        scores.append(ious[rows, columns])
        places.append(batch.mean(axis=1)[rows])
        if are_boxes:
            limits.append(looked_at[start + rows].round().astype(np.int64)[:, [1, 3, 0, 2]])
    return DecodedMasks(
        torch.cat(logits),
        np.concatenate(scores),
        np.concatenate(places),
        np.concatenate(limits) if are_boxes else None,
    )


@torch.inference_mode()
def filter_survivors(
    backend: Backend,
    embedding: Embedding,
    crop: Crop,
    survivors: DecodedMasks,
    image_size: Size,
    options: EverythingOptions,
) -> list[Candidate]:
    """Keeps the masks that are stable at full resolution and not cut off by their crop."""
    upscaler = upscaler_for(backend.mask_size, embedding.geometry.steps, backend.device)
    offset, limits = options.stability_score_offset, survivors.limits
    found = measure(upscaler, survivors.logits, backend.mask_threshold, offset, limits)
    passed = ~_near_crop_edge(found.boxes, crop, image_size)
    if limits is not None:  # with prompts, the reference keeps empty masks
        passed &= ~found.empty
    if options.stability_score_thresh > 0:
        # The reference compares in single precision.
        passed &= found.stability >= np.float32(options.stability_score_thresh)
    (kept,) = passed.nonzero()
    logits = survivors.logits
    if len(kept) < len(passed):  # a view would keep the others alive
        logits = logits.index_select(0, to_device(torch.from_numpy(kept), logits.device))
    return [
        Candidate(mask, (left, top, right, bottom), score, stability, (x, y), limits is not None)
        for mask, (left, top, right, bottom), score, stability, (x, y) in zip(
            logits.unbind(),
            found.boxes[kept].tolist(),
            survivors.scores[kept].tolist(),
            found.stability[kept].tolist(),
            survivors.points[kept].tolist(),
            strict=True,
        )
    ]


def _near_crop_edge(boxes: Indices, crop: Crop, image_size: Size) -> NDArray[np.bool_]:
    edges = boxes + np.array([crop.left, crop.top, crop.left, crop.top])
    of_crop = np.abs(edges - [crop.left, crop.top, crop.right, crop.bottom]) <= _CROP_EDGE_PIXELS
    of_image = np.abs(edges - [0, 0, image_size[1], image_size[0]]) <= _CROP_EDGE_PIXELS
    near: NDArray[np.bool_] = (of_crop & ~of_image).any(axis=1)
    return near


def deduplicate(candidates: Sequence[Candidate], options: EverythingOptions) -> list[Candidate]:
    """Drops duplicates among the candidates of one crop; returns the rest, best first."""
    boxes = [candidate.box for candidate in candidates]
    scores = [candidate.predicted_iou for candidate in candidates]
    return [candidates[index] for index in box_nms(boxes, scores, options.box_nms_thresh)]


@torch.inference_mode()
def draw_candidates(
    backend: Backend, embedding: Embedding, crop: Crop, candidates: Sequence[Candidate], image_size: Size
) -> list[Region]:
    """Draws the candidates of one crop at full resolution."""
    if not candidates:
        return []
    upscaler = upscaler_for(backend.mask_size, embedding.geometry.steps, backend.device)
    logits = torch.stack([candidate.logits for candidate in candidates])
    boxes = np.array([candidate.box for candidate in candidates])
    clip = any(candidate.clip for candidate in candidates)  # of the others nothing lies outside of the box
    masks = draw(upscaler, logits, boxes, backend.mask_threshold, crop, image_size, clip)
    return [
        Region(
            runs=runs,
            box=crop.moved(candidate.box),
            predicted_iou=candidate.predicted_iou,
            stability_score=candidate.stability_score,
            point=(candidate.point[0] + crop.left, candidate.point[1] + crop.top),
            crop=crop,
        )
        for candidate, runs in zip(candidates, masks, strict=True)
    ]


def finish_image(regions: list[Region], options: EverythingOptions) -> list[Region]:
    """Drops duplicates across crops, then removes small holes and islands."""
    if options.crop_n_layers > 0:
        # Prefer smaller crops: they show more detail.
        scores = [1 / (region.crop.size[0] * region.crop.size[1]) for region in regions]
        keep = box_nms([region.box for region in regions], scores, options.crop_nms_thresh)
        regions = [regions[index] for index in keep]
    if options.min_mask_region_area > 0:
        nms_thresh = max(options.box_nms_thresh, options.crop_nms_thresh)
        regions = _clean(regions, options.min_mask_region_area, nms_thresh)
    return regions


def _clean(regions: list[Region], min_area: int, nms_thresh: float) -> list[Region]:
    cleaned = [remove_small_parts(region.runs, region.box, min_area) for region in regions]
    # Prefer masks that needed no cleaning.
    scores = [float(changed is None) for changed in cleaned]
    boxes = [changed[1] if changed else region.box for region, changed in zip(regions, cleaned, strict=True)]
    kept = []
    for index in box_nms(boxes, scores, nms_thresh):
        region, changed = regions[index], cleaned[index]
        if changed:
            runs, box = changed
            region = Region(
                runs, box, region.predicted_iou, region.stability_score, region.point, region.crop
            )
        kept.append(region)
    return kept


def box_nms(boxes: Sequence[PixelBox], scores: Sequence[float], iou_thresh: float) -> list[int]:
    """Greedy non-maximum suppression over boxes; indices of the kept ones, best score first."""
    if not boxes:
        return []
    tensor = torch.tensor(boxes, dtype=torch.float32)
    kept = batched_nms(tensor, torch.tensor(scores, dtype=torch.float32), torch.zeros(len(boxes)), iou_thresh)
    return [int(index) for index in kept]
