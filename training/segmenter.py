"""Trains the pocket segmenter on drawn scenes: clicks, boxes, several points, and masks to refine."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from services.segmenter.backends.pocket import build_pocket_sam
from services.segmenter.backends.pyramid import STRIDE
from training.auxiliary import AuxiliaryHead, mask_loss, shrink
from training.decoder import decode_masks
from training.loop import Run, build_muon, train
from training.prompts import any_pixel, choose_things, inner_pixel, jittered_box, several_points
from training.scenes import HELD_OUT, Scene, SceneArtist
from training.store import SIDE, SceneStore, fit
from training.vocabulary import UNNAMED, Vocabulary

ARCHITECTURE: dict[str, Any] = {
    "body": "regnetx_004",
    "img_size": 384,
    "width": 128,
    "detail": 64,
    "outline": 32,
    "heads": 4,
    "depth": 2,
    "mlp_width": 512,
}
EVERYTHING: dict[str, Any] = {"points_per_side": 16, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.35}
STEPS = 15_000  # of a whole run
BATCH = 8  # scenes of a step
PEAK_RATE = 1e-3

_ADDED = "refiner", "proposer"  # parts of a trained model that are trained by themselves, after the rest
_PROMPTS = 2  # of a scene
_BACKGROUND_CLICKS = 0.15  # of the single clicks
_COARSE_SIDE, _COARSE_SHARE = SIDE, 0.3  # the first part of a run sees the scenes smaller, for speed


@dataclass(frozen=True)
class Batch:
    """Scenes as tensors, padded to squares.

    Attributes:
        pixels: float32 (S, 3, side, side), 0 … 255.
        labels: uint8 (S, side, side).
        sizes: height and width of each scene without its padding.
    """

    pixels: Tensor
    labels: Tensor
    sizes: list[tuple[int, int]]

    @property
    def side(self) -> int:
        """Pixels along one side."""
        return self.labels.shape[-1]


class SegmenterTrainingModel(nn.Module):
    """The pocket SAM with the auxiliary head that training hangs on its image embedding."""

    def __init__(self, architecture: dict[str, Any], classes: int) -> None:
        super().__init__()
        self.sam = build_pocket_sam(**architecture)
        self.side: int = architecture["img_size"]
        self.auxiliary = AuxiliaryHead(architecture["width"], architecture["outline"], classes)
        self.sam.image_encoder.to(memory_format=torch.channels_last)

    def readouts(self) -> list[nn.Parameter]:
        """The prompts' embeddings and the weights of the auxiliary head."""
        tables = [m for m in self.sam.modules() if isinstance(m, nn.Embedding)]
        return [p for m in (*tables, self.auxiliary) for p in m.parameters()]

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Image embeddings (S, C, h, w), float32, and the encoder's map of stride 2.

        Prompts after it are in pixels of this batch.
        """
        prompts = self.sam.prompt_encoder
        prompts.input_image_size = (batch.side, batch.side)
        prompts.image_embedding_size = (batch.side // STRIDE, batch.side // STRIDE)
        pixels = normalised(self.sam, batch)
        outlines: list[Tensor] = []
        hook = self.sam.image_encoder.outline.register_forward_hook(lambda *call: outlines.append(call[-1]))
        with hook, torch.autocast(pixels.device.type, torch.bfloat16):
            maps: Tensor = self.sam.image_encoder(pixels.contiguous(memory_format=torch.channels_last))
        return maps.float(), outlines[0]

    def decode(
        self, embeddings: Tensor, sparse: Tensor, dense: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mask logits and predicted IoU, float32; see :func:`training.decoder.decode_masks`."""
        with torch.autocast(embeddings.device.type, torch.bfloat16):
            masks, iou = decode_masks(self.sam, embeddings, sparse, dense)
        return masks.float(), iou.float()


def train_segmenter(run: Run, store: SceneStore, init: nn.Module | None = None) -> nn.Module:
    """Trains and returns the averaged :class:`segment_anything.modeling.Sam`.

    Args:
        run: What is asked for.
        store: Scenes to train on.
        init: A trained one of the same architecture to begin with: scenes are seen in full size from the
            start, and the auxiliary head, which is not exported, begins anew. Random weights when absent.
    """
    torch.manual_seed(run.seed)
    artist = SceneArtist()
    classes = Vocabulary(artist.vocabulary).index
    model = SegmenterTrainingModel(ARCHITECTURE, len(classes))
    if init is not None:
        weights = {
            name: value for name, value in init.state_dict().items() if name.split(".")[0] not in _ADDED
        }
        model.sam.load_state_dict(weights)
    model.to(run.device)
    coarse_steps = 0.0 if init is not None else _COARSE_SHARE * run.steps

    def compute_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((run.seed, step))
        scenes = [fit(store[int(i)]) for i in rng.integers(len(store), size=run.batch_size)]
        side = _COARSE_SIDE if step < coarse_steps else ARCHITECTURE["img_size"]
        batch = collate([augment(rng, scene.image, scene.labels) for scene in scenes], side, run.device)
        names = np.full((len(scenes), 256), UNNAMED)
        for row, scene in zip(names, scenes, strict=True):
            row[[thing.label for thing in scene.things]] = [
                classes.get(thing.name, UNNAMED) for thing in scene.things
            ]
        return _step_loss(model, batch, names, rng)

    @functools.cache  # drawn once, and only by runs long enough to be looked at
    def held_out() -> list[Scene]:
        return [fit(artist.draw(HELD_OUT + i)) for i in range(48)]

    def evaluate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, SegmenterTrainingModel)
        return one_click_quality(module, held_out(), run.device)

    averaged = train(
        model,
        compute_loss,
        build_muon(model, PEAK_RATE, model.readouts()),
        steps=run.steps,
        peak=PEAK_RATE,
        checkpoint=run.folder / "segmenter.ckpt",
        evaluate=evaluate,
    )
    assert isinstance(averaged, SegmenterTrainingModel)
    sam: nn.Module = averaged.sam
    return sam


@torch.no_grad()
def one_click_quality(
    model: SegmenterTrainingModel, scenes: list[Scene], device: torch.device
) -> dict[str, float]:
    """Mean IoU of one click in the middle of each thing, and how far predicted IoU is off."""
    model.eval()
    rng = np.random.default_rng(0)
    best, single, error = [], [], []
    for scene in scenes:
        batch = collate([(scene.image, scene.labels)], ARCHITECTURE["img_size"], device)
        chosen = np.array([thing.label for thing in scene.things])
        labels = batch.labels[0].numpy(force=True)
        points = np.stack([inner_pixel(rng, labels == label) for label in chosen])
        truth = batch.labels == torch.from_numpy(chosen).to(device)[:, None, None]
        embeddings, _ = model.embed(batch)
        sparse = embed_points(model, points[:, None], np.ones((len(points), 1)), device)
        masks, predicted = model.decode(embeddings, sparse)
        hard = F.interpolate(masks, (batch.side, batch.side), mode="bilinear") > 0
        iou = mask_iou(hard, truth[:, None])
        pick = predicted[:, 1:].argmax(1) + 1
        best.append(iou.gather(1, pick[:, None])[:, 0])
        single.append(iou[:, 0])
        error.append((predicted - iou).abs().mean(1))
    names = ("one_click_iou", "single_mask_iou", "iou_error")
    return {
        name: float(torch.cat(values).mean())
        for name, values in zip(names, (best, single, error), strict=True)
    }


def _step_loss(
    model: SegmenterTrainingModel, batch: Batch, names: npt.NDArray[np.int64], rng: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    embeddings, fine = model.embed(batch)
    chosen = np.stack([choose_things(rng, labels, _PROMPTS) for labels in batch.labels.numpy(force=True)])
    device = batch.labels.device
    labels = batch.labels[:, None].expand(-1, _PROMPTS, -1, -1)
    kind = rng.random()
    if kind < 0.6:  # what everything mode and a first click ask
        chosen[rng.random(chosen.shape) < _BACKGROUND_CLICKS] = 0
    truth = (labels == torch.from_numpy(chosen).to(device)[..., None, None]) & torch.from_numpy(
        chosen > 0
    ).to(device)[..., None, None]
    truth = truth.flatten(0, 1)
    outlines = (batch.labels.numpy(force=True)[:, None] == chosen[..., None, None]).reshape(
        -1, batch.side, batch.side
    )
    outlines &= _inside(batch)[:, None].repeat(_PROMPTS, 1).reshape(outlines.shape)
    dense = None
    if kind < 0.6:
        points = np.stack([any_pixel(rng, outline) for outline in outlines])[:, None]
        sparse = embed_points(model, points, np.ones(points.shape[:2]), device)
    elif kind < 0.75:
        sparse = embed_boxes(model, np.stack([jittered_box(rng, outline) for outline in outlines]), device)
    elif kind < 0.88:
        points, point_labels = several_points(rng, outlines, _inside(batch).repeat(_PROMPTS, 0))
        sparse = embed_points(model, points, point_labels, device)
    else:
        sparse, dense = _refinement(model, embeddings, truth, outlines, rng)
    masks, predicted = model.decode(embeddings, sparse, dense)
    loss, report = _prompt_loss(masks, predicted, truth)
    extra, parts = model.auxiliary(embeddings, fine, batch.labels, names, rng)
    return loss + extra, report | parts


def _prompt_loss(masks: Tensor, predicted: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, float]]:
    """BCE and dice of the single mask and of the best of the three, and the error of all predicted IoUs."""
    target = shrink(truth[:, None].float(), masks.shape[-1])
    per_mask = mask_loss(masks, target)
    with torch.no_grad():
        iou = mask_iou(masks > 0, target > 0.5)
    loss = per_mask[:, 0] + per_mask[:, 1:].amin(1) + 0.2 * per_mask[:, 1:].mean(1)
    iou_loss = (predicted - iou).square().mean()
    things = truth.flatten(1).any(1)
    report = {
        "mask": float(loss.detach().mean()),
        "iou": float(iou[things, 0].mean()),
        "iou_mse": float(iou_loss.detach()),
    }
    return loss.mean() + 2 * iou_loss, report


def _refinement(
    model: SegmenterTrainingModel,
    embeddings: Tensor,
    truth: Tensor,
    outlines: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """A first click, then a second where the first answer was wrong, with that answer as a mask prompt."""
    device = truth.device
    points = np.stack([any_pixel(rng, outline) for outline in outlines])[:, None]
    with torch.no_grad():
        sparse = embed_points(model, points, np.ones(points.shape[:2]), device)
        masks, predicted = model.decode(embeddings.detach(), sparse)
        answer = masks[torch.arange(len(masks)), predicted[:, 1:].argmax(1) + 1][:, None]
        wrong = (F.interpolate(answer, truth.shape[-2:], mode="bilinear")[:, 0] > 0) != truth
    missed = wrong.numpy(force=True)
    second = np.stack([any_pixel(rng, m if m.any() else o) for m, o in zip(missed, outlines, strict=True)])
    point_labels = outlines[np.arange(len(second)), second[:, 1].astype(int), second[:, 0].astype(int)]
    both = np.concatenate([points, second[:, None]], 1)
    sparse = embed_points(model, both, np.stack([np.ones(len(point_labels)), point_labels], 1), device)
    with torch.autocast(device.type, torch.bfloat16):
        dense = model.sam.prompt_encoder._embed_masks(answer.clamp(-20, 20))
    return sparse, dense.float()


def embed_points(
    model: SegmenterTrainingModel,
    points: npt.NDArray[Any],
    point_labels: npt.NDArray[Any],
    device: torch.device,
) -> Tensor:
    """Tokens of points (B, N, 2) with labels (B, N), padded as a prompt without a box is."""
    coordinates = torch.from_numpy(points).to(device, torch.float32)
    labels = torch.from_numpy(point_labels).to(device, torch.float32)
    sparse: Tensor = model.sam.prompt_encoder((coordinates, labels), None, None)[0]
    return sparse


def embed_boxes(
    model: SegmenterTrainingModel, boxes: npt.NDArray[np.float32], device: torch.device
) -> Tensor:
    """Tokens of boxes (B, 4)."""
    corners = torch.from_numpy(boxes).to(device, torch.float32)
    sparse: Tensor = model.sam.prompt_encoder(None, corners, None)[0]
    return sparse


def _inside(batch: Batch) -> npt.NDArray[np.bool_]:
    """Which pixels are image and not padding, (S, side, side)."""
    inside = np.zeros(tuple(batch.labels.shape), bool)
    for plane, (height, width) in zip(inside, batch.sizes, strict=True):
        plane[:height, :width] = True
    return inside


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU over the last two dimensions; of two empty masks 0, so that an empty answer is never kept."""
    union = (a | b).sum((-2, -1))
    return (a & b).sum((-2, -1)) / union.clamp(min=1)


def normalised(sam: Sam, batch: Batch) -> Tensor:
    """The pixels as the image encoder takes them: padding is zero."""
    pixels: Tensor = (batch.pixels - sam.pixel_mean) / sam.pixel_std
    for i, (height, width) in enumerate(batch.sizes):
        pixels[i, :, height:] = 0
        pixels[i, :, :, width:] = 0
    return pixels


def augment(
    rng: np.random.Generator, image: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Mirrors, transposes and recolours."""
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    if rng.random() < 0.2:
        image, labels = image[::-1], labels[::-1]
    if rng.random() < 0.2:
        image, labels = image.transpose(1, 0, 2), labels.T
    if rng.random() < 0.2:
        image = image[..., rng.permutation(3)]
    if rng.random() < 0.3:
        table = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.6, 1.6, (1, 3)) * 255
        image = np.stack([table[:, c].astype(np.uint8)[image[..., c]] for c in range(3)], -1)
    return image, labels


def collate(
    scenes: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]], side: int, device: torch.device
) -> Batch:
    """Scenes that fit ``SIDE``, padded and scaled up to ``side``."""
    pixels = np.zeros((len(scenes), SIDE, SIDE, 3), np.uint8)
    labels = np.zeros((len(scenes), SIDE, SIDE), np.uint8)
    for i, (image, label) in enumerate(scenes):
        height, width = label.shape
        pixels[i, :height, :width], labels[i, :height, :width] = image, label
    sizes = [
        (round(label.shape[0] * side / SIDE), round(label.shape[1] * side / SIDE)) for _, label in scenes
    ]
    planes = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float()
    numbers = torch.from_numpy(labels).to(device)
    if side != SIDE:
        planes = F.interpolate(planes, (side, side), mode="bilinear")
        numbers = F.interpolate(numbers[:, None], (side, side), mode="nearest-exact")[:, 0]
    return Batch(planes, numbers, sizes)


def collate_as_served(scenes: list[Scene], side: int, device: torch.device) -> Batch:
    """Scenes of any size as the service's segmenter sees them: their longer side fills the square."""
    pixels = np.zeros((len(scenes), side, side, 3), np.uint8)
    labels = np.zeros((len(scenes), side, side), np.uint8)
    sizes = []
    for plane, numbers, scene in zip(pixels, labels, scenes, strict=True):
        height, width = (round(extent * side / max(scene.labels.shape)) for extent in scene.labels.shape)
        image, truth = Image.fromarray(scene.image), Image.fromarray(scene.labels)
        plane[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        numbers[:height, :width] = np.asarray(truth.resize((width, height), Image.Resampling.NEAREST))
        sizes.append((height, width))
    planes = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float()
    return Batch(planes, torch.from_numpy(labels).to(device), sizes)


def weights_digest(module: nn.Module) -> str:
    """Names what a module makes of scenes in caches."""
    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
