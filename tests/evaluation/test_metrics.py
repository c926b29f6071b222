"""Every metric against a case that was worked out by hand."""

import math

import numpy as np
import pytest

from evaluation import metrics
from evaluation.bootstrap import estimate, estimate_ratio


def test_mean_counts_by_weight_and_is_nan_without_any():
    assert metrics.mean([1, 0, 0, 1]) == 0.5
    assert metrics.mean([1, 0], [3, 1]) == 0.75
    assert math.isnan(metrics.mean([]))
    assert math.isnan(metrics.mean([1.0], [0.0]))


def test_class_balanced_mean_lets_a_rare_class_count_as_much_as_a_common_one():
    # class 0: (1 + 1 + 0) / 3, class 2: 0.5; class 1 does not occur
    assert metrics.class_balanced_mean([1, 1, 0, 0.5], [0, 0, 0, 2]) == pytest.approx((2 / 3 + 0.5) / 2)
    # a class whose images were not drawn is left out, not counted as 0
    assert metrics.class_balanced_mean([1, 1, 0, 0.5], [0, 0, 0, 2], [1, 1, 1, 0]) == pytest.approx(2 / 3)


def test_one_proposal_finds_at_most_one_truth():
    # the first proposal covers both truths at 0.6 / 0.7 and takes the better; the second finds nothing
    iou = np.array([[0.6, 0.1], [0.7, 0.2]])
    assert metrics.matched(iou, 0.5).tolist() == [False, True]


def test_matching_follows_the_order_of_the_proposals_not_the_best_pairing():
    # proposal 0 takes truth 0 (0.8); proposal 1, which would match it perfectly, is left with truth 1 (0.55)
    iou = np.array([[0.8, 1.0], [0.3, 0.55]])
    assert metrics.matched(iou, 0.5).tolist() == [True, True]
    assert metrics.matched(iou, 0.6).tolist() == [True, False]


def test_average_recall_counts_the_thresholds_that_are_passed():
    # .50 .55 .60 .65 .70 .75 pass 0.77: six of ten
    assert metrics.average_recall(np.array([[0.77]]), 10).tolist() == [0.6]
    assert metrics.average_recall(np.array([[0.5]]), 10).tolist() == [0.1]
    assert metrics.average_recall(np.array([[1.0]]), 10).tolist() == [1.0]


def test_average_recall_looks_at_the_first_proposals_only():
    iou = np.array([[0.0, 0.0, 1.0]])
    assert metrics.average_recall(iou, 2).tolist() == [0.0]
    assert metrics.average_recall(iou, 3).tolist() == [1.0]
    assert metrics.average_recall(np.zeros((2, 0)), 10).tolist() == [0.0, 0.0]


def test_size_classes_have_cocos_edges():
    assert metrics.size_class([1023, 1024, 9215, 9216]).tolist() == [0, 1, 1, 2]


def test_hit_rank_is_the_place_of_the_first_right_item_with_ties_against():
    right = np.array([False, True, False, True])
    assert metrics.hit_rank(np.array([0.9, 0.5, 0.7, 0.1]), right) == 3
    assert metrics.hit_rank(np.array([0.5, 0.5, 0.1, 0.1]), right) == 2
    assert metrics.hit_rank(np.array([0.9, 0.5]), np.array([False, False])) == math.inf
    assert (
        metrics.hit_rank(np.array([-np.inf, -np.inf]), np.array([False, True])) == math.inf
    )  # not retrieved


def test_average_precision():
    # right items stand 1st and 3rd: (1/1 + 2/3) / 2
    scores, right = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    assert metrics.average_precision(scores, right) == pytest.approx(5 / 6)
    # with two more that cannot be retrieved
    assert metrics.average_precision(scores, right, 4) == pytest.approx(5 / 12)
    assert math.isnan(metrics.average_precision(scores, np.zeros(3, dtype=bool)))
    # a tie counts against: wrong, right, right, wrong
    tied = np.array([0.5, 0.5, 0.3, 0.1]), np.array([True, False, True, False])
    assert metrics.average_precision(*tied) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics.precision_at(*tied, 1) == 0


def test_precision_at_counts_the_first_results():
    scores, right = np.array([0.1, 0.9, 0.5]), np.array([True, True, False])
    assert metrics.precision_at(scores, right, 1) == 1.0
    assert metrics.precision_at(scores, right, 2) == 0.5


def test_auroc():
    # pairs: .8>.3, .8>.7, .5>.3, .5<.7 -> 3 of 4
    assert metrics.auroc([0.8, 0.5], [0.3, 0.7]) == 0.75
    assert metrics.auroc([0.5], [0.5]) == 0.5
    assert metrics.auroc([0.8, 0.5], [0.3, 0.7], ([1, 0], [1, 1])) == 1.0
    assert math.isnan(metrics.auroc([], [0.5]))


def test_auroc_agrees_with_counting_every_pair(rng):
    positives, negatives = rng.integers(0, 9, 40) / 9 + 0.1, rng.integers(0, 9, 70) / 9
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    assert metrics.auroc(positives, negatives) == pytest.approx(wins.mean())


def test_fpr_at_recall():
    # 95 % of 20 positives is 19: the threshold is the second lowest positive, 2
    positives = np.arange(1.0, 21.0)
    assert metrics.fpr_at_recall(positives, [0, 1, 2, 3]) == 0.5
    # half of them: threshold 11
    assert metrics.fpr_at_recall(positives, [10, 11, 12, 0], recall=0.5) == 0.5


def test_union_curve_joins_the_masks_one_by_one():
    truth = np.array([[1, 1, 0, 0]], dtype=bool)
    masks = [np.array([[1, 0, 0, 0]], bool), np.array([[1, 0, 1, 0]], bool), np.array([[0, 1, 0, 0]], bool)]
    intersections, unions = metrics.union_curve(truth, masks)
    assert intersections.tolist() == [0, 1, 1, 2]
    assert unions.tolist() == [2, 2, 3, 3]


def test_union_curve_agrees_with_painting_each_union(rng):
    truth = rng.random((9, 7)) < 0.4
    masks = [rng.random((9, 7)) < 0.2 for _ in range(12)]
    intersections, unions = metrics.union_curve(truth, masks)
    for r in range(len(masks) + 1):
        union = np.any(masks[:r], axis=0) if r else np.zeros_like(truth)
        assert intersections[r] == (union & truth).sum()
        assert unions[r] == (union | truth).sum()


def test_index_recall_is_the_share_of_exact_neighbours():
    exact, found = np.array([[1, 2], [3, 4]]), np.array([[2, 9], [4, 3]])
    assert metrics.index_recall(exact, found).tolist() == [0.5, 1.0]
    assert metrics.index_recall(exact, [[], [4]]).tolist() == [0.0, 0.5]


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says(rng):
    # Means of 60 draws from a known distribution: 95 % intervals, 100 repeats -> 95 expected, sd about 2.
    covered = 0
    for trial in range(100):
        values = rng.exponential(size=60)
        interval = estimate(lambda w, v=values: metrics.mean(v, w), 60, draws=200, seed=trial)
        covered += interval.low <= 1.0 <= interval.high
    assert 84 <= covered <= 99


def test_the_bootstrap_is_the_same_for_the_same_seed_and_nan_without_data():
    values = np.linspace(0, 1, 20)
    first, second = (estimate(lambda w: metrics.mean(values, w), 20, seed=4, draws=50) for _ in range(2))
    assert first == second
    assert first.low < first.value == 0.5 < first.high
    assert math.isnan(estimate(lambda w: float("nan"), 3).value)


def test_a_ratio_of_sums_has_the_interval_of_its_statistic(rng):
    parts, wholes = rng.random(15), rng.random(15) + 1
    ratio = estimate_ratio(parts, wholes, draws=100, seed=5)
    slow = estimate(lambda w: (parts * w).sum() / (wholes * w).sum(), 15, draws=100, seed=5)
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([slow.value, slow.low, slow.high])
    assert math.isnan(estimate_ratio(np.zeros(3), np.zeros(3)).value)
