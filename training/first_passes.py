"""First passes kept on disk: prompts on stored scenes, and the answers of the trained segmenter.

The refiner learns from them. They take the segmenter's encoder and decoder, and so longer than a step of
the refiner's own training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor

from services.segmenter.prompts import STABILITY_OFFSET
from training.prompts import any_pixel, choose_things, inner_pixel, jittered_box, mask_box, several_points
from training.scenes import Scene
from training.segmenter import (
    SegmenterTrainingModel,
    collate_as_served,
    embed_boxes,
    embed_points,
    weights_digest,
)
from training.store import RecordCache, SceneStore

POINTS = 4  # of a prompt at most
WINDOW = 96  # side of the kept masks
FIRST_PASS = np.dtype(
    [
        ("scene", "i4"),
        ("label", "u1"),  # of the thing that is asked for; 0 where the scene has none
        ("points", "f4", (POINTS, 2)),  # x, y in pixels of the scene
        ("marks", "i1", POINTS),  # 1: on the thing, 0: off it, -1: no point
        ("box", "f4", 4),  # NaN for none
        ("masks", "u1", (4, WINDOW, WINDOW)),  # probabilities: the single mask, then the three of multimask
        ("window", "f4", 4),  # left, top, right, bottom of `masks` in pixels of the scene
        ("ranks", "f4", 4),  # predicted IoU times stability, of each mask
        ("found", "f4", 4),  # box of the best of the three
    ]
)
"""A prompt and its answer."""

# The prompts of a scene by kind: a click, a box, several points.
_KINDS = _CLICK, _BOX, _SEVERAL = slice(0, 6), slice(6, 7), slice(7, 8)
_PROMPTS = 8
_SCENES = 10  # that are encoded at once
_SURROUNDINGS = 6.0  # sides of what is kept, in sides of the best mask's box


class FirstPassCache(RecordCache):
    """First passes over the first scenes of a store, records of dtype :data:`FIRST_PASS`.

    Args:
        folder: where the shards are; missing ones are made by :meth:`prepare`.
        scenes: that are looked at.
        count: of the scenes; whole shards only, one at least.
    """

    def __init__(self, folder: Path, scenes: SceneStore, count: int) -> None:
        super().__init__(folder, "looks", scenes, count, records=_PROMPTS)

    def prepare(self, sam: Sam, architecture: dict[str, Any], device: torch.device) -> None:
        """Makes the shards that are missing with a trained segmenter, and opens all."""
        model = SegmenterTrainingModel(architecture, 1)
        model.sam = sam
        model = model.to(device).eval()
        self.fill(weights_digest(sam), lambda first, count: self._run_segmenter(model, first, count, device))

    @torch.inference_mode()
    def _run_segmenter(
        self, model: SegmenterTrainingModel, first: int, count: int, device: torch.device
    ) -> npt.NDArray[Any]:
        passes = np.zeros((count, _PROMPTS), FIRST_PASS)
        for start in range(0, count, _SCENES):
            part = passes[start : start + _SCENES]
            part["scene"] = first + start + np.arange(len(part))[:, None]
            scenes = [self.scenes[first + start + i] for i in range(len(part))]
            _draw_prompts(np.random.default_rng((7, first + start)), scenes, part)
            _ask(model, scenes, part, device)
        return passes.reshape(-1)


def draw_click(rng: np.random.Generator, scene: Scene, entry: npt.NDArray[Any], inner: bool) -> None:
    """Notes one click on the thing that a look asks for."""
    pixel = (inner_pixel if inner else any_pixel)(rng, scene.labels == entry["label"])
    entry["marks"], entry["box"] = -1, np.nan
    entry["points"][0], entry["marks"][0] = pixel, 1


def _draw_prompts(rng: np.random.Generator, scenes: list[Scene], passes: npt.NDArray[Any]) -> None:
    """Draws the prompts of scenes, noted in their first passes (S, P)."""
    passes["marks"], passes["box"] = -1, np.nan
    for scene, row in zip(scenes, passes, strict=True):
        for kind in _KINDS:
            row["label"][kind] = choose_things(rng, scene.labels, len(row[kind]))
        for place, entry in enumerate(row[_CLICK]):
            draw_click(rng, scene, entry, inner=place % 2 == 1)
        for entry in row[_BOX]:
            entry["box"] = jittered_box(rng, scene.labels == entry["label"])
    several = passes[:, _SEVERAL]
    outlines = [
        scene.labels == label for scene, row in zip(scenes, several["label"], strict=True) for label in row
    ]
    points, point_labels = several_points(rng, outlines, [np.ones_like(outline) for outline in outlines])
    drawn = points.shape[1]
    several["points"][:, :, :drawn] = points.reshape(*several.shape, drawn, 2)
    several["marks"][:, :, :drawn] = point_labels.reshape(*several.shape, drawn)


def _ask(
    model: SegmenterTrainingModel, scenes: list[Scene], passes: npt.NDArray[Any], device: torch.device
) -> None:
    """Fills in what the segmenter answers to the prompts of first passes (S, P)."""
    embeddings, _ = model.embed(collate_as_served(scenes, model.side, device))
    longest = np.array([max(scene.labels.shape) for scene in scenes], np.float32)
    for kind in _KINDS:
        part = passes[:, kind]
        scale = np.repeat(np.float32(model.side) / longest, part.shape[1])
        flat = part.reshape(-1)
        if np.isnan(flat["box"]).any():
            count = int((flat["marks"][0] >= 0).sum())
            points = flat["points"][:, :count] * scale[:, None, None]
            sparse = embed_points(model, points, flat["marks"][:, :count], device)
        else:
            sparse = embed_boxes(model, flat["box"] * scale[:, None], device)
        _fill(part, *model.decode(embeddings, sparse), longest)


def _fill(passes: npt.NDArray[Any], masks: Tensor, ious: Tensor, longest: npt.NDArray[np.float32]) -> None:
    """Notes answers: logits (S * P, 4, h, h) of squares with sides `longest` (S,), IoUs (S * P, 4)."""
    stable = (masks > STABILITY_OFFSET).sum((2, 3)) / (masks > -STABILITY_OFFSET).sum((2, 3)).clamp(min=1)
    ranks = (ious * stable).numpy(force=True)
    planes = (masks.sigmoid() * 255).round().to(torch.uint8).numpy(force=True)
    units = np.repeat(longest / planes.shape[-1], passes.shape[1])  # pixels of the scene for one of the masks
    rows = (entry for row in passes for entry in row)
    for entry, four, rank, unit in zip(rows, planes, ranks, units, strict=True):
        left, top, right, bottom = box = mask_box(four[1 + rank[1:].argmax()] > 127)
        side = min(four.shape[-1], max(24.0, _SURROUNDINGS * max(right - left, bottom - top)))
        x = min(max((left + right - side) / 2, 0), four.shape[-1] - side)
        y = min(max((top + bottom - side) / 2, 0), four.shape[-1] - side)
        window = x, y, x + side, y + side
        for into, plane in zip(entry["masks"], four, strict=True):
            kept = Image.fromarray(plane).resize((WINDOW, WINDOW), Image.Resampling.BILINEAR, window)
            into[:] = np.asarray(kept)
        entry["ranks"], entry["found"], entry["window"] = rank, box * unit, np.array(window) * unit
