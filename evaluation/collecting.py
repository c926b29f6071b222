"""Runs a system over a data set and notes what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from evaluation import metrics, rle
from evaluation.dataset import Dataset, Sample
from evaluation.predictions import AbsenceScores, Predictions, RegionQueryResult, TextQueryResult, Thing
from evaluation.rle import BoolArray, FloatArray, Rle
from evaluation.system import Index, Progress, Proposals, Regions, System, TextScores

FOUND = 0.5  # IoU from which a region counts as the thing
ABSENT_NAMES = 50  # per image
REGION_QUERIES = 500  # at most, for region -> region


def propose(system: System, dataset: Dataset, progress: Progress) -> list[Proposals]:
    """Everything mode over all samples."""
    found = []
    for done, sample in enumerate(dataset.samples):
        progress("segmenting", done, len(dataset.samples))
        found.append(system.proposals(sample))
    return found


def collect(
    system: System,
    dataset: Dataset,
    proposals: Sequence[Proposals],
    *,
    seed: int,
    progress: Progress,
    clicks: bool = True,
) -> Predictions:
    """Asks a system everything that the metrics need.

    Args:
        system: What is measured.
        dataset: On what.
        proposals: Result of `propose`; shared by systems that differ only in what they do with them.
        seed: Draws the absent names and the region queries.
        progress: Told how far it is.
        clicks: Whether to click each thing.
    """
    generator = np.random.default_rng(seed)
    things = []
    for image, sample in enumerate(dataset.samples):
        progress("clicking", image, len(dataset.samples))
        click = partial(system.click, sample) if clicks else None
        things += things_of(image, sample, proposals[image].found, click)
    index = system.index(dataset.samples, proposals, progress)

    absent = [_absent(sample, len(dataset.categories), generator) for sample in dataset.samples]
    present = [sample.categories for sample in dataset.samples]
    asked = sorted({category for names in (*present, *absent) for category in names})
    rows = {category: row for row, category in enumerate(asked)}
    progress("asking", 0, 1)
    texts = index.text_scores([dataset.categories[category] for category in asked])
    layout = _Layout.of(dataset, index.regions)
    return Predictions(
        dataset=dataset,
        proposals=proposals,
        index=index,
        texts=texts,
        rows=rows,
        things=things,
        questions=_questions(dataset, index, texts, rows, layout),
        likenesses=_likenesses(index, layout, generator),
        absences=[
            _absence(image, sample, absent[image], texts.regions[:, layout.span(image)], rows)
            for image, sample in enumerate(dataset.samples)
            if len(index.regions[image])
        ],
        caption_ranks=_caption_ranks(dataset, index),
    )


@dataclass(frozen=True)
class _Layout:
    """Where regions stand in the columns of the scores, and what each of them is.

    Attributes:
        starts: First column of each image, and the number of all columns.
        image: Index of each column's image.
        shows: The columns that show a category: whose region is an instance of it, at `FOUND`.
        match: Each column's category if it is the best region of an instance, else -1.
        instances: How often each category occurs in each image, (images, categories).
    """

    starts: NDArray[np.intp]
    image: NDArray[np.intp]
    shows: Mapping[int, Sequence[int]]
    match: NDArray[np.intp]
    instances: NDArray[np.intp]

    @classmethod
    def of(cls, dataset: Dataset, regions: Sequence[Regions]) -> _Layout:
        counts = [len(found) for found in regions]
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.intp)])
        shows: dict[int, list[int]] = {}
        match = np.full(starts[-1], -1, dtype=np.intp)
        instances = np.zeros((len(regions), len(dataset.categories)), dtype=np.intp)
        for image, (sample, found) in enumerate(zip(dataset.samples, regions, strict=True)):
            categories = np.array([i.category for i in sample.instances], dtype=np.intp)
            np.add.at(instances[image], categories, 1)
            iou = rle.iou([i.mask for i in sample.instances], found.masks)
            for category, row in zip(categories.tolist(), iou, strict=True):
                shows.setdefault(category, []).extend((starts[image] + np.flatnonzero(row >= FOUND)).tolist())
                if row.size and row.max() >= FOUND:
                    match[starts[image] + row.argmax()] = category
        return cls(starts, np.repeat(np.arange(len(counts)), counts), shows, match, instances)

    def span(self, image: int) -> slice:
        """The columns of an image."""
        return slice(self.starts[image], self.starts[image + 1])

    def showing(self, category: int) -> BoolArray:
        """The columns that show a category."""
        columns = np.zeros(len(self.image), dtype=bool)
        columns[list(self.shows.get(category, ()))] = True
        return columns


def things_of(
    image: int,
    sample: Sample,
    found: Regions,
    click: Callable[[Sequence[tuple[int, int]]], Sequence[Rle]] | None = None,
) -> list[Thing]:
    """What the proposals, and a click each, make of an image's things.

    Args:
        image: Its index.
        sample: The image.
        found: All proposals, best first.
        click: From points to the masks that they select; None leaves `click_iou` unknown.
    """
    if not sample.instances:
        return []
    truths: list[Rle] = [instance.mask for instance in sample.instances]
    areas = [rle.area(truth) for truth in truths]
    iou = rle.iou(truths, found.masks)
    recall = {top: metrics.average_recall(iou, top) for top in (10, 100, 1000)}
    in_size, sizes = np.zeros(len(truths)), metrics.size_class(areas)
    for size in np.unique(sizes):  # things of other sizes take no proposal away
        in_size[sizes == size] = metrics.average_recall(iou[sizes == size], 100)
    click_iou = np.full(len(truths), np.nan)
    if click is not None:
        points = [rle.innermost_point(rle.decode(truth)) for truth in truths]
        click_iou = rle.paired_iou(click(points), truths)
    return [
        Thing(
            image,
            area,
            {top: float(recall[top][i]) for top in recall},
            float(in_size[i]),
            float(click_iou[i]),
        )
        for i, area in enumerate(areas)
    ]


def _questions(
    dataset: Dataset, index: Index, texts: TextScores, rows: dict[int, int], layout: _Layout
) -> list[TextQueryResult]:
    images = len(dataset.samples)
    holds = layout.instances > 0
    across: dict[int, tuple[BoolArray, float, float, float]] = {}
    for category in np.flatnonzero(holds.any(axis=0)).tolist():
        row, right = rows[category], layout.showing(category)
        best = texts.images[row].copy()
        np.maximum.at(best, layout.image, texts.regions[row])
        across[category] = (
            right,
            metrics.hit_rank(texts.regions[row], right),
            metrics.hit_rank(best, holds[:, category]),
            metrics.hit_rank(texts.images[row], holds[:, category]),
        )
    questions = []
    for image in range(images):
        sample, span = dataset.samples[image], layout.span(image)
        masks = [rle.decode(mask) for mask in index.regions[image].masks]
        for category in sample.categories:
            right, rank_across, grouped, whole = across[category]
            scores = texts.regions[rows[category], span]
            truth = rle.decode(rle.union([i.mask for i in sample.instances if i.category == category]))
            order = np.argsort(-scores, kind="stable")
            curve = metrics.union_curve(truth, [masks[i] for i in order])
            questions.append(
                TextQueryResult(
                    image,
                    category,
                    metrics.hit_rank(scores, right[span]),
                    rank_across,
                    grouped,
                    whole,
                    scores[order],
                    *curve,
                )
            )
    return questions


def _likenesses(index: Index, layout: _Layout, generator: np.random.Generator) -> list[RegionQueryResult]:
    """Each region that is the best of its instance looks for its like in the other images."""
    total = layout.instances.sum(axis=0)
    queries = [
        row
        for row in np.flatnonzero(layout.match >= 0).tolist()
        if total[layout.match[row]] > layout.instances[layout.image[row], layout.match[row]]
    ]
    if len(queries) > REGION_QUERIES:
        queries = sorted(generator.choice(queries, REGION_QUERIES, replace=False).tolist())
    if not queries:
        return []
    likenesses = []
    for row, scores in zip(queries, index.region_scores(queries), strict=True):
        category, image = int(layout.match[row]), int(layout.image[row])
        right = layout.match == category
        # A second region of the same thing is neither right nor wrong.
        counts = (layout.image != image) & np.isfinite(scores) & (right | ~layout.showing(category))
        others = int(total[category] - layout.instances[image, category])
        likenesses.append(
            RegionQueryResult(
                image,
                category,
                metrics.average_precision(scores[counts], right[counts], others),
                metrics.precision_at(scores[counts], right[counts], 1),
            )
        )
    return likenesses


def _absent(sample: Sample, categories: int, generator: np.random.Generator) -> list[int]:
    """Categories that a sample does not hold, as far as its truth says."""
    candidates = np.arange(categories) if sample.absent is None else np.array(sample.absent, dtype=np.intp)
    others = np.setdiff1d(candidates, sample.categories)
    return sorted(generator.choice(others, min(ABSENT_NAMES, len(others)), replace=False).tolist())


def _absence(
    image: int, sample: Sample, absent: Sequence[int], scores: FloatArray, rows: dict[int, int]
) -> AbsenceScores:
    best = scores.max(axis=1)
    return AbsenceScores(
        image, best[[rows[category] for category in sample.categories]], best[[rows[c] for c in absent]]
    )


def _caption_ranks(dataset: Dataset, index: Index) -> list[float]:
    captions = [sample.caption for sample in dataset.samples]
    if not all(captions):
        return []
    scores = index.text_scores(captions).images
    own = np.eye(len(captions), dtype=bool)
    return [metrics.hit_rank(row, right) for row, right in zip(scores, own, strict=True)]
