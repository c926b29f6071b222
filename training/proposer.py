"""Trains the proposal head on the image embeddings of a trained segmenter, whose weights stay as they are."""

from __future__ import annotations

import functools
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from services.segmenter.backends.proposer import LEAST_SCORE, MAX_PEAKS, ProposalHead, peaks
from services.segmenter.backends.pyramid import STRIDE
from training.loop import Run, build_adamw, train
from training.scenes import HELD_OUT, Scene, SceneArtist
from training.segmenter import Batch, augment, collate, normalised
from training.store import SceneStore, fit

WIDTH = 64  # of the head's layers
STEPS = 1500  # of a whole run
BATCH = 8  # scenes of a step
PEAK_RATE = 2e-3

_SMALL = 24  # cells; those of smaller things count more, up to `_MOST` times
_MOST = 8.0


class ProposerTrainingModel(nn.Module):
    """A head, and the segmenter that it listens to."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self._sam = [sam]  # not a part of what is trained, averaged and written to checkpoints
        self.head = ProposalHead(channels=sam.prompt_encoder.embed_dim, width=WIDTH)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the depths of cells, float32 (S, h, w)."""
        [sam] = self._sam
        with torch.no_grad(), torch.autocast(batch.pixels.device.type, torch.bfloat16):
            embeddings = sam.image_encoder(normalised(sam, batch))
        return self.head(embeddings.float())  # type: ignore[no-any-return]


def train_proposer(run: Run, store: SceneStore, sam: Sam) -> ProposalHead:
    """Trains and returns the averaged head.

    Args:
        run: What is asked for.
        store: Scenes to train on.
        sam: The trained segmenter.
    """
    torch.manual_seed(run.seed)
    model = ProposerTrainingModel(sam.to(run.device).eval().requires_grad_(False)).to(run.device)
    side = sam.image_encoder.img_size

    def compute_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((run.seed, step))
        scenes = [fit(store[int(i)]) for i in rng.integers(len(store), size=run.batch_size)]
        batch = collate([augment(rng, scene.image, scene.labels) for scene in scenes], side, run.device)
        target, weight = (
            torch.stack(part).to(run.device)
            for part in zip(*map(depths, batch.labels.numpy(force=True)), strict=True)
        )
        losses = F.binary_cross_entropy_with_logits(model(batch), target, weight, reduction="none")
        loss = losses.sum() / weight.sum()
        return loss, {"depth": float(loss.detach())}

    @functools.cache  # drawn once, and only by runs long enough to be looked at
    def held_out() -> list[Scene]:
        artist = SceneArtist()
        return [fit(artist.draw(HELD_OUT + i)) for i in range(48)]

    def evaluate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, ProposerTrainingModel)
        return hits(module, held_out(), side, run.device)

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


def depths(labels: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """How deep inside of its thing each cell lies, and how much it counts.

    Args:
        labels: (side, side), 0 is background.

    Returns:
        Two float32 (side / STRIDE, side / STRIDE). Depths go from 0 on background to 1 where a thing is
        deepest, whatever its size.
    """
    deep = np.zeros(labels.shape, np.float32)
    weight = np.ones(labels.shape, np.float32)
    for label in np.unique(labels[labels > 0]).tolist():
        mask = labels == label
        inside = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        deep = np.where(mask, inside / inside.max(), deep)
        cells = mask.sum() / STRIDE**2
        weight[mask] = np.clip(_SMALL / cells, 1, _MOST)
    pooled = F.max_pool2d(torch.from_numpy(np.stack([deep, weight])), STRIDE)
    return pooled[0], pooled[1]


@torch.no_grad()
def hits(
    model: ProposerTrainingModel, scenes: list[Scene], side: int, device: torch.device
) -> dict[str, float]:
    """The share of things that a proposal lies on, and proposals for each scene."""
    model.eval()
    hit, asked = [], []
    for scene in scenes:
        batch = collate([(scene.image, scene.labels)], side, device)
        height, width = (max(1, round(extent / STRIDE)) for extent in batch.sizes[0])
        found = peaks(model(batch)[0].sigmoid()[:height, :width], MAX_PEAKS)
        found = found[found[:, 0] >= LEAST_SCORE]
        x, y = ((found[:, 1:].T + 0.5) * STRIDE).long().clamp(max=side - 1)
        on = set(batch.labels[0][y, x].tolist())
        hit += [thing.label in on for thing in scene.things]
        asked.append(len(found))
    return {"hit": float(np.mean(hit)), "asked": float(np.mean(asked))}
