"""Close-ups of drawn scenes, as the service would show them to the refiner, and their truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import Dataset

from regionsearch.images import Pixels
from services.segmenter.backends.refiner import (
    LOGITS_STRIDE,
    MASKS,
    shrink_masks,
    shrink_pixels,
    shrunk_size,
)
from services.segmenter.refine.cascade import square_around
from training.first_passes import FIRST_PASS, FirstPassCache, draw_click
from training.loop import Run
from training.prompts import choose_things, jittered_box, mask_box
from training.scenes import Scene
from training.vocabulary import UNNAMED, Vocabulary

_SIDES = 2.1  # of a close-up in sides of the object's box, in the middle
_FOUND_SHARE = 0.5  # of the close-ups that lie around what the segmenter found; others around the thing
_ASTRAY_SHARE = 0.1  # of all, that lie far off
# Of all, those without the masks of the first look, or the refiner learns little but to copy them; at first
# and in the end, where it shall learn to trust them. In between the share falls in this part of the run.
_BLIND_SHARES = 0.3, 0.04
TURNING = 0.55, 0.85
_ONE_MASK_SHARES = 0.2, 0.7  # with one mask instead of three: any, for one click; else the single mask


class RefinerDataset(Dataset[dict[str, Any]]):
    """The batches of a run, by step.

    Args:
        passes: Prepared first passes.
        vocabulary: of the names.
        run: that they are of.
        side: of the refiner's input.
    """

    def __init__(self, passes: FirstPassCache, vocabulary: Vocabulary, run: Run, side: int) -> None:
        self.passes, self.vocabulary, self.run, self.side = passes, vocabulary, run, side

    def __len__(self) -> int:
        return self.run.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Arrays by name, each of the whole batch; see :func:`draw_view`."""
        rng = np.random.default_rng((self.run.seed, step))
        blind = np.interp(step / self.run.steps, TURNING, _BLIND_SHARES)
        views: list[dict[str, Any]] = []
        while len(views) < self.run.batch_size:
            if rng.random() < blind:
                scene = self.passes.scenes[int(rng.integers(len(self.passes.scenes)))]
                entry = _blind_look(rng, scene)
            else:
                entry = self.passes[int(rng.integers(len(self.passes)))]
                scene = self.passes.scenes[int(entry["scene"])]
            if entry["label"]:
                views.append(draw_view(rng, scene, entry, self.vocabulary, self.side))
        return {part: np.stack([view[part] for view in views]) for part in views[0]}


def _blind_look(rng: np.random.Generator, scene: Scene) -> Any:
    """A click on a thing of a scene that nobody looked at: the masks are empty."""
    entry: Any = np.zeros(1, FIRST_PASS)[0]
    [entry["label"]] = choose_things(rng, scene.labels, 1)
    draw_click(rng, scene, entry, inner=rng.random() < 0.5)
    entry["found"] = jittered_box(rng, scene.labels == entry["label"])
    entry["window"][2:] = max(scene.labels.shape)
    return entry


def draw_view(
    rng: np.random.Generator, scene: Scene, entry: Any, vocabulary: Vocabulary, side: int
) -> dict[str, Any]:
    """A close-up for a look, much as the service would make it, and its truth.

    Args:
        rng: places, mirrors and recolours it.
        scene: that the look is at.
        entry: of dtype :data:`training.first_passes.FIRST_PASS`.
        vocabulary: of the names.
        side: of the refiner's input.

    Returns:
        Pixels and masks ("seen", uint8, 3 + MASKS x side x side); what the mask should be and the labels of
        all things ("truth", 0 ... 255, and "labels", uint8, side / 2 x side / 2); the prompt in pixels of the
        input ("points", "marks" and "box", as those of the look); and the number of the thing's name
        ("name").
    """
    mask = scene.labels == entry["label"]
    positive = entry["points"][entry["marks"] == 1]
    boxes = [entry["found"] if rng.random() < _FOUND_SHARE else mask_box(mask)]
    if not np.isnan(entry["box"]).any():
        boxes.append(entry["box"])
    lower = np.min([*(box[:2] for box in boxes), *positive], 0)
    upper = np.max([*(box[2:] for box in boxes), *(positive + 1)], 0)
    size = float((upper - lower).max())
    sides = _SIDES * np.exp(rng.normal(0, 0.3))
    off = rng.normal(0, 0.3 if rng.random() < _ASTRAY_SHARE else 0.06, 2) * size
    x, y = ((lower + upper) / 2 + off).tolist()
    crop = square_around((x, y), min(max(16.0, sides * size), max(mask.shape)), mask.shape)

    one_click = len(positive) == 1 and (entry["marks"] >= 0).sum() == 1
    order = 1 + np.argsort(-entry["ranks"][1:])
    if rng.random() < _ONE_MASK_SHARES[0 if one_click else 1]:
        order[:] = rng.integers(1 + MASKS) if one_click else 0
    left, top, right, _ = entry["window"]
    scale = entry["masks"].shape[-1] / (right - left)
    window = tuple(
        float((edge - at) * scale)
        for edge, at in zip((crop.left, crop.top, crop.right, crop.bottom), (left, top) * 2, strict=True)
    )
    masks = shrink_masks(entry["masks"][order], window, crop.size, side)
    scale = side / max(crop.size)
    corner = np.array([crop.left, crop.top], np.float32)
    name = next(thing.name for thing in scene.things if thing.label == entry["label"])
    view = {
        "seen": np.concatenate([_recoloured(rng, shrink_pixels(crop.cut(scene.image), side)), masks]),
        "truth": _as_logits_lie(crop.cut(mask) * np.uint8(255), side, Image.Resampling.BILINEAR),
        "labels": _as_logits_lie(crop.cut(scene.labels), side, Image.Resampling.NEAREST),
        "points": (entry["points"] + 0.5 - corner) * scale,
        "marks": entry["marks"],
        "box": (entry["box"] - np.tile(corner, 2)) * scale,
        "name": np.int64(vocabulary.index.get(name, UNNAMED)),
    }
    for mirror, chance in ((_mirrored, 0.5), (_transposed, 0.2)):
        if rng.random() < chance:
            view = mirror(view, side)
    if rng.random() < 0.2:
        view = _transposed(_mirrored(_transposed(view, side), side), side)
    return {part: np.asarray(value, order="C") for part, value in view.items()}


def _as_logits_lie(
    plane: npt.NDArray[np.uint8], side: int, resampling: Image.Resampling
) -> npt.NDArray[np.uint8]:
    """A part's plane (h, w) on the grid of the logits (side / 2, side / 2), 0 where it does not reach."""
    height, width = (max(1, round(extent / LOGITS_STRIDE)) for extent in shrunk_size(plane.shape, side))
    square = np.zeros((side // LOGITS_STRIDE, side // LOGITS_STRIDE), np.uint8)
    square[:height, :width] = np.asarray(Image.fromarray(plane).resize((width, height), resampling))
    return square


def _recoloured(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    return pixels[rng.permutation(3)] if rng.random() < 0.2 else pixels


def _mirrored(view: dict[str, Any], side: int) -> dict[str, Any]:
    left, top, right, bottom = view["box"]
    return view | {
        "seen": view["seen"][:, :, ::-1],
        "truth": view["truth"][:, ::-1],
        "labels": view["labels"][:, ::-1],
        "points": np.stack([side - view["points"][:, 0], view["points"][:, 1]], 1),
        "box": np.array([side - right, top, side - left, bottom], np.float32),
    }


def _transposed(view: dict[str, Any], side: int) -> dict[str, Any]:
    return view | {
        "seen": view["seen"].transpose(0, 2, 1),
        "truth": view["truth"].T,
        "labels": view["labels"].T,
        "points": view["points"][:, ::-1],
        "box": view["box"][[1, 0, 3, 2]],
    }
