"""Prompts: one object each, described by points, a box and a mask in any combination."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from regionsearch.errors import invalid
from regionsearch.masks import BoolMask
from regionsearch.prompts import check_box, check_point
from services.segmenter.backends.base import Backend, Embedding, FoundMasks, Geometry, PromptBatch, Size
from services.segmenter.everything import Region
from services.segmenter.grid import Crop
from services.segmenter.masks import draw, measure
from services.segmenter.upscale import Upscaler, upscaler_for

# Magnitude of the decoder's own logits inside and outside of an object, which mask prompts imitate.
_CONFIDENT_LOGIT = 10.0
_LARGEST_LOGIT = 1e4  # more than any answer has; much larger values overflow

# Pixels of the masks that are read in one go; other calls may run before the rest.
READ_PIXELS = 1 << 27

# Prompts do not have options; their stability is measured with everything mode's default.
STABILITY_OFFSET = 1.0


@dataclass(frozen=True)
class RoughMask:
    """A mask prompt, decoded on use: a few bytes can encode as many pixels as a large image has.

    Attributes:
        size: (height, width).
        decode: Returns the mask, bool (height, width); may raise.
    """

    size: Size
    decode: Callable[[], BoolMask]


@dataclass(frozen=True)
class Prompt:
    """One object; coordinates in pixels of the image.

    Attributes:
        points: (P, 2) as x, y; P may be 0.
        labels: (P,); 1 for a point on the object, 0 for one on the background.
        box: (x_min, y_min, x_max, y_max).
        mask: A rough mask of the object.
        mask_logits: ``low_res_logits`` of an earlier answer, in place of `mask`.
    """

    points: NDArray[np.float64]
    labels: NDArray[np.int32]
    box: tuple[float, float, float, float] | None = None
    mask: RoughMask | None = None
    mask_logits: NDArray[np.float32] | None = None

    @property
    def has_mask(self) -> bool:
        """Whether the prompt contains a mask, of either kind."""
        return self.mask is not None or self.mask_logits is not None


@dataclass(frozen=True)
class PromptedRegion:
    """A mask that answers a prompt, with the logits it was drawn from, float32 (h, w)."""

    region: Region
    low_res_logits: NDArray[np.float32]


NO_LOGITS = np.empty((0, 0), np.float32)


def without_logits(answer: PromptedRegion) -> PromptedRegion:
    """Drops the logits, so that the answer does not keep the decoder's output alive."""
    return replace(answer, low_res_logits=NO_LOGITS)


def check_prompts(prompts: Sequence[Prompt], size: Size, mask_size: Size) -> None:
    """Checks that prompts lie inside the image and that their masks have its size.

    Raises:
        RegionSearchError: INVALID_ARGUMENT, naming the prompt.
    """
    for index, prompt in enumerate(prompts):
        name = f"prompts.prompts[{index}]"
        for place, point in enumerate(prompt.points.tolist()):
            check_point(point, size, f"{name}.points[{place}]")
        if prompt.box is not None:
            check_box(prompt.box, size, f"{name}.box")
        if prompt.mask is not None and prompt.mask.size != size:
            raise invalid(
                f"{name}.mask",
                f"{name}.mask is {prompt.mask.size[0]} x {prompt.mask.size[1]}, the image {size[0]} x "
                f"{size[1]}; send a mask as large as the image",
            )
        if prompt.mask_logits is not None and prompt.mask_logits.shape != mask_size:
            raise invalid(
                f"{name}.mask_logits",
                f"{name}.mask_logits has shape {list(prompt.mask_logits.shape)}; this model takes "
                f"{list(mask_size)}, as in the low_res_logits of its answers",
            )


def group_prompts(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Groups prompts of equal shape; returns their indices in `prompts`.

    Padding shorter prompts would change their answers: the decoder attends to the padding. A group is read in
    one go, so that large masks are spread over several groups.
    """
    groups: dict[tuple[int, bool, bool], list[list[int]]] = defaultdict(list)
    pixels: dict[int, int] = defaultdict(int)
    for index, prompt in enumerate(prompts):
        shape = groups[len(prompt.points), prompt.box is not None, prompt.has_mask]
        more = prompt.mask.size[0] * prompt.mask.size[1] if prompt.mask else 0
        if not shape or pixels[id(shape[-1])] + more > READ_PIXELS:
            shape.append([])
        shape[-1].append(index)
        pixels[id(shape[-1])] += more
    return [group for shape in groups.values() for group in shape]


def stack_prompts(prompts: Sequence[Prompt], geometry: Geometry, mask_size: Size) -> PromptBatch:
    """Stacks prompts of one shape for the decoder; decodes their masks, one after the other.

    Args:
        prompts: At least one.
        geometry: The image's geometry.
        mask_size: (height, width) of mask prompts that the decoder takes.
    """
    first = prompts[0]
    points = geometry.to_input(np.stack([prompt.points for prompt in prompts]))
    labels = np.stack([prompt.labels for prompt in prompts])
    boxes = np.array([prompt.box for prompt in prompts if prompt.box is not None]).reshape(-1, 2, 2)
    logits = [mask_prompt(prompt, geometry, mask_size) for prompt in prompts] if first.has_mask else []
    count, has_box = len(first.points), first.box is not None
    return PromptBatch(
        points=torch.from_numpy(points).float() if count else None,
        labels=torch.from_numpy(labels).int() if count else None,
        boxes=torch.from_numpy(geometry.to_input(boxes)).float().flatten(1) if has_box else None,
        mask_logits=torch.from_numpy(np.stack(logits))[:, None] if logits else None,
    )


def mask_prompt(prompt: Prompt, geometry: Geometry, mask_size: Size) -> NDArray[np.float32]:
    """Converts the mask of a prompt to logits at the decoder's resolution, float32 of `mask_size`."""
    if prompt.mask_logits is not None or prompt.mask is None:
        assert prompt.mask_logits is not None
        return prompt.mask_logits.astype(np.float32).clip(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    # The image covers the top left part of the encoder's input, and so of the decoder's masks.
    height, width = (
        max(1, round(of_input * of_mask / of_padded))
        for of_input, of_mask, of_padded in zip(
            geometry.input_size, mask_size, geometry.padded_size, strict=True
        )
    )
    grey = Image.fromarray(prompt.mask.decode().astype(np.uint8) * 255)
    cover = np.asarray(grey.resize((width, height), Image.Resampling.BOX), np.float32) / 255
    logits = np.full(mask_size, -_CONFIDENT_LOGIT, np.float32)
    logits[:height, :width] = (2 * cover - 1) * _CONFIDENT_LOGIT
    return logits


@dataclass(frozen=True)
class PromptedMasks:
    """The masks for a batch of prompts, in the decoder's order.

    Attributes:
        logits: Low-resolution masks, float32 (prompts, masks, h, w), on the device.
        scores: Predicted IoU, float32 (prompts, masks).
    """

    logits: Tensor
    scores: Tensor


@torch.inference_mode()
def decode_prompts(
    backend: Backend, embedding: Embedding, prompts: PromptBatch, multimask: bool
) -> PromptedMasks:
    """Decodes prompts, on the device.

    Args:
        backend: The model.
        embedding: The image's embedding.
        prompts: Prompts of one shape.
        multimask: Return the three masks for ambiguous prompts instead of the single one.
    """
    logits, scores = [], []
    for batch in prompts.split(backend.decode_batch):
        decoding = backend.decode(embedding, batch)
        ious = decoding.ious[:, 1:] if multimask else decoding.ious[:, :1]
        rows = torch.arange(len(ious))[:, None].expand_as(ious)
        columns = torch.arange(int(multimask), ious.shape[1] + int(multimask))
        masks = decoding.logits(rows.flatten(), columns.expand_as(ious).flatten())
        logits.append(masks.view(*ious.shape, *masks.shape[1:]))
        scores.append(ious)
    return PromptedMasks(torch.cat(logits), torch.cat(scores))


@torch.inference_mode()
def draw_answers(
    backend: Backend, embedding: Embedding, decoded: PromptedMasks, crop: Crop, image_size: Size
) -> list[list[PromptedRegion]]:
    """Draws the masks of each prompt at full resolution, best first.

    Args:
        backend: The model.
        embedding: The crop's embedding.
        decoded: The decoder's masks.
        crop: The crop that the prompts were answered in.
        image_size: (height, width) of the whole image, which the masks are drawn into.
    """
    upscaler = upscaler_for(backend.mask_size, embedding.geometry.steps, backend.device)
    logits, scores = decoded.logits.flatten(0, 1), decoded.scores.flatten().tolist()
    regions = draw_masks(upscaler, logits, scores, backend.mask_threshold, crop, image_size)
    found = list(map(PromptedRegion, regions, logits.cpu().numpy()))
    each = decoded.scores.shape[1]
    return [
        sorted(found[start : start + each], key=lambda one: one.region.rank, reverse=True)
        for start in range(0, len(found), each)
    ]


@torch.inference_mode()
def draw_found(backend: Backend, embedding: Embedding, found: FoundMasks) -> list[Region]:
    """Draws what a phrase names in an image at full resolution, best first; empty masks are left out."""
    size = embedding.geometry.image_size
    if not len(found.scores):
        return []
    upscaler = upscaler_for(tuple(found.logits.shape[1:]), embedding.geometry.steps, backend.device)
    scores = found.scores.tolist()
    regions = draw_masks(upscaler, found.logits, scores, backend.mask_threshold, Crop.whole(size), size)
    return [region for region in regions if region.area]


def draw_masks(
    upscaler: Upscaler,
    logits: Tensor,
    scores: Sequence[float],
    threshold: float,
    crop: Crop,
    image_size: Size,
) -> list[Region]:
    """Draws low-resolution masks (n, h, w) of a crop, with their predicted IoUs, as regions of the image."""
    found = measure(upscaler, logits, threshold, STABILITY_OFFSET)
    masks = draw(upscaler, logits, found.boxes, threshold, crop, image_size)
    return [
        Region(runs, crop.moved((left, top, right, bottom)), score, stability, None, crop)
        for runs, (left, top, right, bottom), score, stability in zip(
            masks, found.boxes.tolist(), scores, found.stability.tolist(), strict=True
        )
    ]
