"""The refiner: a small network that draws a mask again from a close-up of the object.

Its input is the close-up's pixels, the prompt, and the masks of the first pass. Because the prompt enters at
the first convolution, and objects always have about the same size, it draws outlines and decides what belongs
to an object much better than a network of its size that answers every prompt from one embedding of the whole
image. Sources: Sofiiuk et al. 2022, "Reviving Iterative Training with Mask Guidance
for Interactive Segmentation" (prompt and mask as input maps); Chen et al. 2022, "FocalClick" (refining a
part of the image).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from regionsearch.images import Pixels
from services.segmenter.backends.pyramid import Pyramid, PyramidMaps
from services.torch_runtime.compiling import compiled
from services.torch_runtime.devices import to_device

MASKS = 3  # masks of the first pass that the network sees
LOGITS_STRIDE = 2  # pixels of the input per logit
_CHANNELS = 3 + 3 + MASKS  # pixels; where the object is, where it is not, its box; masks
_SPOTS = (3.0, 0.75), (12.0, 0.25)  # points are drawn as sums of Gaussians (width, height)
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_GREY = 124, 116, 104  # `_MEAN` as a pixel


@dataclass(frozen=True)
class RefinerInput:
    """A part of an image, and what is known about an object in it.

    Attributes:
        pixels: uint8 RGB (h, w, 3).
        points: (P, 2) as x, y in pixels of the part.
        labels: (P,); 1 for a point on the object, 0 for one on the background.
        box: (x_min, y_min, x_max, y_max) in pixels of the part.
        masks: Probabilities from the first pass, uint8 (`MASKS`, mh, mw), 255 for certain, best mask first.
        window: Where the part lies in `masks`, (left, top, right, bottom) in their pixels; it may extend
            beyond them, where the masks are empty.
    """

    pixels: Pixels
    points: NDArray[np.float64]
    labels: NDArray[np.int32]
    box: tuple[float, float, float, float] | None
    masks: NDArray[np.uint8]
    window: tuple[float, float, float, float]


class RefinerNet(Pyramid):
    """The network.

    Args:
        body: see :class:`Pyramid`, also for the next ones.
        width: channels of the pyramid.
        detail: channels of its map of stride 4.
        outline: channels of its map of stride 2.
        last_blocks: blocks of the body's last stage.
        img_size: side of the square input in pixels, a multiple of 32.
    """

    def __init__(
        self, *, body: str, width: int, detail: int, outline: int, last_blocks: int, img_size: int
    ) -> None:
        super().__init__(body, width, detail, outline, channels=_CHANNELS, last_blocks=last_blocks)
        self.img_size = img_size
        self.head = nn.Conv2d(outline, 1, kernel_size=3, padding=1)
        self.quality = nn.Sequential(
            nn.Linear(2 * width + 2 + self.depths[-1], 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the answer for input maps (B, C, side, side) of :func:`input_maps`.

        Returns:
            Mask logits, float32 (B, side / 2, side / 2), and the mask's predicted IoU, float32 (B,).
        """
        return self.answer(self.maps(maps))

    def answer(self, seen: PyramidMaps) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, from the pyramid's maps."""
        logits: Tensor = self.head(seen.outline)[:, 0].float()
        # Detached: the pyramid learns from masks alone.
        judged = torch.cat([self._of_mask(logits, seen.coarse), seen.deepest.mean((2, 3))], 1).detach()
        return logits, self.quality(judged)[:, 0].float().sigmoid()

    @staticmethod
    def _of_mask(logits: Tensor, coarse: Tensor) -> Tensor:
        """What quality is estimated from: means of the map and inside the mask, area, uncertainty."""
        chance = logits.sigmoid()
        cover = F.adaptive_avg_pool2d(chance[:, None], (coarse.shape[-2], coarse.shape[-1]))
        area = cover.mean((2, 3))
        inside = (coarse * cover).mean((2, 3)) / area.clamp(min=1e-4)
        doubt = (chance * (1 - chance)).mean((1, 2))[:, None] / area.clamp(min=1e-4)
        return torch.cat([coarse.mean((2, 3)), inside, area, doubt], 1)


class Refiner:
    """A :class:`RefinerNet` as the engine uses it.

    Args:
        net: The network, on the device.
        autocast: Makes the context that the network computes in.
        compile_net: Whether the network goes through ``torch.compile``.
    """

    def __init__(
        self,
        net: RefinerNet,
        autocast: Callable[[], AbstractContextManager[Any]],
        compile_net: bool = False,
    ) -> None:
        self.net = net.to(memory_format=torch.channels_last)
        self._run: Callable[[Tensor], tuple[Tensor, Tensor]] = compiled(self.net) if compile_net else self.net
        self._autocast = autocast
        self._device = next(net.parameters()).device
        self.mask_size = net.img_size // LOGITS_STRIDE, net.img_size // LOGITS_STRIDE

    def warmup(self) -> None:
        """Runs the network on one close-up and on two, so that no caller waits for its initialization."""
        side = self.net.img_size
        for count in (1, 2):
            self.refine([torch.zeros(_CHANNELS, side, side)] * count)

    def prepare(self, close_up: RefinerInput) -> Tensor:
        """Computes the network's input maps for a close-up, float32 (C, side, side). Thread-safe."""
        side = self.net.img_size
        pixels = shrink_pixels(close_up.pixels, side)
        masks = shrink_masks(close_up.masks, close_up.window, close_up.pixels.shape[:2], side)
        scale = side / max(close_up.pixels.shape[:2])
        points = torch.from_numpy((close_up.points + 0.5) * scale)[None]
        labels = torch.from_numpy(close_up.labels)[None]
        boxes = None if close_up.box is None else torch.tensor(close_up.box)[None] * scale
        seen = torch.from_numpy(np.concatenate([pixels, masks]))[None]
        return input_maps(seen, points, labels, boxes)[0]

    @torch.inference_mode()
    def refine(self, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Runs the network, on the device; mask logits (B, h, w) of `mask_size` and predicted IoUs (B,).

        Logits cover a square with the longer side of the close-up, which lies at its top left.
        """
        stacked = torch.stack(list(prepared)).contiguous(memory_format=torch.channels_last)
        maps = to_device(stacked, self._device)
        with self._autocast():
            return self._run(maps)


def shrunk_size(size: tuple[int, ...], side: int) -> tuple[int, int]:
    """Height and width of a part in the square input, which its longer side fills."""
    height, width = size
    longest = max(height, width)
    return max(1, round(height * side / longest)), max(1, round(width * side / longest))


def shrink_pixels(pixels: Pixels, side: int) -> NDArray[np.uint8]:
    """Scales the pixels of a part to uint8 (3, side, side), grey beyond the part."""
    height, width = shrunk_size(pixels.shape[:2], side)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = _GREY
    image = Image.fromarray(np.ascontiguousarray(pixels))
    square[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return square.transpose(2, 0, 1)


def shrink_masks(
    masks: NDArray[np.uint8], window: Sequence[float], size: tuple[int, ...], side: int
) -> NDArray[np.uint8]:
    """Scales the masks of a part to the network's input.

    Args:
        masks: uint8 (M, h, w).
        window: (left, top, right, bottom) of the part in pixels of the masks; may extend beyond them.
        size: (height, width) of the part.
        side: side of the square input.

    Returns:
        uint8 (M, side, side).
    """
    height, width = shrunk_size(size, side)
    shrunk = np.zeros((len(masks), side, side), np.uint8)
    left, top, right, bottom = window
    across, down = width / (right - left), height / (bottom - top)
    box = max(0, left), max(0, top), min(masks.shape[2], right), min(masks.shape[1], bottom)
    x0, x1 = round((box[0] - left) * across), round((box[2] - left) * across)
    y0, y1 = round((box[1] - top) * down), round((box[3] - top) * down)
    if x0 < x1 and y0 < y1:
        for into, mask in zip(shrunk, masks, strict=True):
            cut = Image.fromarray(mask).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box)
            into[y0:y1, x0:x1] = np.asarray(cut)
    return shrunk


def input_maps(seen: Tensor, points: Tensor, labels: Tensor, boxes: Tensor | None) -> Tensor:
    """Assembles the input maps of the network.

    Args:
        seen: Pixels and masks of each part, uint8 (B, 3 + MASKS, side, side).
        points: (B, P, 2) as x, y in pixels of the input; P may be 0.
        labels: (B, P); 1 for a point on the object, 0 for one on the background, other values for padding.
        boxes: (B, 4) as x_min, y_min, x_max, y_max in pixels of the input, empty for prompts without one;
            None if none has one.

    Returns:
        float32 (B, C, side, side).
    """
    side = seen.shape[-1]
    centers = torch.arange(side, device=seen.device) + 0.5
    steps = (centers - points[..., None].float()).square().unbind(-2)  # by x and by y: (B, P, side)
    prompt = torch.zeros(len(seen), 3, side, side, device=seen.device)
    for label, plane in ((1, prompt[:, 0]), (0, prompt[:, 1])):
        for index in range(points.shape[1]):
            there = labels[:, index] == label
            if there.any():
                spot = _spot(*(step[:, index] for step in steps)) * there[:, None, None]
                torch.maximum(plane, spot, out=plane)
    if boxes is not None:
        across = (centers > boxes[:, 0, None]) & (centers < boxes[:, 2, None])
        down = (centers > boxes[:, 1, None]) & (centers < boxes[:, 3, None])
        prompt[:, 2] = down[:, :, None] & across[:, None]
    mean, std = (torch.tensor(channel, device=seen.device)[:, None, None] for channel in (_MEAN, _STD))
    pixels = (seen[:, :3].float() - mean) / std
    masks = seen[:, 3:].float() / 127.5 - 1
    return torch.cat([pixels, prompt, masks], 1)


def _spot(across: Tensor, down: Tensor) -> Tensor:
    """Draws points as maps (B, side, side), from squared distances (B, side) along both axes."""
    maps = [
        height * torch.exp(-down / (2 * width**2))[:, :, None] * torch.exp(-across / (2 * width**2))[:, None]
        for width, height in _SPOTS
    ]
    return maps[0] + maps[1]
