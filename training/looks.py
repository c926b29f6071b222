"""First looks kept on disk: prompts about stored scenes, and what the trained segmenter answers.

The refiner learns from them. They take the segmenter's encoder and decoder, and so longer than a step of
the refiner's own training.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.progress import track
from segment_anything.modeling import Sam
from torch import Tensor, nn

from services.segmenter.prompts import STABILITY_OFFSET
from training.prompts import any_pixel, choose_things, inner_pixel, jittered_box, mask_box, several_points
from training.segmenter import Batch, SegmenterTrainee, collate, embed_boxes, embed_points
from training.store import SIDE, SceneStore

POINTS = 4  # of a prompt at most
WINDOW = 96  # side of the kept masks
LOOK = np.dtype(
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

_CLICKS = 6  # of a scene; besides, one box and one prompt of several points
_PROMPTS = _CLICKS + 2
_SCENES = 10  # that are encoded at once
_SHARD = 100  # scenes
_SURROUNDINGS = 6.0  # sides of what is kept, in sides of the best mask's box


class LookStore:
    """Looks at the first scenes of a store.

    Args:
        folder: where the shards are; missing ones are made by :meth:`prepare`.
        scenes: that are looked at.
        count: of the scenes; whole shards only, one at least.
    """

    def __init__(self, folder: Path, scenes: SceneStore, count: int) -> None:
        self.folder, self.scenes = folder, scenes
        self._counts = [min(_SHARD, count)] * max(1, count // _SHARD)
        self._shards: list[npt.NDArray[Any]] = []

    def __len__(self) -> int:
        return _PROMPTS * sum(self._counts)

    def __getitem__(self, index: int) -> Any:
        """One record of dtype :data:`LOOK`."""
        shard, place = divmod(index, _PROMPTS * self._counts[0])
        return self._shards[shard][place]

    def prepare(self, sam: Sam, architecture: dict[str, Any], device: torch.device) -> None:
        """Makes the shards that are missing with a trained segmenter, and opens all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        trainee = SegmenterTrainee(architecture, 1)
        trainee.sam = sam
        trainee = trainee.to(device).eval()
        recipe = _digest(sam)
        self._shards.clear()
        for shard in track(range(len(self._counts)), "looking at scenes"):
            count = self._counts[shard]
            path = self.folder / f"looks-{recipe}-{shard:04d}-{count}.npy"
            if not path.is_file():
                temporary = path.with_suffix(".tmp.npy")
                np.save(temporary, self._look(trainee, shard * _SHARD, count, device))
                temporary.replace(path)
            self._shards.append(np.load(path, mmap_mode="r"))

    @torch.inference_mode()
    def _look(
        self, trainee: SegmenterTrainee, first: int, count: int, device: torch.device
    ) -> npt.NDArray[Any]:
        looks = np.zeros((count, _PROMPTS), LOOK)
        for start in range(0, count, _SCENES):
            part = looks[start : start + _SCENES]
            part["scene"] = first + start + np.arange(len(part))[:, None]
            scenes = [self.scenes[first + start + i] for i in range(len(part))]
            batch = collate([(scene.image, scene.labels) for scene in scenes], trainee.side, device)
            _ask(trainee, batch, [scene.labels for scene in scenes], part, first + start)
        return looks.reshape(-1)


def _ask(
    trainee: SegmenterTrainee,
    batch: Batch,
    labels: list[npt.NDArray[np.uint8]],
    looks: npt.NDArray[Any],
    seed: int,
) -> None:
    """Draws the prompts of scenes and fills in their looks (S, P)."""
    rng = np.random.default_rng((7, seed))
    device, scale = batch.labels.device, batch.side / SIDE
    embeddings, _ = trainee.embed(batch)
    looks["marks"], looks["box"] = -1, np.nan
    for plane, row in zip(labels, looks, strict=True):
        for kind in (row[:_CLICKS], row[_CLICKS : _CLICKS + 1], row[_CLICKS + 1 :]):
            kind["label"] = choose_things(rng, plane, len(kind))
    masks = [[plane == label for label in row["label"]] for plane, row in zip(labels, looks, strict=True)]

    clicks = looks[:, :_CLICKS]
    for row, outlines in zip(clicks, masks, strict=True):
        for place, (look, outline) in enumerate(zip(row, outlines, strict=False)):
            look["points"][0] = (inner_pixel if place % 2 else any_pixel)(rng, outline)
    clicks["marks"][..., 0] = 1
    points = clicks["points"][:, :, :1].reshape(-1, 1, 2)
    _fill(
        clicks,
        *trainee.decode(embeddings, embed_points(trainee, points * scale, np.ones((len(points), 1)), device)),
    )

    boxes = looks[:, _CLICKS : _CLICKS + 1]
    drawn = np.stack([jittered_box(rng, outlines[_CLICKS]) for outlines in masks])
    boxes["box"] = drawn[:, None]
    _fill(boxes, *trainee.decode(embeddings, embed_boxes(trainee, drawn * scale, device)))

    several = looks[:, _CLICKS + 1 :]
    squares, inside = np.zeros((2, len(looks), SIDE, SIDE), bool)
    for into, real, planes in zip(squares, inside, masks, strict=True):
        height, width = planes[-1].shape
        into[:height, :width], real[:height, :width] = planes[-1], True
    points, marks = several_points(rng, squares, inside)
    several["points"][:, 0, : points.shape[1]], several["marks"][:, 0, : points.shape[1]] = points, marks
    _fill(several, *trainee.decode(embeddings, embed_points(trainee, points * scale, marks, device)))


def _fill(looks: npt.NDArray[Any], masks: Tensor, ious: Tensor) -> None:
    """Notes answers: logits (S * P, 4, h, h) of whole squares, and predicted IoUs (S * P, 4)."""
    stable = (masks > STABILITY_OFFSET).sum((2, 3)) / (masks > -STABILITY_OFFSET).sum((2, 3)).clamp(min=1)
    ranks = (ious * stable).numpy(force=True)
    planes = (masks.sigmoid() * 255).round().to(torch.uint8).numpy(force=True)
    unit = SIDE / planes.shape[-1]  # pixels of the scene for one of the masks
    for look, four, rank in zip((look for row in looks for look in row), planes, ranks, strict=True):
        left, top, right, bottom = box = mask_box(four[1 + rank[1:].argmax()] > 127)
        side = min(four.shape[-1], max(24.0, _SURROUNDINGS * max(right - left, bottom - top)))
        x = min(max((left + right - side) / 2, 0), four.shape[-1] - side)
        y = min(max((top + bottom - side) / 2, 0), four.shape[-1] - side)
        window = x, y, x + side, y + side
        for into, plane in zip(look["masks"], four, strict=True):
            kept = Image.fromarray(plane).resize((WINDOW, WINDOW), Image.Resampling.BILINEAR, window)
            into[:] = np.asarray(kept)
        look["ranks"], look["found"], look["window"] = rank, box * unit, np.array(window) * unit


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
