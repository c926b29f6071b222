import re

import numpy as np
import pytest

from evaluation.baselines import GridSegmenter
from evaluation.details import per_image
from evaluation.figures import EXTRA, MISSED, RIGHT, paint, panel
from evaluation.measures import HitThreshold
from evaluation.report import render
from evaluation.run import run
from evaluation.system import InProcess
from tests.evaluation.synthetic_data import ColourEmbedder, TruthSegmenter


@pytest.fixture
def result(world):
    swapped = ColourEmbedder(["disc", "square", *world.categories[2:]])
    system = InProcess(TruthSegmenter(world, clutter=3), swapped)
    return run(system, world, others={"grid of crops": InProcess(GridSegmenter(), swapped)}, draws=20)


def test_the_page_needs_nothing_but_itself(result):
    page = render(result)
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "@import" not in page
    assert page.count("data:image/webp;base64,") == 4 * 6


def test_panels_link_to_the_page_of_their_image(world, result):
    pages = {sample.path: f"http://host/?view={at}" for at, sample in enumerate(world.samples)}
    page = render(result, pages)
    assert set(re.findall(r'<a href="(.*?)"', page)) == set(pages.values())
    (first, *_) = per_image(result, pages)
    assert first["page"] == "http://host/?view=0"


def test_the_page_has_every_number_and_its_origin(result):
    page = render(result)
    for measure in result.measures:
        assert measure.title in page
    assert result.predictions.dataset.digest() in page
    assert "grid of crops" in page
    assert f"{result.cut.value:.3f}" in page


def test_names_of_a_data_set_cannot_write_into_the_page(world, result):
    object.__setattr__(world, "categories", ("<script>alert(1)</script>", *world.categories[1:]))
    page = render(result)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_panel_shows_what_was_right_missed_and_too_much(world, result):
    # Image 0 holds a square and a disc, which this system mistakes for each other.
    shown = panel(result.predictions, 0, HitThreshold("relative_cutoff", 1.0))
    assert [(answer.name, answer.found, answer.iou) for answer in shown.answers] == [
        ("square", False, 0.0),
        ("disc", False, 0.0),
    ]
    good = panel(result.predictions, 2, HitThreshold("relative_cutoff", 1.0))
    assert good.iou == 1.0


def test_masks_are_painted_where_they_are():
    pixels = np.full((20, 20, 3), 128, dtype=np.uint8)
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:10, 5:10] = True
    painted = paint(pixels, [mask], [RIGHT])
    assert (painted[~mask] == painted[0, 0]).all()
    red, green, blue = painted[7, 7].astype(int)
    assert green > red
    assert green > blue
    assert len({RIGHT, MISSED, EXTRA}) == 3
