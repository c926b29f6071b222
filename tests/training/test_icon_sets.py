"""The same things in other artists' styles: what is read, what is kept from training, what is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.training.test_scenes import needs_font
from training import embedder, icon_sets, naming, objects, scenes
from training.backgrounds import HELD_OUT_PHOTOGRAPHS
from training.icon_sets import ICON_SETS, UNSEEN_SETS, is_unseen, load_clip_art
from training.scenes import SceneArtist, SceneStyle
from training.vocabulary import Vocabulary

NAMES = {"🎸": "guitar", "🔑": "key", "🦄": "unicorn"}
BLUE = np.zeros((40, 40, 4), np.uint8) + np.array([0, 0, 255, 255], np.uint8)


def icon_set(name: str) -> icon_sets.IconSet:
    return next(one for one in ICON_SETS if one.name == name)


@pytest.mark.skipif(not shutil.which("rsvg-convert"), reason="needs Debian's librsvg2-bin")
def test_vector_icons_are_found_by_code_point_or_by_name(tmp_path: Path) -> None:
    body = {"body": '<path fill="#00f" d="M4 4h24v12H4z"/>'}
    icons = {"width": 32, "height": 32, "icons": {"electric-guitar": body, "key": body, "other": body}}
    (tmp_path / "icons.json").write_text(json.dumps(icons))
    (tmp_path / "chars.json").write_text(json.dumps({"1f3b8": "electric-guitar"}))
    found = dict(icon_set("twemoji").read(tmp_path, NAMES))
    assert set(found) == {"guitar", "key"}
    red, green, blue, alpha = found["key"][34, 68]
    assert (red, green, blue, alpha) == (0, 0, 255, 255)
    assert found["key"][100, 68, 3] == 0


def test_images_named_by_code_point_are_found_with_and_without_a_variation_selector(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    for name in ("1f3b8.webp", "1f511-fe0f.webp", "1f511-1f3fb.webp"):
        Image.fromarray(BLUE).save(tmp_path / "assets" / name, lossless=True)
    assert set(dict(icon_set("fluent-3d").read(tmp_path, NAMES))) == {"guitar", "key"}


def test_clip_art_is_taken_by_the_name_that_its_file_begins_with_if_it_is_one_thing(tmp_path: Path) -> None:
    thing = np.zeros((60, 60, 4), np.uint8)
    thing[10:50, 10:50] = (200, 40, 40, 255)
    framed = np.full((60, 60, 4), (200, 40, 40, 255), np.uint8)
    grey = thing.copy()
    grey[..., :3] = 90
    for name, pixels in {
        "guitar_jane_doe_01": thing,
        "Key_01": framed,
        "unicorn_bw": grey,
        "my_guitar": thing,
    }.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    assert [name for name, _ in icon_set("clip-art").read(tmp_path, NAMES)] == ["guitar"]


def test_clip_art_of_anything_is_one_thing_of_many_colours_and_kept_from_training_by_its_name(
    tmp_path: Path,
) -> None:
    rows, columns = np.mgrid[:200, :200]
    thing = np.zeros((200, 200, 4), np.uint8)
    thing[20:180, 20:180] = np.dstack([rows, columns, rows // 2 + 60, np.full_like(rows, 255)])[
        20:180, 20:180
    ]
    framed, flat = thing.copy(), thing.copy()
    framed[..., 3] = 255
    flat[..., :3] = 200, 40, 40
    folder = tmp_path / "art"
    folder.mkdir()
    named = [f"thing_{i}" for i in range(40)]
    unseen = sum(is_unseen("clip-art", name) for name in named)
    for name, pixels in {**dict.fromkeys(named, thing), "framed": framed, "flat": flat}.items():
        Image.fromarray(pixels).save(folder / f"{name}.png", compress_level=1)
    (folder / "broken.png").write_bytes(b"PNG")
    trained = load_clip_art(cache=tmp_path, folder=folder)
    assert 0 < unseen == len(load_clip_art(unseen=True, cache=tmp_path, folder=folder))
    assert len(trained) == 40 - unseen
    assert trained[0].shape == (160, 160, 4)
    assert load_clip_art(cache=tmp_path, folder=tmp_path / "absent") == []


def test_a_drawing_that_looks_photographed_keeps_its_outline_and_is_no_longer_of_one_colour() -> None:
    drawing = np.zeros((40, 60, 4), np.uint8)
    drawing[10:30, 10:50] = (200, 40, 40, 255)
    outline = np.asarray(Image.fromarray(drawing[..., 3]).resize((256, 171))) > 127
    for seed in range(8):
        seen = np.asarray(objects.photograph(np.random.default_rng(seed), drawing, HELD_OUT_PHOTOGRAPHS))
        solid = seen[..., 3] > 127
        assert seen.shape == (171, 256, 4)
        assert (solid & outline).sum() > 0.95 * (solid | outline).sum()
        assert len(np.unique(seen[..., :3][solid], axis=0)) > 50


def test_one_image_in_eight_of_a_set_and_some_sets_whole_are_kept_from_training() -> None:
    names = [f"thing {i}" for i in range(4000)]
    share = sum(is_unseen("twemoji", name) for name in names) / len(names)
    assert 0.1 < share < 0.15
    assert [is_unseen("twemoji", name) for name in names] != [is_unseen("fluent", name) for name in names]
    assert UNSEEN_SETS
    assert all(is_unseen(one, name) for one in UNSEEN_SETS for name in names)


def fake_icons(monkeypatch: pytest.MonkeyPatch, name: str = "guitar") -> None:
    """One set has the thing for training, in blue; an unseen set has it too."""
    trained = next(one.name for one in ICON_SETS if not is_unseen(one.name, name))
    unseen = next(iter(UNSEEN_SETS))
    red = BLUE[..., [2, 1, 0, 3]]
    icons = {trained: {name: (BLUE,)}, unseen: {name: (red,)}}
    monkeypatch.setattr(scenes, "load_icons", lambda: icons)
    monkeypatch.setattr(naming, "load_icons", lambda: icons)


@needs_font
def test_scenes_show_a_thing_in_all_trained_styles_and_in_none_that_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_icons(monkeypatch)
    artist = SceneArtist(SceneStyle(only=("guitar",), icon_sets=True))
    (guitar,) = artist.pictograms
    rng = np.random.default_rng(0)
    drawn = {artist._drawing(rng, guitar).tobytes() for _ in range(50)}
    assert drawn == {guitar.pixels.tobytes(), BLUE.tobytes()}
    plain = SceneArtist(SceneStyle(only=("guitar",)))
    assert {plain._drawing(rng, guitar).tobytes() for _ in range(20)} == {guitar.pixels.tobytes()}


@needs_font
def test_cut_outs_of_photographs_have_a_mask_and_no_name() -> None:
    style = SceneStyle(sizes=((256, 256),), photographs=HELD_OUT_PHOTOGRAPHS, cut_outs=0.5)
    drawn = [SceneArtist(style).draw(seed) for seed in range(12)]
    unnamed = [(scene, thing) for scene in drawn for thing in scene.things if not thing.name]
    named = [thing for scene in drawn for thing in scene.things if thing.name]
    assert unnamed and named
    assert all(scene.mask(thing).sum() > 20 for scene, thing in unnamed)
    assert all("" not in scene.names and scene.caption.strip() for scene in drawn if scene.names)


@needs_font
def test_an_embedder_begins_with_given_weights_and_still_embeds_the_same() -> None:
    vocabulary = Vocabulary({"guitar": ("music",), "red apple": ("fruit",)})
    torch.manual_seed(0)
    first = embedder.EmbedderTrainingModel(embedder.MODEL_CONFIG, vocabulary).eval()
    clip = first.finished()
    second = embedder.EmbedderTrainingModel(embedder.MODEL_CONFIG, vocabulary).eval()
    second.init_from(clip, vocabulary)
    texts, pixels = ["a guitar", "the red apple"], torch.rand(2, 3, 80, 80)
    assert torch.allclose(first.embed_texts(texts), second.embed_texts(texts), atol=1e-3)
    assert torch.allclose(first.embed_images(pixels), second.embed_images(pixels), atol=1e-3)
    similarity = second.prototypes[:2] @ second.embed_texts(vocabulary.names).T
    assert similarity.argmax(1).tolist() == [0, 1]


class ByColour:
    """Names what is blue rightly, and everything else wrongly; of the vocabulary guitar, key."""

    def embed_images(self, pixels: Tensor) -> Tensor:
        middle = pixels[:, :, 30:50, 30:50].mean((2, 3))
        is_blue = middle[:, 2] > middle[:, 0]
        return torch.eye(8)[torch.where(is_blue, 0, 7)]

    def embed_texts(self, texts: list[str]) -> Tensor:
        return torch.eye(8)[[0 if text == "guitar" else 7 for text in texts]]


@needs_font
def test_names_of_unseen_drawings_are_judged_for_trained_sets_and_unseen_sets_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = next(n for n in SceneArtist().vocabulary if is_unseen("twemoji", n) and n != "guitar")
    unseen = next(iter(UNSEEN_SETS))
    icons = {
        "twemoji": {name: (BLUE,)},
        unseen: {"guitar": (BLUE,), "key": (BLUE,)},
    }
    monkeypatch.setattr(naming, "load_icons", lambda: icons)
    vocabulary = Vocabulary({"guitar": (), "key": (), name: ()})
    quality = naming.NamingQuality(ByColour(), vocabulary, 80, torch.device("cpu"))
    figures = quality.of_unseen_icons()
    assert figures["unseen_icons_top1"] == 0.0
    assert figures["unseen_sets_top1"] == 0.5
    assert figures["unseen_sets_top5"] == 1.0
