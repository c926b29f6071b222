"""Trains the proposal head on the image embeddings of a trained segmenter, whose weights stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou, generalized_box_iou_loss

from services.segmenter.backends.proposer import LEAST_IOU, MAX_BOXES, ProposalHead, boxes_of, find_boxes
from services.segmenter.backends.pyramid import STRIDE
from training import segmenter
from training.loop import Run, build_adamw, train
from training.prompts import mask_box
from training.scenes import HELD_OUT, Scene, SceneArtist
from training.segmenter import augment, collate_as_served, normalised, weights_digest
from training.store import RecordCache, SceneStore

WIDTH = 96  # of the head's layers
# Few prompts answer alike few times; what does is dropped by its mask when regions are selected.
EVERYTHING: dict[str, Any] = segmenter.EVERYTHING | {
    "box_nms_thresh": 0.85,
    "stability_score_thresh": 0.25,
}
STEPS = 4000  # of a whole run
BATCH = 16  # scenes of a step
PEAK_RATE = 2e-3
SCENES = 8000  # that are embedded, each once, as `augment` has it

_SMALL = 24  # cells; those of smaller things count more, up to `_MOST` times
_MOST = 8.0
_HELD_OUT = 48  # scenes that are looked at in between


class EmbeddedScenes(RecordCache):
    """Embeddings of the first scenes of a store, and what the head shall say about them.

    Records of ``embedding``, float16 (C, h, w), and ``targets``, float16 (6, h, w), see :func:`targets`.
    """

    def __init__(self, folder: Path, scenes: SceneStore, count: int) -> None:
        super().__init__(folder, "embedded", scenes, count)

    def prepare(self, sam: Sam, device: torch.device) -> None:
        """Makes the shards that are missing with a trained segmenter, and opens all."""

        def make(first: int, count: int) -> npt.NDArray[Any]:
            records = []
            for number in range(first, first + count):
                scene, rng = self.scenes[number], np.random.default_rng((11, number))
                image, labels = augment(rng, scene.image, scene.labels)
                records.append(embed(sam, [Scene(image, labels, scene.things)], device))
            return np.concatenate(records)

        self.fill(weights_digest(sam.image_encoder), make)


@torch.inference_mode()
def embed(sam: Sam, scenes: Sequence[Scene], device: torch.device) -> npt.NDArray[Any]:
    """Scenes as a segmenter embeds them, records as of :class:`EmbeddedScenes`."""
    batch = collate_as_served(list(scenes), sam.image_encoder.img_size, device)
    with torch.autocast(device.type, torch.bfloat16):
        embeddings = sam.image_encoder(normalised(sam, batch))
    shape = tuple(embeddings.shape[1:])
    kind = np.dtype([("embedding", "f2", shape), ("targets", "f2", (6, *shape[1:]))])
    records = np.zeros(len(scenes), kind)
    records["embedding"] = embeddings.float().numpy(force=True)
    records["targets"] = [targets(labels) for labels in batch.labels.numpy(force=True)]
    return records


class ProposerTrainingModel(nn.Module):
    """A head and its losses."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = ProposalHead(channels=channels, width=WIDTH)

    def forward(self, embeddings: Tensor, wanted: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of embeddings (S, C, h, w) with targets (S, 6, h, w), and its parts."""
        maps = self.head(embeddings)
        depth, weight, distances = wanted[:, 0], wanted[:, 1], wanted[:, 2:]
        inside = depth > 0
        named, truth = boxes_of(maps[:, 2:])[inside], boxes_of(distances)[inside]
        right = torch.zeros_like(depth)
        right[inside] = paired_iou(named.detach(), truth)
        misses = F.binary_cross_entropy_with_logits(
            maps[:, :2], torch.stack([depth, right], dim=1), reduction="none"
        )
        share = (weight * depth.clamp(min=0.3))[inside]
        losses = {
            "depth": (misses[:, 0] * weight).sum() / weight.sum(),
            "right": (misses[:, 1] * weight).sum() / weight.sum(),
            "box": (generalized_box_iou_loss(named, truth) * share).sum() / share.sum().clamp(min=1),
        }
        report = {name: float(loss.detach()) for name, loss in losses.items()}
        return 2 * losses["depth"] + 2 * losses["right"] + losses["box"], report


def train_proposer(run: Run, scenes: EmbeddedScenes, sam: Sam) -> ProposalHead:
    """Trains and returns the averaged head.

    Args:
        run: What is asked for.
        scenes: To train on, prepared.
        sam: The trained segmenter.
    """
    torch.manual_seed(run.seed)
    model = ProposerTrainingModel(sam.prompt_encoder.embed_dim).to(run.device)
    held_out: list[Any] = []

    def compute_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = np.random.default_rng((run.seed, step)).integers(len(scenes), size=run.batch_size)
        records = [scenes[int(place)] for place in chosen]
        loss, report = model(*_stacked(records, run.device))
        return loss, report

    def evaluate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, ProposerTrainingModel)
        if not held_out:  # drawn once, and only by runs long enough to be looked at
            artist = SceneArtist()
            for number in range(_HELD_OUT):
                held_out.extend(embed(sam, [artist.draw(HELD_OUT + number)], run.device))
        return hits(module.head, held_out, run.device)

    averaged = train(
        model,
        compute_loss,
        build_adamw(model, PEAK_RATE),
        steps=run.steps,
        peak=PEAK_RATE,
        checkpoint=run.folder / "proposer.ckpt",
        evaluate=evaluate,
    )
    assert isinstance(averaged, ProposerTrainingModel)
    return averaged.head


def architecture(sam: Sam) -> dict[str, Any]:
    """What the head for a segmenter is built with."""
    return {"channels": sam.prompt_encoder.embed_dim, "width": WIDTH}


def targets(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What a head shall say about each cell.

    Args:
        labels: (side, side), 0 is background.

    Returns:
        float32 (6, side / STRIDE, side / STRIDE): how deep inside of its thing a cell lies, from 0 on
        background to 1 where a thing is deepest, whatever its size; how much the cell counts; and how far
        the left, top, right and bottom of the thing's box are from the cell's middle, in cells.
    """
    grid = labels.shape[0] // STRIDE
    out = np.zeros((6, grid, grid), np.float32)
    out[1] = 1
    x, y = np.meshgrid(np.arange(grid) + 0.5, np.arange(grid) + 0.5)
    for label in np.unique(labels[labels > 0]).tolist():
        mask = labels == label
        inside = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        deep = inside.reshape(grid, STRIDE, grid, STRIDE).max((1, 3)) / inside.max()
        left, top, right, bottom = mask_box(mask) / STRIDE
        cells = deep > out[0]
        said = np.broadcast_arrays(
            deep,
            np.clip(_SMALL / (mask.sum() / STRIDE**2), 1, _MOST),
            *(distance.clip(min=0) for distance in (x - left, y - top, right - x, bottom - y)),
        )
        out[:, cells] = np.stack(said)[:, cells]
    return out


def paired_iou(some: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes (n, 4) with others of the same number, (n,)."""
    low, high = torch.maximum(some[:, :2], others[:, :2]), torch.minimum(some[:, 2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = (some[:, 2:] - some[:, :2]).prod(dim=1) + (others[:, 2:] - others[:, :2]).prod(dim=1)
    return shared / (areas - shared).clamp(min=1e-6)


@torch.inference_mode()
def hits(head: ProposalHead, records: Sequence[Any], device: torch.device) -> dict[str, float]:
    """How well the boxes of things are named, as IoU and as the share of at least .5, and how many are."""
    head.eval()
    boxes, asked = [], []
    for record in records:
        embeddings, wanted = _stacked([record], device)
        found = find_boxes(head(embeddings)[0], MAX_BOXES)
        found = found[found[:, 0] >= LEAST_IOU, 1:]
        asked.append(len(found))
        inside = wanted[0, 0] == 1
        truth = boxes_of(wanted[:, 2:])[0][inside]
        if len(truth):
            near = box_iou(truth, found).amax(1) if len(found) else torch.zeros(len(truth))
            boxes.append(near.cpu())
    every = torch.cat(boxes)
    return {
        "box": float(every.mean()),
        "hit": float((every >= 0.5).float().mean()),
        "asked": float(np.mean(asked)),
    }


def _stacked(records: Sequence[Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Embeddings and targets of records, float32."""
    embeddings, wanted = (
        torch.from_numpy(np.stack([record[name] for record in records])).to(device).float()
        for name in ("embedding", "targets")
    )
    return embeddings, wanted
