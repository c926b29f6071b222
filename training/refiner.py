"""Trains the refiner on close-ups of drawn scenes, and on what the trained segmenter finds in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from services.segmenter.backends.refiner import LOGITS_STRIDE, RefinerNet, input_maps
from training.auxiliary import mask_loss
from training.first_passes import FirstPassCache
from training.loop import Run, build_muon, train
from training.refiner_dataset import TURNING, RefinerDataset
from training.segmenter import mask_iou
from training.vocabulary import UNNAMED, Vocabulary

ARCHITECTURE: dict[str, Any] = {
    "body": "regnetx_004",
    "width": 128,
    "detail": 64,
    "outline": 32,
    "last_blocks": 9,
    "img_size": 128,
}
STEPS = 16_000  # of a whole run
BATCH = 48  # close-ups of a step
FIRST_PASS_SCENES = 12_000  # scenes whose first passes are kept
PEAK_RATE = 1e-3
# How much the helping questions count: at first, and in the end, where the masks shall have the whole net.
_HELP = 1.0, 0.25


class RefinerTrainingModel(nn.Module):
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

    def init_from(self, sam: nn.Module, clip: nn.Module) -> None:
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

    def warm_start_from(self, earlier: RefinerNet) -> None:
        """Goes on from a trained net, which may have fewer blocks in its last stage, or another head.

        New blocks keep the weights that they have, but at first let everything pass.
        """
        own = self.net.state_dict()
        known = {n: value for n, value in earlier.state_dict().items() if value.shape == own[n].shape}
        self.net.load_state_dict(known, strict=False)
        for name, value in self.net.state_dict().items():
            if name not in known and name.endswith("conv3.bn.weight"):
                value.zero_()

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


def train_refiner(run: Run, passes: FirstPassCache, model: RefinerTrainingModel) -> nn.Module:
    """Trains and returns the averaged :class:`RefinerNet`.

    Args:
        run: what is asked for; initial weights are the trainee's.
        passes: Prepared first passes.
        model: with the weights to begin from.
    """
    model = model.to(run.device)
    dataset = RefinerDataset(passes, model.vocabulary, run, model.net.img_size)
    batches: Iterator[dict[str, Tensor]] | None = None

    def compute_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        nonlocal batches
        if batches is None:  # the first step of this process
            ahead = DataLoader(
                dataset,
                batch_size=None,
                sampler=range(step, run.steps),
                num_workers=1,
                prefetch_factor=8,
                worker_init_fn=_step_back,
            )
            batches = iter(ahead)
        help_share = float(np.interp(step / run.steps, TURNING, _HELP))
        return _step_loss(model, next(batches), run.device, help_share)

    averaged = train(
        model,
        compute_loss,
        build_muon(model, PEAK_RATE, model.readouts()),
        steps=run.steps,
        peak=PEAK_RATE,
        checkpoint=run.folder / "refiner.ckpt",
    )
    assert isinstance(averaged, RefinerTrainingModel)
    return averaged.net


def _step_back(worker: int) -> None:
    """Leaves the cores to the training itself, whose threads wait for one another."""
    os.nice(10)


def _step_loss(
    model: RefinerTrainingModel, batch: dict[str, Tensor], device: torch.device, help_share: float
) -> tuple[Tensor, dict[str, float]]:
    seen, truth, points, point_labels, box, name, labels = (
        batch[part].to(device) for part in ("seen", "truth", "points", "marks", "box", "name", "labels")
    )
    maps = input_maps(seen, points, point_labels, box)
    logits, ious, names, things = model(maps)
    target = truth.float() / 255
    loss_mask = mask_loss(logits, target).mean()
    named = name != UNNAMED
    loss_name = F.cross_entropy(names[named], name[named]) if named.any() else names.sum() * 0
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
        "named": float((names.argmax(1) == name)[named].float().mean()),
    }
    loss_help = 0.1 * loss_name + 0.4 * loss_things
    return loss_mask + 0.5 * loss_iou + help_share * loss_help, report


def _things_and_outlines(labels: Tensor) -> Tensor:
    """Which pixels of labels (B, h, w) are of things, and which lie at an outline, float32 (B, 2, h, w)."""
    outline = torch.zeros_like(labels, dtype=torch.bool)
    for axis in (1, 2):
        length = labels.shape[axis] - 1
        changes = labels.narrow(axis, 1, length) != labels.narrow(axis, 0, length)
        outline.narrow(axis, 1, length).logical_or_(changes)
        outline.narrow(axis, 0, length).logical_or_(changes)
    return torch.stack([labels > 0, outline], 1).float()
