"""Trains the refiner on close-ups of drawn scenes, and on what the trained segmenter finds in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from regionsearch.images import Pixels
from services.segmenter.backends.refiner import (
    LOGITS_STRIDE,
    MASKS,
    RefinerNet,
    input_maps,
    shrink_masks,
    shrink_pixels,
    shrunk_size,
)
from services.segmenter.zoom import square_around
from training.auxiliary import mask_loss
from training.looks import LookStore
from training.loop import build_muon, train
from training.prompts import mask_box
from training.segmenter import mask_iou
from training.store import StoredScene
from training.vocabulary import Vocabulary

ARCHITECTURE: dict[str, Any] = {
    "body": "regnetx_004",
    "width": 128,
    "detail": 64,
    "outline": 32,
    "last_blocks": 6,
    "img_size": 128,
}
STEPS = 6_000  # of a whole run
BATCH = 48  # close-ups of a step
LOOKS = 3_700  # scenes that the segmenter looks at
PEAK_RATE = 1e-3

_SIDES = 2.4  # of a close-up in sides of the object's box, in the middle
_FOUND_SHARE = 0.5  # of the close-ups that lie around what the segmenter found; others around the thing
_ASTRAY_SHARE = 0.1  # of all, that lie far off
_BLIND_SHARE = 0.3  # without the masks of the first look, or the refiner learns little but to copy them
_CLEAR_SHARES = 0.1, 0.7  # with the single mask instead of three, of one click and of other prompts


class RefinerTrainee(nn.Module):
    """The refiner, with heads that ask more of it, and are thrown away afterwards.

    One names the thing: who knows what it is knows where it ends. One finds all things and all outlines.
    """

    def __init__(self, architecture: dict[str, Any], vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.net = RefinerNet(**architecture)
        self.names = nn.Linear(self.net.depths[-1], len(vocabulary.index))
        nn.init.normal_(self.names.weight, std=0.01)
        self.things = nn.Conv2d(architecture["outline"], 2, kernel_size=1)
        self.net.to(memory_format=torch.channels_last)

    def begin_from(self, sam: nn.Module, clip: nn.Module) -> None:
        """Takes the body from the embedder, which knows things, and the pyramid from the segmenter.

        Channels that they do not have begin as noise.
        """
        given = dict(sam.image_encoder.state_dict())  # type: ignore[union-attr]
        given |= {f"body.{name}": value for name, value in clip.visual.trunk.state_dict().items()}  # type: ignore[union-attr]
        with torch.no_grad():
            for name, into in self.net.state_dict().items():
                value = given.get(name)
                if value is not None and value.shape == into.shape:
                    into.copy_(value)
                elif value is not None and into.ndim == 4:
                    nn.init.normal_(into, std=0.005)[:, : value.shape[1]] = value

    def readouts(self) -> list[nn.Parameter]:
        """Weights whose rows are alike; see :func:`training.loop.build_muon`."""
        heads = self.names, self.things, self.net.head, self.net.quality
        return [p for head in heads for p in head.parameters()]

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The net's answer, and logits of names (B, classes) and of things and outlines (B, 2, h, w)."""
        with torch.autocast(maps.device.type, torch.bfloat16):
            seen = self.net.maps(maps.contiguous(memory_format=torch.channels_last))
            logits, ious = self.net.answer(seen)
            names, things = self.names(seen.deepest.mean((2, 3))), self.things(seen.outline)
        return logits, ious, names.float(), things.float()


def train_refiner(
    folder: Path,
    looks: LookStore,
    trainee: RefinerTrainee,
    steps: int,
    device: torch.device,
    *,
    batch_size: int = BATCH,
    seed: int = 0,
) -> nn.Module:
    """Trains, resuming from ``folder``, and returns the averaged :class:`RefinerNet`.

    Args:
        folder: of the checkpoint.
        looks: prepared.
        trainee: with the weights to begin from.
        steps: of the whole run.
        device: to train on.
        batch_size: close-ups of a step.
        seed: of the batches.
    """
    trainee = trainee.to(device)

    def compute_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((seed, step))
        views: list[dict[str, Any]] = []
        while len(views) < batch_size:
            look = looks[int(rng.integers(len(looks)))]
            if look["label"]:
                scene = looks.scenes[int(look["scene"])]
                views.append(_draw_view(rng, scene, look, trainee.vocabulary))
        return _step_loss(trainee, views, device)

    averaged = train(
        trainee,
        compute_loss,
        build_muon(trainee, PEAK_RATE, trainee.readouts()),
        steps=steps,
        peak=PEAK_RATE,
        checkpoint=folder / "refiner.ckpt",
    )
    assert isinstance(averaged, RefinerTrainee)
    return averaged.net


def _step_loss(
    trainee: RefinerTrainee, views: list[dict[str, Any]], device: torch.device
) -> tuple[Tensor, dict[str, float]]:
    seen, truth, points, marks, box, name, labels = (
        torch.from_numpy(np.stack([view[part] for view in views])).to(device)
        for part in ("seen", "truth", "points", "marks", "box", "name", "labels")
    )
    maps = input_maps(seen, points, marks, box)
    logits, ious, names, things = trainee(maps)
    target = truth.float() / 255
    loss_mask = mask_loss(logits, target).mean()
    loss_name = F.cross_entropy(names, name)
    loss_things = F.binary_cross_entropy_with_logits(things, _things_and_outlines(labels))
    with torch.no_grad():
        iou = mask_iou(logits > 0, target > 0.5)
        before = mask_iou(F.avg_pool2d(seen[:, 3:4].float(), LOGITS_STRIDE)[:, 0] > 127, target > 0.5)
    loss_iou = (ious - iou).square().mean()
    report = {
        "mask": float(loss_mask.detach()),
        "iou": float(iou.mean()),
        "first_look": float(before.mean()),
        "iou_mse": float(loss_iou.detach()),
        "named": float((names.argmax(1) == name).float().mean()),
    }
    return loss_mask + 0.1 * loss_name + 0.4 * loss_things + 0.5 * loss_iou, report


def _draw_view(
    rng: np.random.Generator, scene: StoredScene, look: Any, vocabulary: Vocabulary
) -> dict[str, Any]:
    """A close-up for a look, much as the service would make it, and its truth."""
    side = ARCHITECTURE["img_size"]
    mask = scene.labels == look["label"]
    positive = look["points"][look["marks"] == 1]
    boxes = [look["found"] if rng.random() < _FOUND_SHARE else mask_box(mask)]
    if not np.isnan(look["box"]).any():
        boxes.append(look["box"])
    lower = np.min([*(box[:2] for box in boxes), *positive], 0)
    upper = np.max([*(box[2:] for box in boxes), *(positive + 1)], 0)
    size = float((upper - lower).max())
    sides = _SIDES * np.exp(rng.normal(0, 0.3))
    off = rng.normal(0, 0.3 if rng.random() < _ASTRAY_SHARE else 0.06, 2) * size
    x, y = ((lower + upper) / 2 + off).tolist()
    crop = square_around((x, y), min(max(16.0, sides * size), max(mask.shape)), mask.shape)

    one_click = len(positive) == 1 and (look["marks"] >= 0).sum() == 1
    clear = rng.random() < _CLEAR_SHARES[0 if one_click else 1]
    order = [0] * MASKS if clear else 1 + np.argsort(-look["ranks"][1:])
    left, top, right, _ = look["window"]
    scale = look["masks"].shape[-1] / (right - left)
    window = tuple(
        float((edge - at) * scale)
        for edge, at in zip((crop.left, crop.top, crop.right, crop.bottom), (left, top) * 2, strict=True)
    )
    masks = shrink_masks(look["masks"][order], window, crop.size, side)
    if rng.random() < _BLIND_SHARE:
        masks[:] = 0
    scale = side / max(crop.size)
    corner = np.array([crop.left, crop.top], np.float32)
    name = next(thing.name for thing in scene.things if thing.label == look["label"])
    view = {
        "seen": np.concatenate([_recoloured(rng, shrink_pixels(crop.cut(scene.image), side)), masks]),
        "truth": _as_logits_lie(crop.cut(mask) * np.uint8(255), side, Image.Resampling.BILINEAR),
        "labels": _as_logits_lie(crop.cut(scene.labels), side, Image.Resampling.NEAREST),
        "points": (look["points"] + 0.5 - corner) * scale,
        "marks": look["marks"],
        "box": (look["box"] - np.tile(corner, 2)) * scale,
        "name": np.int64(vocabulary.index[name]),
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


def _things_and_outlines(labels: Tensor) -> Tensor:
    """Which pixels of labels (B, h, w) are of things, and which lie at an outline, float32 (B, 2, h, w)."""
    outline = torch.zeros_like(labels, dtype=torch.bool)
    for axis in (1, 2):
        length = labels.shape[axis] - 1
        changes = labels.narrow(axis, 1, length) != labels.narrow(axis, 0, length)
        outline.narrow(axis, 1, length).logical_or_(changes)
        outline.narrow(axis, 0, length).logical_or_(changes)
    return torch.stack([labels > 0, outline], 1).float()


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
