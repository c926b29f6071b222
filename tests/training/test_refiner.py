"""Close-ups that the refiner is trained on."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam

from services.segmenter.backends.pocket import build_pocket_sam
from training import refiner
from training.looks import LOOK, LookStore
from training.scenes import Thing
from training.store import SceneStore, StoredScene
from training.vocabulary import Vocabulary

NAMES = {"ball": ("round",), "box": ("square",)}
SIDE = refiner.ARCHITECTURE["img_size"]


def scene(seed: int) -> StoredScene:
    """Two rectangles; each thing's pixels have its label as their colour."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((180, 256), np.uint8)
    labels[100:150, 20:90] = 1
    top, left = rng.integers(5, 60), rng.integers(120, 180)
    labels[top : top + 30, left : left + 45] = 2
    image = np.repeat(labels[..., None] * 100, 3, -1).astype(np.uint8)
    return StoredScene(image, labels, [Thing("ball", (), 1), Thing("box", (), 2)])


class Scenes:
    """As a store of such scenes."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> StoredScene:
        return scene(index)


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> LookStore:
    torch.manual_seed(0)
    store = LookStore(tmp_path_factory.mktemp("looks"), cast("SceneStore", Scenes()), 30)
    small = {"img_size": 128, "width": 32, "detail": 16, "outline": 8, "body": "regnetx_002"}
    store.prepare(build_pocket_sam(**small), small, torch.device("cpu"))
    return store


def test_looks_ask_for_things_where_they_are(looks: LookStore) -> None:
    assert len(looks) == 30 * 8
    kinds = set()
    for index in range(len(looks)):
        look = looks[index]
        labels = scene(look["scene"]).labels
        assert look["label"] in (1, 2)
        for (x, y), mark in zip(look["points"].astype(int), look["marks"], strict=True):
            assert mark == -1 or (labels[y, x] == look["label"]) == mark
        left, top, right, bottom = look["window"]
        assert -1 <= left < right <= 257
        assert -1 <= top < bottom <= 257
        assert look["masks"].any()
        kinds.add((int((look["marks"] >= 0).sum()), bool(np.isnan(look["box"]).any())))
    assert kinds >= {(1, True), (0, False), (2, True)}


def test_looks_are_made_once_for_a_segmenter(looks: LookStore, monkeypatch: pytest.MonkeyPatch) -> None:
    again = LookStore(looks.folder, looks.scenes, 30)
    small = {"img_size": 128, "width": 32, "detail": 16, "outline": 8, "body": "regnetx_002"}
    torch.manual_seed(0)
    same: Sam = build_pocket_sam(**small)
    monkeypatch.setattr(LookStore, "_look", None)
    again.prepare(same, small, torch.device("cpu"))
    assert again[5].tobytes() == looks[5].tobytes()
    with pytest.raises(TypeError):  # another one's are not taken for its own
        LookStore(looks.folder, looks.scenes, 30).prepare(
            build_pocket_sam(**small), small, torch.device("cpu")
        )


@pytest.mark.parametrize("seed", range(40))
def test_a_close_up_shows_what_is_asked_for(seed: int) -> None:
    """Pixels, truth, points and box agree, however it was mirrored and transposed."""
    rng = np.random.default_rng(seed)
    drawn = scene(seed)
    look: Any = np.zeros(1, LOOK)[0]
    look["label"], look["marks"], look["box"] = 2, -1, np.nan
    rows, columns = (drawn.labels == 2).nonzero()
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    look["points"][0], look["marks"][0] = (columns.mean().round(), rows.mean().round()), 1
    if seed % 2:
        look["box"] = box
    look["found"], look["window"] = box, (0, 0, 256, 256)
    whole = np.zeros((256, 256), np.uint8)
    whole[: drawn.labels.shape[0]] = (drawn.labels == 2) * 255
    places = (np.arange(96) + 0.5) * 256 / 96
    look["masks"] = whole[np.ix_(places.astype(int), places.astype(int))]
    view = refiner._draw_view(rng, drawn, look, Vocabulary(NAMES))
    truth = view["truth"] > 127
    assert truth.any()
    assert view["name"].shape == ()
    assert view["name"] == Vocabulary(NAMES).index["box"]
    shown = view["seen"][0].reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3))
    assert (np.abs(shown - 200) < 40)[truth].mean() > 0.75
    assert (view["labels"] == 2)[truth].mean() > 0.75
    x, y = (view["points"][0] / 2).astype(int)
    assert truth[y, x]
    first = view["seen"][3].reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3)) > 127
    if first.any():
        assert (first & truth).sum() / (first | truth).sum() > 0.8
    if seed % 2:
        left, top, right, bottom = view["box"] / 2
        rows, columns = truth.nonzero()
        assert (left, top) == pytest.approx((columns.min(), rows.min()), abs=1.5)
        assert (right, bottom) == pytest.approx((columns.max() + 1, rows.max() + 1), abs=1.5)


def test_outlines_lie_on_both_sides_of_a_change() -> None:
    labels = torch.zeros(1, 6, 6, dtype=torch.uint8)
    labels[:, :, 3:] = 2
    [things, outlines] = refiner._things_and_outlines(labels)[0]
    assert things.tolist() == [[0, 0, 0, 1, 1, 1]] * 6
    assert outlines.tolist() == [[0, 0, 1, 1, 0, 0]] * 6


def test_it_begins_with_what_the_others_know() -> None:
    trainee = refiner.RefinerTrainee(refiner.ARCHITECTURE, Vocabulary(NAMES))
    sam = build_pocket_sam(img_size=64)
    clip = torch.nn.Module()
    clip.visual = torch.nn.Module()
    clip.visual.trunk = build_pocket_sam(img_size=64).image_encoder.body
    trainee.begin_from(sam, clip)
    net, trunk = trainee.net, clip.visual.trunk
    assert torch.equal(net.body.s3.b1.conv1.conv.weight, trunk.s3.b1.conv1.conv.weight)
    assert torch.equal(net.body.stem.conv.weight[:, :3], trunk.stem.conv.weight)
    assert 0 < net.body.stem.conv.weight[:, 3:].abs().mean() < 0.01
    assert torch.equal(net.smooth[0][0].weight, sam.image_encoder.smooth[0][0].weight)
