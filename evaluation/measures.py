"""From evidence to numbers: what is reported, under which key, over how many items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evaluation import metrics
from evaluation.bootstrap import Estimate, Statistic, estimate, estimate_ratio
from evaluation.calibration import Pairs, measured_pairs
from evaluation.predictions import AbsenceScores, Predictions, RegionQueryResult, TextQueryResult, Thing
from evaluation.rle import FloatArray

SIZES = ("small", "medium", "large")
LARGE_CANVAS = 256  # pixels; the side of the square scenes that the pocket models were trained on


@dataclass(frozen=True)
class Measure:
    """One reported number.

    Attributes:
        key: Stable name, `group.metric`.
        title: For people.
        estimate: Value and interval.
        items: What it was measured on: things, questions, queries or scores.
    """

    key: str
    title: str
    estimate: Estimate
    items: int

    @property
    def group(self) -> str:
        """The first part of the key."""
        return self.key.split(".")[0]

    def as_json(self) -> dict[str, Any]:
        """Value, interval and count."""
        return {**asdict(self.estimate), "items": self.items}


@dataclass(frozen=True)
class HitThreshold:
    """Which regions are hits: the rule of a search that was chosen on the tuning images.

    Attributes:
        rule: `min_score` (a cosine) or `relative_cutoff` (a part of the image's best score).
        value: Its threshold.
    """

    rule: str
    value: float

    def hits(self, scores: FloatArray) -> int:
        """How many of the falling `scores` pass."""
        if not scores.size:
            return 0
        if self.rule == "min_score":
            return int((scores >= self.value).sum())
        return max(int((scores >= self.value * scores[0]).sum()), 1)


@dataclass
class _Reporter:
    """Estimates metrics over one data set's images with one seed."""

    images: int
    seed: int
    draws: int

    def add(self, key: str, title: str, statistic: Statistic, items: int) -> Measure:
        return Measure(key, title, estimate(statistic, self.images, draws=self.draws, seed=self.seed), items)

    def ratio(
        self, key: str, title: str, image: Sequence[int], parts: ArrayLike, wholes: ArrayLike
    ) -> Measure:
        above, below = (
            np.bincount(np.asarray(image, dtype=np.intp), np.asarray(values), self.images).astype(float)
            for values in (parts, wholes)
        )
        value = estimate_ratio(above, below, draws=self.draws, seed=self.seed)
        return Measure(key, title, value, len(image))

    def mean(self, key: str, title: str, image: Sequence[int], values: ArrayLike) -> Measure:
        return self.ratio(key, title, image, values, np.ones(len(image)))

    def by_class(
        self, key: str, title: str, image: Sequence[int], classes: Sequence[int], values: ArrayLike
    ) -> Measure:
        index, array = np.asarray(image, dtype=np.intp), np.asarray(values, dtype=np.float64)
        return self.add(
            key, title, lambda w: metrics.class_balanced_mean(array, classes, w[index]), len(array)
        )


def measure(
    predictions: Predictions, *, seed: int = 0, draws: int = 1000, served_cut_off: float | None = None
) -> tuple[list[Measure], HitThreshold, float | None]:
    """Every metric with its interval, the cut that the class masks were made with, and the model's cut-off.

    Args:
        predictions: What a system did.
        seed: Random seed of the bootstrap.
        draws: Number of bootstrap samples.
        served_cut_off: That of the system's searches; without it one is chosen on the tuning images.
    """
    report = _Reporter(len(predictions.dataset.samples), seed, draws)
    cut = tune_cut(_of_split(predictions, "tune"))
    pairs = measured_pairs(predictions)
    tune = np.array([sample.split == "tune" for sample in predictions.dataset.samples], np.bool_)
    cut_off = pairs.of(tune).cut_off() if served_cut_off is None else served_cut_off
    parts: list[Callable[[Predictions, _Reporter], list[Measure]]] = [
        _proposals, _clicks, _text_to_region, _image_level, _region_to_region,
    ]  # fmt: skip
    measures = [one for part in parts for one in part(predictions, report)]
    measures += _class_masks(predictions, report, cut) + _absence(predictions, report)
    measures += _large_canvases(predictions, report)
    if cut_off is not None:
        measures += _confident(pairs.of(~tune), predictions, report, cut_off)
    return [one for one in measures if one.items and not np.isnan(one.estimate.value)], cut, cut_off


def _proposals(predictions: Predictions, report: _Reporter) -> list[Measure]:
    things = predictions.things
    image = _images(things)
    sizes = metrics.size_class([thing.area for thing in things])
    measures = [
        report.mean(f"proposals.ar@{top}", f"AR@{top}", image, [thing.recall[top] for thing in things])
        for top in (10, 100, 1000)
    ]
    among = [thing.recall[1000] > 0 for thing in things]  # the lowest of its IoU thresholds is 0.5
    measures.append(report.mean("proposals.found", "Things among the regions (IoU ≥ 0.5)", image, among))
    for number, size in enumerate(SIZES):
        chosen = [thing for thing, its in zip(things, sizes, strict=True) if its == number]
        measures.append(
            report.mean(
                f"proposals.ar@100_{size}",
                f"AR@100, {size}",
                _images(chosen),
                [thing.recall_in_size for thing in chosen],
            )
        )
    kept = [len(regions) for regions in predictions.index.regions]
    found = [len(proposed.found) for proposed in predictions.proposals]
    every = range(len(found))
    return [
        *measures,
        report.mean("proposals.found_per_picture", "Regions found per image", every, found),
        report.mean("proposals.kept_per_picture", "Regions indexed per image", every, kept),
    ]


def _clicks(predictions: Predictions, report: _Reporter) -> list[Measure]:
    things = [thing for thing in predictions.things if not np.isnan(thing.click_iou)]
    image, iou = _images(things), np.array([thing.click_iou for thing in things])
    return [
        report.mean("click.miou", "One-click mIoU", image, iou),
        report.mean("click.found", "One click finds the thing (IoU ≥ 0.5)", image, iou >= 0.5),
    ]


def _text_to_region(predictions: Predictions, report: _Reporter) -> list[Measure]:
    image = _images(predictions.questions)
    within = np.array([question.rank_within for question in predictions.questions])
    across = np.array([question.rank_across for question in predictions.questions])
    return [
        report.mean(f"text_region.r@{top}", f"R@{top} within the image", image, within <= top)
        for top in (1, 5)
    ] + [
        report.mean(f"text_region.r@{top}_across", f"R@{top} across all images", image, across <= top)
        for top in (1, 5)
    ]


def _image_level(predictions: Predictions, report: _Reporter) -> list[Measure]:
    image = _images(predictions.questions)
    grouped = np.array([question.image_rank_grouped for question in predictions.questions])
    whole = np.array([question.image_rank_whole for question in predictions.questions])
    captions = np.array(predictions.caption_ranks)
    every = range(len(captions))
    return [
        *(
            report.mean(f"image.r@{top}", f"R@{top}, names, image or its best region", image, grouped <= top)
            for top in (1, 5, 10)
        ),
        *(
            report.mean(f"image.r@{top}_whole", f"R@{top}, names, whole image only", image, whole <= top)
            for top in (1, 5, 10)
        ),
        *(
            report.mean(f"image.r@{top}_caption", f"R@{top}, captions, whole image", every, captions <= top)
            for top in (1, 5, 10)
        ),
    ]


def _region_to_region(predictions: Predictions, report: _Reporter) -> list[Measure]:
    items = predictions.likenesses
    image, classes = _images(items), [item.category for item in items]
    return [
        report.by_class(
            "region_region.map", "mAP, classes balanced", image, classes,
            [item.average_precision for item in items],
        ),
        report.by_class(
            "region_region.p@1", "P@1, classes balanced", image, classes,
            [item.precision_at_1 for item in items],
        ),
    ]  # fmt: skip


def _class_masks(predictions: Predictions, report: _Reporter, cut: HitThreshold) -> list[Measure]:
    questions = _of_split(predictions, "test")
    inter, union = cut_masks(questions, cut)
    image = _images(questions)
    classes = [question.category for question in questions]
    return [
        report.by_class("class_mask.miou", "mIoU over classes", image, classes, inter / union),
        report.mean("class_mask.iou", "IoU per image and name", image, inter / union),
        report.ratio("class_mask.oiou", "oIoU", image, inter, union),
    ]


def _large_canvases(predictions: Predictions, report: _Reporter) -> list[Measure]:
    """The main numbers on larger images; nothing where all images are large, or none."""
    samples = predictions.dataset.samples
    large = [max(sample.height, sample.width) > LARGE_CANVAS for sample in samples]
    if all(large):
        return []
    things = [thing for thing in predictions.things if large[thing.image]]
    clicked = [thing for thing in things if not np.isnan(thing.click_iou)]
    asked = [question for question in predictions.questions if large[question.image]]
    recall, iou = [thing.recall[100] for thing in things], [thing.click_iou for thing in clicked]
    first = [question.rank_within <= 1 for question in asked]
    return [
        report.mean("large_canvas.ar@100", "AR@100", _images(things), recall),
        report.mean("large_canvas.click_miou", "One-click mIoU", _images(clicked), iou),
        report.mean("large_canvas.text_region_r@1", "Text → region R@1", _images(asked), first),
    ]


def _absence(predictions: Predictions, report: _Reporter) -> list[Measure]:
    items = predictions.absences
    if not items:
        return []
    present = np.concatenate([item.present for item in items])
    absent = np.concatenate([item.absent for item in items])
    at = (
        np.repeat(_images(items), [len(item.present) for item in items]),
        np.repeat(_images(items), [len(item.absent) for item in items]),
    )
    within = [metrics.auroc(item.present, item.absent) for item in items]
    known = ~np.isnan(within)
    return [
        report.add(
            "absence.auroc", "AUROC, all images pooled",
            lambda w: metrics.auroc(present, absent, (w[at[0]], w[at[1]])), len(present) + len(absent),
        ),
        report.mean(
            "absence.auroc_within", "AUROC within an image",
            [item.image for item, ok in zip(items, known, strict=True) if ok], np.array(within)[known],
        ),
        report.add(
            "absence.fpr@95", "False positives at 95 % recall",
            lambda w: metrics.fpr_at_recall(present, absent, 0.95, (w[at[0]], w[at[1]])),
            len(present) + len(absent),
        ),
    ]  # fmt: skip


def _confident(pairs: Pairs, predictions: Predictions, report: _Reporter, cut_off: float) -> list[Measure]:
    """What the cut-off reaches on the images that it was not chosen on; of absent names, on all."""
    kept = pairs.scores >= cut_off
    hits = kept & pairs.right
    absences = predictions.absences
    silent = np.concatenate([np.zeros(0), *(item.absent < cut_off for item in absences)])
    image = np.repeat(_images(absences), [len(item.absent) for item in absences])
    return [
        report.mean(
            "confident.precision", "Confident matches that are right",
            pairs.image[kept].tolist(), hits[kept],
        ),
        report.mean(
            "confident.recall", "Regions of what is asked for that are confident",
            pairs.image[pairs.right].tolist(), hits[pairs.right],
        ),
        report.mean(
            "confident.absent_silent", "Absent names without a confident match in an image",
            image.tolist(), silent,
        ),
    ]  # fmt: skip


def tune_cut(questions: Sequence[TextQueryResult]) -> HitThreshold:
    """The rule and threshold with the best class-mask mIoU on these questions; the first of equals.

    Without questions to tune on it is the best region alone, which needs no threshold.
    """
    scores = known_scores(questions)
    if not scores.size:
        return HitThreshold("relative_cutoff", 1.0)
    candidates = [HitThreshold("min_score", float(t)) for t in np.linspace(scores.min(), scores.max(), 201)]
    candidates += [HitThreshold("relative_cutoff", float(part)) for part in np.linspace(0.5, 1, 51)]
    classes = [question.category for question in questions]

    def quality(cut: HitThreshold) -> float:
        inter, union = cut_masks(questions, cut)
        return metrics.class_balanced_mean(inter / union, classes)

    return max(candidates, key=quality)


def cut_masks(questions: Sequence[TextQueryResult], cut: HitThreshold) -> tuple[FloatArray, FloatArray]:
    """Pixels of intersection and union for each question, when `cut` decides what is a hit."""
    hits = [cut.hits(question.scores) for question in questions]
    inter = [question.intersections[n] for question, n in zip(questions, hits, strict=True)]
    union = [question.unions[n] for question, n in zip(questions, hits, strict=True)]
    return np.array(inter, dtype=np.float64), np.array(union, dtype=np.float64)


def known_scores(questions: Sequence[TextQueryResult]) -> FloatArray:
    """All scores of the regions that were retrieved."""
    scores = np.concatenate([np.zeros(0), *(question.scores for question in questions)])
    known: FloatArray = scores[np.isfinite(scores)]
    return known


def _images(items: Sequence[Thing | TextQueryResult | RegionQueryResult | AbsenceScores]) -> list[int]:
    return [item.image for item in items]


def _of_split(predictions: Predictions, split: str) -> list[TextQueryResult]:
    samples = predictions.dataset.samples
    return [question for question in predictions.questions if samples[question.image].split == split]
