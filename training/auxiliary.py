"""What training hangs on the segmenter's image encoder, to teach it from every pixel of a scene.

A few clicks a step tell the encoder little. The head asks four more things of the embedding: which pixels
belong to things and which lie on an outline, how far the sides of the thing's box are, what the thing is,
and, from a click's cell alone, which pixels belong to the same thing. The questions about pixels are asked
of the encoder's map of stride 2 as well, which learns them sooner than the embedding learns to carry the
answers. The head is thrown away afterwards.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.prompts import any_pixel, choose_things, mask_box

FINE = 4  # mask logits per cell of the embedding, along one side
_CODE = 16  # channels that pixels of one thing agree in
_CLICKS = 6  # of a scene
_BOX_UNIT = 64.0  # pixels of the scene


class AuxiliaryHead(nn.Module):
    """Losses on the image embedding and on the map of stride 2, from labels alone.

    Args:
        width: channels of the embedding.
        outline: channels of the map of stride 2.
        classes: number of names that things can have.
    """

    def __init__(self, width: int, outline: int, classes: int) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(width, 2 * FINE**2 + 4, kernel_size=1)
        self.codes = nn.Conv2d(width, _CODE * FINE**2, kernel_size=1)
        self.query = _query(width)
        self.fine = nn.Conv2d(outline, 2 + _CODE, kernel_size=1)
        self.fine_query = _query(width)
        self.names = nn.Linear(width, classes)

    def forward(
        self,
        embeddings: Tensor,
        outlines: Tensor,
        labels: Tensor,
        names: npt.NDArray[np.int64],
        rng: np.random.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """The summed loss and its parts.

        Args:
            embeddings: float32 (S, C, h, w).
            outlines: the map of stride 2, (S, D, FINE * h, FINE * w).
            labels: uint8 (S, H, W), 0 where there is no thing.
            names: int64 (S, 256), the class of every label; −1 where a scene has no such label.
            rng: draws the clicks.
        """
        with torch.autocast(embeddings.device.type, torch.bfloat16):
            maps, codes = self.pixels(embeddings).float(), self.codes(embeddings).float()
            fine = self.fine(outlines).float()
        codes = F.pixel_shuffle(codes, FINE)
        clicks = _draw_clicks(labels, codes.shape[-1], rng)
        parts = {
            "thing": _pixel_loss(F.pixel_shuffle(maps[:, :-4], FINE), labels),
            "fine": _pixel_loss(fine[:, :2], labels),
            "box": 0.5 * _box_loss(maps[:, -4:], labels),
            "name": 0.15 * self._name_loss(embeddings, labels, names),
            "same": _click_loss(self.query, embeddings, codes, *clicks),
            "fine_same": 0.5 * _click_loss(self.fine_query, embeddings, fine[:, 2:], *clicks),
        }
        loss = torch.stack(list(parts.values())).sum()
        return loss, {name: float(part.detach()) for name, part in parts.items()}

    def _name_loss(self, embeddings: Tensor, labels: Tensor, names: npt.NDArray[np.int64]) -> Tensor:
        """Names are unique in a scene, so that telling them tells things apart."""
        known = torch.from_numpy(names).to(labels.device)
        wanted = known.gather(1, _cells(labels, embeddings.shape[-1]).flatten(1).long())
        shown = wanted >= 0
        if not shown.any():
            return embeddings.sum() * 0
        with torch.autocast(embeddings.device.type, torch.bfloat16):
            logits = self.names(embeddings.flatten(2).transpose(1, 2)[shown])
        return F.cross_entropy(logits.float(), wanted[shown])


def _query(width: int) -> nn.Linear:
    """From what is known where a click falls to the code that it asks for and its threshold."""
    query = nn.Linear(width + _CODE, _CODE + 1)
    nn.init.normal_(query.weight, std=0.01)
    with torch.no_grad():
        query.bias.zero_()[-1] = -2.0  # most pixels belong to something else
    return query


def _draw_clicks(labels: Tensor, side: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Clicks (S, K, 2) as x, y from 0 to 1, and what they belong to, (S, K, side, side)."""
    on_cpu = labels.numpy(force=True)
    chosen = np.stack([choose_things(rng, plane, _CLICKS) for plane in on_cpu])
    points = np.stack(
        [[any_pixel(rng, plane == label) for label in row] for plane, row in zip(on_cpu, chosen, strict=True)]
    )
    wanted = torch.from_numpy(chosen).to(labels.device)[..., None, None]
    truth = shrink(((labels[:, None] == wanted) & (wanted > 0)).float(), side)
    return torch.from_numpy(points).to(labels.device) / labels.shape[-1], truth


def _click_loss(query: nn.Linear, embeddings: Tensor, codes: Tensor, place: Tensor, truth: Tensor) -> Tensor:
    """BCE and dice of the pixels whose code a click's query selects."""
    scene = torch.arange(len(codes), device=codes.device)[:, None]
    cell = (place * embeddings.shape[-1]).long()
    pixel = (place * codes.shape[-1]).long()
    asked = torch.cat(
        [embeddings[scene, :, cell[..., 1], cell[..., 0]], codes[scene, :, pixel[..., 1], pixel[..., 0]]],
        -1,
    )
    queries = query(asked)
    logits = torch.einsum("skc,schw->skhw", queries[..., :-1], codes) + queries[..., -1:, None]
    return mask_loss(logits, truth).mean()


def mask_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """BCE, in proportion to the thing, plus dice; per mask.

    Plain focal loss started far slower. An empty truth counts by its BCE alone.

    Args:
        logits: (..., h, w).
        truth: the same shape or one that broadcasts to it, 0 … 1.
    """
    area = truth.sum((-2, -1))
    bce = F.binary_cross_entropy_with_logits(logits, truth.expand_as(logits), reduction="none").sum((-2, -1))
    chance = logits.sigmoid()
    overlap = (chance * truth).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (chance.square().sum((-2, -1)) + truth.square().sum((-2, -1)) + 1)
    return bce / (4 * area + logits.shape[-1] ** 2 / 40) + dice * (area > 0)


def shrink(planes: Tensor, side: int) -> Tensor:
    """Planes (N, K, H, H) to ``side`` pixels, a divisor of H, each the mean of what it covers."""
    return F.avg_pool2d(planes, planes.shape[-1] // side)


def _pixel_loss(fine: Tensor, labels: Tensor) -> Tensor:
    """Which pixels belong to things, and which lie on an outline; of logits (S, 2, h, w)."""
    solid = shrink((labels > 0).float()[:, None], fine.shape[-1])
    edge = torch.zeros_like(labels, dtype=torch.bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[:, :, 1:] |= labels[:, :, 1:] != labels[:, :, :-1]
    outline = F.max_pool2d(edge.float()[:, None], labels.shape[-1] // fine.shape[-1])
    return F.binary_cross_entropy_with_logits(fine, torch.cat([solid, outline], 1))


def _box_loss(sides: Tensor, labels: Tensor) -> Tensor:
    distances, inside = _box_distances(labels, sides.shape[-1])
    if not inside.any():
        return sides.sum() * 0
    mask = torch.from_numpy(inside).to(sides.device)
    truth = torch.from_numpy(distances).to(sides.device)[mask]
    return F.smooth_l1_loss(sides.permute(0, 2, 3, 1)[mask], truth, beta=0.1)


def _box_distances(labels: Tensor, grid: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Distances from each cell's middle to the sides of the box of the thing there, in units of 64 px."""
    planes, cells = labels.numpy(force=True), _cells(labels, grid).numpy(force=True)
    distances = np.zeros((*cells.shape, 4), np.float32)
    middle = (np.arange(grid, dtype=np.float32) + 0.5) * (planes.shape[-1] // grid) / _BOX_UNIT
    for plane, cell, out in zip(planes, cells, distances, strict=True):
        for label in np.setdiff1d(cell, [0]):
            x0, y0, x1, y1 = mask_box(plane == label) / _BOX_UNIT
            rows, columns = np.nonzero(cell == label)
            x, y = middle[columns], middle[rows]
            out[rows, columns] = np.stack([x - x0, y - y0, x1 - x, y1 - y], 1)
    return distances, cells > 0


def _cells(labels: Tensor, grid: int) -> Tensor:
    """The label in the middle of every cell, (S, grid, grid)."""
    stride = labels.shape[-1] // grid
    return labels[:, stride // 2 :: stride, stride // 2 :: stride]
