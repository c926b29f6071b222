"""The whole way from a data set to numbers, on systems whose numbers are known."""

import json

import numpy as np
import pytest

from evaluation.baselines import GridSegmenter
from evaluation.measures import HitThreshold, measure, tune_cut
from evaluation.run import run
from evaluation.system import InProcess, Proposals, Regions
from tests.evaluation.synthetic_data import ColourEmbedder, TruthSegmenter


@pytest.fixture
def perfect(world):
    return InProcess(TruthSegmenter(world, clutter=3), ColourEmbedder(world.categories))


def values(measures):
    return {one.key: one.estimate.value for one in measures}


def test_a_system_that_knows_the_truth_scores_full_marks(world, perfect):
    result = run(perfect, world, draws=20)
    reached = values(result.measures)
    assert reached.pop("proposals.found_per_picture") == 5
    assert reached.pop("proposals.kept_per_picture") == 5
    assert reached.pop("absence.fpr@95") == 0
    # Images 0 and 4, and 1 and 5, hold the same two names, so that a caption cannot tell them apart; ties
    # count against.
    assert reached.pop("image.r@1_caption") == pytest.approx(2 / 6)
    assert set(reached.values()) == {1.0}
    assert {"proposals.ar@100", "click.miou", "text_region.r@1", "image.r@1_whole"} <= set(reached)
    assert {"region_region.map", "class_mask.miou", "class_mask.oiou", "absence.auroc"} <= set(reached)


def test_a_wrong_name_costs_exactly_its_questions(world, perfect):
    perfect.embedder = ColourEmbedder(["disc", "square", *world.categories[2:]])  # two names swapped
    reached = values(run(perfect, world, draws=20).measures)
    # Squares and discs are asked for in 3 + 4 of the 12 questions. Where both are in the image they are
    # mistaken for each other; where only one is, nothing has its colour and it does not stand out.
    assert reached["text_region.r@1"] == pytest.approx(5 / 12)
    assert reached["click.miou"] == 1.0
    assert reached["region_region.map"] == 1.0


def test_baselines_are_worse_and_share_nothing_but_the_data(world, perfect):
    others = {
        "grid": InProcess(GridSegmenter(), perfect.embedder),
        "whole image": InProcess(GridSegmenter((1,)), perfect.embedder),
        "same regions": InProcess(perfect.segmenter, perfect.embedder, "context"),
    }
    result = run(perfect, world, others=others, draws=20)
    whole = values(result.comparisons["whole image"])
    assert whole["proposals.kept_per_picture"] == 1
    assert whole["text_region.r@1"] == 0  # the whole image is not a region of anything
    assert whole["image.r@5"] == 1
    assert values(result.comparisons["same regions"])["text_region.r@1"] == 1
    assert "click.miou" not in values(result.comparisons["grid"])


def test_equal_seeds_give_equal_numbers_and_the_json_has_them_all(world, perfect):
    first, second = (run(perfect, world, seed=3, draws=20).as_json() for _ in range(2))
    assert first["metrics"] == second["metrics"]
    assert json.loads(json.dumps(first, allow_nan=False))["dataset"]["things"] == 12
    assert first["dataset"]["digest"] == world.digest()
    assert first["system"]["embedder"] == {"code": "colour"}


def test_an_image_without_regions_counts_as_a_miss(world, perfect):
    class Blind(TruthSegmenter):
        def everything(self, pixels):
            return Proposals(super().everything(pixels).found, Regions([], np.zeros(0)))

    perfect.segmenter = Blind(world)
    perfect.embedder.regions = lambda pixels, masks, policy: np.zeros((0, 7), dtype=np.float32)
    reached = values(run(perfect, world, draws=20).measures)
    assert reached["text_region.r@1"] == 0
    assert reached["class_mask.miou"] == 0
    assert reached["proposals.ar@100"] == 1
    assert "absence.auroc" not in reached
    assert "region_region.map" not in reached


def test_large_canvases_are_measured_apart_where_there_are_both_kinds(world, perfect, monkeypatch):
    assert not [key for key in values(run(perfect, world, draws=2).measures) if "canvas" in key]
    monkeypatch.setattr("evaluation.measures.LARGE_CANVAS", 79)
    assert not [key for key in values(run(perfect, world, draws=2).measures) if "canvas" in key]
    predictions = run(perfect, world, draws=2).predictions
    object.__setattr__(world.samples[0], "width", 70)
    large = next(m for m in measure(predictions, draws=2)[0] if m.key == "large_canvas.click_miou")
    assert large.items == 10
    assert large.estimate.value == 1


def test_a_cut_counts_hits_by_its_rule():
    scores = np.array([0.8, 0.5, 0.3])
    assert HitThreshold("min_score", 0.5).hits(scores) == 2
    assert HitThreshold("min_score", 0.9).hits(scores) == 0
    assert HitThreshold("relative_cutoff", 0.6).hits(scores) == 2
    assert HitThreshold("relative_cutoff", 1.0).hits(scores) == 1
    assert HitThreshold("relative_cutoff", 0.6).hits(np.zeros(0)) == 0


def test_the_cut_is_tuned_to_the_best_mean_iou(world, perfect):
    questions = run(perfect, world, draws=2).predictions.questions
    cut = tune_cut(questions)
    assert all(
        question.intersections[cut.hits(question.scores)] == question.unions[cut.hits(question.scores)]
        for question in questions
    )


def test_no_threshold_is_tuned_on_the_images_that_it_is_reported_on(world, perfect):
    for sample in world.samples:
        object.__setattr__(sample, "split", "test")
    assert run(perfect, world, draws=2).cut == HitThreshold("relative_cutoff", 1.0)


def test_only_names_that_are_known_to_be_absent_are_asked_as_absent(world, perfect):
    for sample in world.samples:
        object.__setattr__(sample, "absent", (5,))
    predictions = run(perfect, world, draws=2).predictions
    assert [len(one.absent) for one in predictions.absences] == [1] * 6


def test_confident_matches_are_counted_at_the_models_own_cut_off(world, perfect, monkeypatch):
    own = {"code": "colour", "cut_offs": {"blur": 1.5}}  # which no cosine reaches
    monkeypatch.setattr(perfect.embedder, "describe", lambda: dict(own))
    served = run(perfect, world, draws=20)
    assert served.cut_off == 1.5
    assert values(served.measures)["confident.absent_silent"] == 1
    assert values(served.measures)["confident.recall"] == 0
    chosen = run(perfect, world, draws=20, calibrate=True)
    assert chosen.cut_off < 1.01
    assert values(chosen.measures)["confident.recall"] == 1
