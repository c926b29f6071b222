from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from pycocotools import mask as coco

from training import sets
from training.captions import list_things
from training.pictograms import ANNOTATIONS, FONT
from training.scenes import HELD_OUT, SceneArtist, SceneStyle
from training.shapes import NAMES, draw_shape
from training.store import OBJECTS, STYLE, SceneStore, fit

needs_font = pytest.mark.skipif(
    not (FONT.is_file() and ANNOTATIONS.is_file()),
    reason="drawing scenes needs the Debian packages fonts-noto-color-emoji and unicode-cldr-core",
)
SEEDS = range(HELD_OUT + 50_000, HELD_OUT + 50_030)


@pytest.fixture(scope="module")
def artist() -> SceneArtist:
    return SceneArtist(SceneStyle(sizes=((256, 256), (256, 171), (600, 400))))


@needs_font
def test_a_seed_gives_one_scene(artist: SceneArtist) -> None:
    again = SceneArtist(artist.style)
    for seed in SEEDS[:5]:
        first, second = artist.draw(seed), again.draw(seed)
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.labels, second.labels)
        assert first.things == second.things
    assert not np.array_equal(artist.draw(SEEDS[0]).image, artist.draw(SEEDS[1]).image)


@needs_font
def test_masks_are_exact_disjoint_and_hardly_hidden(artist: SceneArtist) -> None:
    clean = SceneArtist(SceneStyle(sizes=artist.style.sizes, damage=False, photographs=()))
    for seed in SEEDS:
        scene = clean.draw(seed)
        assert scene.labels.shape == scene.image.shape[:2]
        assert 1 <= len(scene.things) <= 9
        names = [thing.name for thing in scene.things]
        assert len(set(names)) == len(names)
        assert set(np.unique(scene.labels)) - {0} == {thing.label for thing in scene.things}
        covered = sum(int(scene.mask(thing).sum()) for thing in scene.things)
        assert covered == int((scene.labels > 0).sum())  # no pixel belongs to two


@needs_font
def test_a_mask_covers_the_pixels_that_its_thing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    teal = np.array([0, 180, 170], np.float32)
    monkeypatch.setattr(
        "training.backgrounds.draw_background",
        lambda _rng, height, width, *_: np.broadcast_to(teal, (height, width, 3)).copy(),
    )
    monkeypatch.setattr("training.scenes._cast_shadow", lambda *_: None)
    artist = SceneArtist(SceneStyle(sizes=((256, 256),), damage=False))
    for seed in SEEDS[:10]:
        scene = artist.draw(seed)
        changed = np.abs(scene.image.astype(int) - teal.astype(int)).max(-1) > 4
        solid = scene.labels > 0
        rim = np.asarray(Image.fromarray(solid.astype(np.uint8)).filter(ImageFilter.MaxFilter(9))) > 0
        assert not (changed & ~rim).any()  # nothing is drawn outside the masks but their soft edges
        assert changed[solid].mean() > 0.97  # and they cover what is drawn, but for teal things


@needs_font
def test_the_caption_names_what_is_visible(artist: SceneArtist) -> None:
    for seed in SEEDS[:10]:
        scene = artist.draw(seed)
        for thing in scene.things:
            assert thing.name in scene.caption
            assert scene.mask(thing).any()


@needs_font
def test_names_are_unique_queries(artist: SceneArtist) -> None:
    names = [pictogram.name for pictogram in artist.pictograms]
    assert len(names) > 900
    assert len(set(names)) == len(names)
    assert all(name.endswith(" heart") for name in set(names) & set(NAMES))  # the same thing, drawn twice
    assert {"chair", "dog", "glasses", "guitar", "umbrella"} <= set(names)
    assert not any("skin tone" in name or "flag" in name for name in names)


@pytest.mark.parametrize("name", NAMES[:: len(NAMES) // 12])
def test_shapes_have_their_colour(name: str) -> None:
    from training.shapes import COLOURS

    pixels = draw_shape(name, np.random.default_rng(0))
    solid = pixels[..., 3] > 200
    assert 0.1 < solid.mean() < 1
    wanted = COLOURS[name.split()[0]]
    assert np.abs(pixels[solid][:, :3].mean(0) - wanted).max() < 45


def test_a_list_of_things_reads_as_english() -> None:
    assert list_things(["dog"]) == "a dog"
    assert list_things(["owl", "jeans", "red circle"]) == "an owl, jeans and a red circle"


@needs_font
def test_every_other_shard_shows_objects_where_they_are_asked_for(tmp_path: Path) -> None:
    plain, objects = SceneStore(tmp_path, 2000), SceneStore(tmp_path, 2000, objects=True)
    assert [plain._style(shard) for shard in range(4)] == [STYLE] * 4
    assert [objects._style(shard) for shard in range(4)] == [STYLE, OBJECTS, STYLE, OBJECTS]
    assert plain._path(0) == objects._path(0)
    assert plain._path(1) != objects._path(1)


@needs_font
def test_stored_scenes_are_the_drawn_ones(tmp_path: Path) -> None:
    store = SceneStore(tmp_path, 3)
    store.prepare(workers=1)
    files = sorted(tmp_path.iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    SceneStore(tmp_path, 3).prepare(workers=1)  # nothing is drawn twice
    assert [file.stat().st_mtime_ns for file in sorted(tmp_path.iterdir())] == times
    for i in range(3):
        scene = store[i]
        drawn = SceneArtist(STYLE).draw(i)
        assert np.array_equal(scene.image, drawn.image)
        assert np.array_equal(scene.labels, drawn.labels)
        assert scene.things == drawn.things
        assert set(np.unique(scene.labels)) - {0} == {thing.label for thing in scene.things}


@needs_font
def test_large_scenes_are_scaled_down_whole() -> None:
    scene = SceneArtist(SceneStyle(sizes=((600, 400),))).draw(SEEDS[3])
    fitted = fit(scene)
    assert fitted.image.shape == (171, 256, 3)
    for thing in fitted.things:
        share, before = (fitted.labels == thing.label).mean(), scene.mask(thing).mean()
        assert share == pytest.approx(before, rel=0.1)


@needs_font
def test_sets_are_written_in_the_style_of_coco(tmp_path: Path, artist: SceneArtist) -> None:
    sets.write_coco(tmp_path, SEEDS[0], 4)
    content = json.loads((tmp_path / "scenes.json").read_text())
    assert [image["split"] for image in content["images"]] == ["tune", "test", "tune", "test"]
    assert {category["name"] for category in content["categories"]} == set(artist.vocabulary)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for image in content["images"]:
        assert Image.open(tmp_path / image["file_name"]).size == (image["width"], image["height"])
    assert len({one["id"] for one in content["annotations"]}) == len(content["annotations"])
    for one in content["annotations"]:
        mask = coco.decode({**one["segmentation"], "counts": one["segmentation"]["counts"].encode()})
        assert mask.shape == sizes[one["image_id"]]
        assert mask.sum() == one["area"]
        x, y, w, h = one["bbox"]
        assert mask[int(y) : int(y + h), int(x) : int(x + w)].sum() == one["area"]
