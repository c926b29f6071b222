"""What a system did on a data set, thing by thing and question by question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.dataset import Dataset
from evaluation.metrics import IntArray
from evaluation.rle import FloatArray
from evaluation.system import Index, Proposals, TextScores


@dataclass(frozen=True)
class Thing:
    """What proposals and clicks made of one instance.

    Attributes:
        image: Index of its sample.
        area: Pixels.
        recall: Part of the IoU thresholds at which proposals find it, by how many proposals count.
        recall_in_size: The same for 100 proposals, among the things of its own size class.
        click_iou: IoU of the mask that one click in its middle selects.
    """

    image: int
    area: int
    recall: dict[int, float]
    recall_in_size: float
    click_iou: float


@dataclass(frozen=True)
class TextQueryResult:
    """One name asked of a data set, because an image holds it.

    Attributes:
        image: Index of the sample.
        category: What is asked for.
        rank_within: Rank of the first right region among those of the image.
        rank_across: Rank of the first right region among those of all images.
        image_rank_grouped: Rank of the first right image, scored by its best region or as a whole.
        image_rank_whole: The same, scored as a whole only.
        scores: Scores of the image's regions, descending.
        intersections: Pixels that the union of the first r regions shares with the truth, from r = 0 on.
        unions: Pixels in either, from r = 0 on.
    """

    image: int
    category: int
    rank_within: float
    rank_across: float
    image_rank_grouped: float
    image_rank_whole: float
    scores: FloatArray
    intersections: IntArray
    unions: IntArray


@dataclass(frozen=True)
class RegionQueryResult:
    """One region used as the query, its own image excluded."""

    image: int
    category: int
    average_precision: float
    precision_at_1: float


@dataclass(frozen=True)
class AbsenceScores:
    """Best region score of each name in an image: of those that are there and of some that are not."""

    image: int
    present: FloatArray
    absent: FloatArray


@dataclass(frozen=True)
class Predictions:
    """Everything that was noted; metrics are computed from it and nothing else.

    Attributes:
        dataset: What was looked at.
        proposals: Proposals of each sample.
        index: What was asked.
        texts: Scores of the asked names, one row for each category in `rows`.
        rows: Category -> row of `texts`.
        caption_ranks: Rank of each sample among all, asked by its caption; empty without captions.
    """

    dataset: Dataset
    proposals: Sequence[Proposals]
    index: Index
    texts: TextScores
    rows: dict[int, int]
    things: Sequence[Thing]
    questions: Sequence[TextQueryResult]
    likenesses: Sequence[RegionQueryResult]
    absences: Sequence[AbsenceScores]
    caption_ranks: Sequence[float]
