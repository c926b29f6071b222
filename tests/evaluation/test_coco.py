"""Average recall against pycocotools' own COCOeval: class-agnostic, by size, with overlapping things."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation import metrics, rle
from evaluation.collecting import things_of
from evaluation.dataset import Instance, Sample
from evaluation.system import Regions

SIDE = 160
COUNTS = (1, 3, 12)  # images of few things, and of more proposals than count


def blob(rng, centre, radius, stretch=None):
    y, x = np.mgrid[:SIDE, :SIDE]
    stretch = stretch or rng.uniform(0.6, 1.6)
    return rle.encode((x - centre[0]) ** 2 * stretch + (y - centre[1]) ** 2 / stretch <= radius**2)


def scenes(rng):
    """Things of all sizes that may cover each other, and proposals near them and elsewhere, best first."""
    for count in COUNTS:
        places = rng.uniform(0, SIDE, (count, 2)), np.exp(rng.uniform(np.log(3), np.log(90), count))
        truths = [blob(rng, *place) for place in zip(*places, strict=True)]
        near = rng.integers(count, size=130)
        found = [
            blob(
                rng, places[0][i] + rng.normal(0, 0.1 * places[1][i], 2), places[1][i] * rng.uniform(0.8, 1.2)
            )
            for i in near
        ]
        keep = [(t for t in masks if rle.area(t)) for masks in (truths, found)]
        yield tuple(list(masks) for masks in keep)
    # A small thing in a medium one, and a proposal for both: it finds the one that is looked for.
    middle = (SIDE / 2, SIDE / 2)
    yield [blob(rng, middle, 17, 1), blob(rng, middle, 20, 1)], [blob(rng, middle, 20, 1)]


def coco_recall(images, edges):
    """COCOeval's AR for each size class and number of proposals, (4, 3): all, small, medium, large."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "height": SIDE, "width": SIDE} for i in range(len(images))],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [
            {"id": 1 + 100 * i + j, "image_id": i, "category_id": 1 + j % 2, "iscrowd": 0,
             "segmentation": mask, "area": rle.area(mask), "bbox": [0, 0, 1, 1]}
            for i, (masks, _) in enumerate(images) for j, mask in enumerate(masks)
        ],
    }  # fmt: skip
    truth.createIndex()
    answers = [
        {"image_id": i, "category_id": 1, "segmentation": mask, "score": 1 - rank / 1000}
        for i, (_, masks) in enumerate(images)
        for rank, mask in enumerate(masks)
    ]
    judge = COCOeval(truth, truth.loadRes(answers), "segm")
    judge.params.useCats = 0
    judge.params.maxDets = [10, 100, 1000]
    judge.params.areaRng = edges
    judge.params.areaRngLbl = [str(edge) for edge in edges]
    judge.evaluate()
    judge.accumulate()
    return judge.eval["recall"].mean(axis=0)[0]  # over the thresholds


@pytest.mark.parametrize("seed", range(4))
def test_average_recall_is_that_of_cocoeval(seed):
    images = list(scenes(np.random.default_rng(seed)))
    # COCO counts an area on an edge twice; half a pixel less leaves it to the larger class.
    edges = [[0, 1e9], [0, 32**2 - 0.5], [32**2, 96**2 - 0.5], [96**2, 1e9]]
    with contextlib.redirect_stdout(io.StringIO()):
        expected = coco_recall(images, edges)
    things = []
    for number, (truths, found) in enumerate(images):
        instances = tuple(Instance(0, mask) for mask in truths)
        sample = Sample(Path(), SIDE, SIDE, "test", instances)
        things += things_of(number, sample, Regions(found, np.linspace(1, 0, len(found))))
    for column, top in enumerate((10, 100, 1000)):
        assert np.mean([thing.recall[top] for thing in things]) == pytest.approx(expected[0, column])
    sizes = metrics.size_class([thing.area for thing in things])
    for size in range(3):
        recall = [thing.recall_in_size for thing, its in zip(things, sizes, strict=True) if its == size]
        assert (np.mean(recall) if recall else -1) == pytest.approx(expected[1 + size, 1])
    assert 0.1 < expected[0, 0] < expected[0, 1] < 1  # neither trivial nor all the same
