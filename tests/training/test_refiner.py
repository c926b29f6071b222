"""Close-ups that the refiner is trained on."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam

from services.segmenter.backends.pocket import build_pocket_sam
from services.segmenter.backends.refiner import RefinerNet
from training import refiner
from training.first_passes import FIRST_PASS, FirstPassCache
from training.loop import Run
from training.refiner_dataset import RefinerDataset, draw_view
from training.scenes import Scene, Thing
from training.store import SceneStore
from training.vocabulary import Vocabulary

NAMES = {"ball": ("round",), "box": ("square",)}
SIDE = refiner.ARCHITECTURE["img_size"]


def scene(seed: int) -> Scene:
    """Two rectangles; each thing's pixels have its label as their colour."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((180, 256), np.uint8)
    labels[100:150, 20:90] = 1
    top, left = rng.integers(5, 60), rng.integers(120, 180)
    labels[top : top + 30, left : left + 45] = 2
    image = np.repeat(labels[..., None] * 100, 3, -1).astype(np.uint8)
    return Scene(image, labels, [Thing("ball", (), 1), Thing("box", (), 2)])


class Scenes:
    """As a store of such scenes."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Scene:
        return scene(index)


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> FirstPassCache:
    torch.manual_seed(0)
    store = FirstPassCache(tmp_path_factory.mktemp("looks"), cast("SceneStore", Scenes()), 30)
    small = {"img_size": 128, "width": 32, "detail": 16, "outline": 8, "body": "regnetx_002"}
    store.prepare(build_pocket_sam(**small), small, torch.device("cpu"))
    return store


def test_first_passes_prompt_things_where_they_are(passes: FirstPassCache) -> None:
    assert len(passes) == 30 * 8
    kinds = set()
    for index in range(len(passes)):
        entry = passes[index]
        labels = scene(entry["scene"]).labels
        assert entry["label"] in (1, 2)
        for (x, y), mark in zip(entry["points"].astype(int), entry["marks"], strict=True):
            assert mark == -1 or (labels[y, x] == entry["label"]) == mark
        left, top, right, bottom = entry["window"]
        assert -1 <= left < right <= 257
        assert -1 <= top < bottom <= 257
        assert entry["masks"].any()
        kinds.add((int((entry["marks"] >= 0).sum()), bool(np.isnan(entry["box"]).any())))
    several = {kind for kind in kinds if kind[0] > 1}
    assert several
    assert several <= {(2, True), (3, True), (4, True)}
    assert kinds - several == {(1, True), (0, False)}


def test_first_passes_are_cached_for_a_segmenter(
    passes: FirstPassCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = FirstPassCache(passes.folder, passes.scenes, 30)
    small = {"img_size": 128, "width": 32, "detail": 16, "outline": 8, "body": "regnetx_002"}
    torch.manual_seed(0)
    same: Sam = build_pocket_sam(**small)
    monkeypatch.setattr(FirstPassCache, "_run_segmenter", None)
    again.prepare(same, small, torch.device("cpu"))
    assert again[5].tobytes() == passes[5].tobytes()
    with pytest.raises(TypeError):  # another one's are not taken for its own
        FirstPassCache(passes.folder, passes.scenes, 30).prepare(
            build_pocket_sam(**small), small, torch.device("cpu")
        )


@pytest.mark.parametrize("seed", range(40))
def test_a_close_up_shows_what_is_asked_for(seed: int) -> None:
    """Pixels, truth, points and box agree, however it was mirrored and transposed."""
    rng = np.random.default_rng(seed)
    drawn = scene(seed)
    entry: Any = np.zeros(1, FIRST_PASS)[0]
    entry["label"], entry["marks"], entry["box"] = 2, -1, np.nan
    rows, columns = (drawn.labels == 2).nonzero()
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    entry["points"][0], entry["marks"][0] = (columns.mean().round(), rows.mean().round()), 1
    if seed % 2:
        entry["box"] = box
    entry["found"], entry["window"] = box, (0, 0, 256, 256)
    whole = np.zeros((256, 256), np.uint8)
    whole[: drawn.labels.shape[0]] = (drawn.labels == 2) * 255
    places = (np.arange(96) + 0.5) * 256 / 96
    entry["masks"] = whole[np.ix_(places.astype(int), places.astype(int))]
    view = draw_view(rng, drawn, entry, Vocabulary(NAMES), SIDE)
    truth = view["truth"] > 127
    assert truth.any()
    assert view["name"].shape == ()
    assert view["name"] == Vocabulary(NAMES).index["box"]
    shown = view["seen"][0].reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3))
    assert (np.abs(shown - 200) < 40)[truth].mean() > 0.75
    assert (view["labels"] == 2)[truth].mean() > 0.75
    x, y = (view["points"][0] / 2).astype(int)
    inside = 0 <= x < SIDE // 2 and 0 <= y < SIDE // 2  # a few close-ups lie far off
    assert inside or seed == 26
    assert not inside or truth[y, x]
    first = view["seen"][3].reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3)) > 127
    if first.any():
        assert (first & truth).sum() / (first | truth).sum() > 0.8
    if seed % 2:
        left, top, right, bottom = np.clip(view["box"] / 2, 0, SIDE // 2)
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
    model = refiner.RefinerTrainingModel(refiner.ARCHITECTURE, Vocabulary(NAMES))
    sam = build_pocket_sam(img_size=64)
    clip = torch.nn.Module()
    clip.visual = torch.nn.Module()
    clip.visual.trunk = build_pocket_sam(img_size=64).image_encoder.body
    model.init_from(sam, clip)
    net, trunk = model.net, clip.visual.trunk
    assert torch.equal(net.body.s3.b1.conv1.conv.weight, trunk.s3.b1.conv1.conv.weight)
    assert torch.equal(net.body.stem.conv.weight[:, :3], trunk.stem.conv.weight)
    assert 0 < net.body.stem.conv.weight[:, 3:].abs().mean() < 0.01
    assert torch.equal(net.smooth[0][0].weight, sam.image_encoder.smooth[0][0].weight)


def test_it_grows_without_answering_differently() -> None:
    architecture = refiner.ARCHITECTURE | {"body": "regnetx_002", "width": 32, "detail": 16, "outline": 8}
    torch.manual_seed(0)
    earlier = RefinerNet(**architecture | {"last_blocks": 2}).eval()
    model = refiner.RefinerTrainingModel(architecture | {"last_blocks": 4}, Vocabulary(NAMES)).eval()
    model.warm_start_from(earlier)
    maps = torch.randn(2, 9, SIDE, SIDE)
    with torch.inference_mode():
        for before, after in zip(earlier(maps), model.net(maps), strict=True):
            torch.testing.assert_close(after, before)
    fresh = model.net.body.s4.b4.conv3
    assert fresh.conv.weight.abs().sum() > 0  # and can learn
    assert not fresh.bn.weight.any()


def dataset(passes: FirstPassCache, batch_size: int) -> RefinerDataset:
    run = Run(passes.folder, 100, batch_size, torch.device("cpu"), seed=3)
    return RefinerDataset(passes, Vocabulary(NAMES), run, SIDE)


def test_a_batch_follows_from_its_step(passes: FirstPassCache) -> None:
    """So that a resumed run sees what an uninterrupted one would have seen."""
    first, again, other = dataset(passes, 3)[7], dataset(passes, 3)[7], dataset(passes, 3)[8]
    assert all(np.array_equal(first[part], again[part], equal_nan=part == "box") for part in first)
    assert not np.array_equal(first["seen"], other["seen"])


def test_in_the_end_masks_can_be_trusted(passes: FirstPassCache) -> None:
    batches = dataset(passes, 100)
    early, late = (1 - batches[step]["seen"][:, 3:].any((1, 2, 3)).mean() for step in (0, 99))
    assert 0.2 < early < 0.45
    assert late < 0.15
