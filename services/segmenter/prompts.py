"""Prompts: one object each, described by points, a box and a mask in any combination."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from regionsearch.masks import BoolMask
from services.segmenter.backends.base import Backend, Embedding, Geometry, PromptBatch, Size
from services.segmenter.everything import Region, box_window, draw, measure
from services.segmenter.grid import Crop
from services.segmenter.upscale import Upscaler

# The decoder's own logits, which mask prompts imitate, are about this large inside and outside of an object.
_CONFIDENT_LOGIT = 10.0


@dataclass(frozen=True)
class Prompt:
    """One object; coordinates in pixels of the image.

    Attributes:
        points: (P, 2) as x, y; P may be 0.
        labels: (P,); 1: the object is there, 0: it is not there.
        box: (x_min, y_min, x_max, y_max).
        mask: A rough mask of the object, bool (height, width).
        mask_logits: ``low_res_logits`` of an earlier answer; instead of `mask`.
    """

    points: NDArray[np.float64]
    labels: NDArray[np.int32]
    box: tuple[float, float, float, float] | None = None
    mask: BoolMask | None = None
    mask_logits: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class PromptedRegion:
    """A mask that answers a prompt, with the logits it was drawn from, float32 (h, w)."""

    region: Region
    low_res_logits: NDArray[np.float32]


def batch_prompts(
    prompts: Sequence[Prompt], geometry: Geometry, mask_size: Size, batch_size: int
) -> Iterator[tuple[list[int], PromptBatch]]:
    """Groups prompts of one shape into batches for the decoder.

    Padding shorter prompts would change their answers: the decoder attends to the padding.

    Args:
        prompts: In the caller's order.
        geometry: Of the image.
        mask_size: Of the decoder's mask prompts.
        batch_size: At most this many prompts a batch.

    Yields:
        Places in `prompts`, and the batch of the prompts at these places.
    """
    groups: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        has_mask = prompt.mask is not None or prompt.mask_logits is not None
        groups[len(prompt.points), prompt.box is not None, has_mask].append(index)
    for (count, has_box, has_mask), members in groups.items():
        for start in range(0, len(members), batch_size):
            places = members[start : start + batch_size]
            chosen = [prompts[place] for place in places]
            points = geometry.to_input(np.stack([prompt.points for prompt in chosen]))
            boxes = np.array([prompt.box for prompt in chosen if prompt.box is not None]).reshape(-1, 2, 2)
            logits = [mask_prompt(prompt, geometry, mask_size) for prompt in chosen] if has_mask else []
            yield (
                places,
                PromptBatch(
                    points=torch.from_numpy(points).float() if count else None,
                    labels=torch.from_numpy(np.stack([p.labels for p in chosen])).int() if count else None,
                    boxes=torch.from_numpy(geometry.to_input(boxes)).float().flatten(1) if has_box else None,
                    mask_logits=torch.from_numpy(np.stack(logits))[:, None] if has_mask else None,
                ),
            )


def mask_prompt(prompt: Prompt, geometry: Geometry, mask_size: Size) -> NDArray[np.float32]:
    """The mask of a prompt as logits at the decoder's resolution, float32 `mask_size`."""
    if prompt.mask_logits is not None or prompt.mask is None:
        assert prompt.mask_logits is not None
        return prompt.mask_logits.astype(np.float32)
    # The image covers the upper left part of the encoder's input, and so of the decoder's masks.
    padded = geometry.steps[0].size if len(geometry.steps) > 1 else geometry.input_size
    height = max(1, round(geometry.input_size[0] * mask_size[0] / padded[0]))
    width = max(1, round(geometry.input_size[1] * mask_size[1] / padded[1]))
    grey = Image.fromarray(prompt.mask.astype(np.uint8) * 255)
    cover = np.asarray(grey.resize((width, height), Image.Resampling.BOX), np.float32) / 255
    logits = np.full(mask_size, -_CONFIDENT_LOGIT, np.float32)
    logits[:height, :width] = (2 * cover - 1) * _CONFIDENT_LOGIT
    return logits


@torch.inference_mode()
def answer_prompts(
    backend: Backend, embedding: Embedding, prompts: PromptBatch, multimask: bool, stability_offset: float
) -> list[list[PromptedRegion]]:
    """Decodes a batch of prompts.

    Args:
        backend: The model.
        embedding: Of the image.
        prompts: Of one shape.
        multimask: The three masks of an ambiguous prompt instead of the one of a clear prompt.
        stability_offset: See `EverythingOptions`.

    Returns:
        For each prompt its masks, best predicted IoU first.
    """
    decoding = backend.decode(embedding, prompts)
    count = len(decoding.ious)
    order = decoding.ious[:, 1:].argsort(dim=1, descending=True, stable=True) + 1
    columns = order if multimask else torch.zeros_like(order[:, :1])
    rows = torch.arange(count, device=columns.device)[:, None].expand_as(columns)
    logits = decoding.logits(rows.flatten(), columns.flatten())
    scores = decoding.ious.gather(1, columns).flatten().tolist()

    size = embedding.geometry.image_size
    whole = Crop(0, 0, size[1], size[0], 0)
    upscaler = Upscaler(backend.mask_size, embedding.geometry.steps, backend.device)
    measured = measure(upscaler, logits, backend.mask_threshold, stability_offset)
    answers = []
    for mask, score, (stability, box) in zip(logits, scores, measured, strict=True):
        patch = upscaler.cut(mask, box_window(box)) if box else None
        region = Region(
            runs=draw(upscaler, patch, box or (0, 0, 0, 0), backend.mask_threshold, whole, size),
            box=box or (0, 0, 0, 0),
            predicted_iou=score,
            stability_score=stability,
            point=None,
            crop=whole,
        )
        answers.append(PromptedRegion(region, mask.cpu().numpy()))
    width = columns.shape[1]
    return [answers[start : start + width] for start in range(0, len(answers), width)]
