"""Figures of the report: the truth, the prediction, and where they differ."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from evaluation import rle
from evaluation.measures import HitThreshold
from evaluation.predictions import Predictions, TextQueryResult
from evaluation.rle import BoolArray
from regionsearch.images import Pixels

# Categorical colours that stay apart for colour-blind readers (M. Okabe and K. Ito, 2008), black left out.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8A5FBF", "#7F7F7F")
RIGHT, MISSED, EXTRA = "#009E73", "#D55E00", "#0072B2"
SIDE = 300  # longest side of an image, pixels


@dataclass(frozen=True)
class Answer:
    """One name in one image.

    Attributes:
        name: What was asked for.
        colour: CSS colour of its masks.
        iou: IoU of the predicted and the true mask.
        found: The best region is the thing (IoU ≥ 0.5).
    """

    name: str
    colour: str
    iou: float
    found: bool


@dataclass(frozen=True)
class Panel:
    """One image of the report, all images as data URIs.

    Attributes:
        title: File name and size.
        images: The image, the truth, the prediction, and the comparison.
        answers: One for each name.
    """

    title: str
    images: tuple[str, str, str, str]
    answers: Sequence[Answer]

    @property
    def iou(self) -> float:
        """Mean over the names."""
        return float(np.mean([answer.iou for answer in self.answers]))


def panel(predictions: Predictions, image: int, cut: HitThreshold) -> Panel:
    """Draws one image with every name that it holds."""
    sample = predictions.dataset.samples[image]
    pixels = sample.pixels()
    questions = [question for question in predictions.questions if question.image == image]
    truths, predicted_masks, answers = [], [], []
    for number, question in enumerate(questions):
        category = question.category
        truth = rle.union([i.mask for i in sample.instances if i.category == category])
        hits = cut.hits(question.scores)
        truths.append(rle.decode(truth))
        predicted_masks.append(_union_of_hits(predictions, question, hits, pixels))
        answers.append(
            Answer(
                predictions.dataset.categories[category],
                PALETTE[number % len(PALETTE)],
                float(question.intersections[hits] / question.unions[hits]),
                question.rank_within == 1,
            )
        )
    colours = [answer.colour for answer in answers]
    true, predicted = _any(truths, pixels), _any(predicted_masks, pixels)
    images = (
        pixels,
        paint(pixels, truths, colours),
        paint(pixels, predicted_masks, colours),
        paint(pixels, [true & predicted, true & ~predicted, predicted & ~true], [RIGHT, MISSED, EXTRA]),
    )
    title = f"{sample.path.name}, {sample.width} × {sample.height}, {sample.split}"
    first, second, third, fourth = (data_uri(image) for image in images)
    return Panel(title, (first, second, third, fourth), answers)


def paint(pixels: Pixels, masks: Sequence[BoolArray], colours: Sequence[str]) -> Pixels:
    """The image in grey with coloured, outlined masks over it; later masks cover earlier ones."""
    grey = pixels.mean(axis=2, keepdims=True) * 0.55 + 100
    canvas = np.repeat(grey, 3, axis=2)
    for mask, colour in zip(masks, colours, strict=True):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=float)
        canvas[mask] = 0.35 * pixels[mask] + 0.65 * rgb
        canvas[mask & ~_eroded(mask)] = rgb * 0.8
    return canvas.clip(0, 255).astype(np.uint8)


def data_uri(pixels: Pixels) -> str:
    """A small WebP for the `src` of an image."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _union_of_hits(
    predictions: Predictions, question: TextQueryResult, hits: int, pixels: Pixels
) -> BoolArray:
    regions = predictions.index.regions
    start = sum(len(found) for found in regions[: question.image])
    found = regions[question.image].masks
    scores = predictions.texts.regions[predictions.rows[question.category], start : start + len(found)]
    best = np.argsort(-scores, kind="stable")[:hits]
    return _any([rle.decode(found[i]) for i in best], pixels)


def _any(masks: Sequence[BoolArray], pixels: Pixels) -> BoolArray:
    return np.any(masks, axis=0) if len(masks) else np.zeros(pixels.shape[:2], dtype=bool)


def _eroded(mask: BoolArray) -> BoolArray:
    """The mask without its outermost pixels."""
    inner = np.pad(mask, 1)
    return inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
