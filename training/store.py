"""Scenes drawn once and kept on disk, memory-mapped, so that drawing does not slow training down."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track

from training.backgrounds import TRAINING_PHOTOGRAPHS, WALLPAPERS
from training.icon_sets import load_clip_art, load_icons
from training.pictograms import load_pictograms
from training.scenes import Scene, SceneArtist, SceneStyle, Thing

SIDE = 256
_SHARD = 500
_RECORD_SHARD = 100  # scenes
STYLE = SceneStyle(
    sizes=(
        (256, 256),
        (256, 256),
        (256, 192),
        (192, 256),
        (320, 240),
        (384, 256),
        (480, 320),
        (600, 400),
        (400, 600),
    ),
    longest=(24.0, 190.0),
    photographs=(*TRAINING_PHOTOGRAPHS, *WALLPAPERS),
    photograph_share=0.4,
    icon_sets=True,
    cut_outs=0.35,
)
OBJECTS = replace(
    STYLE, things=(1, 4), longest=(55.0, 175.0), photograph_share=0.85, cut_outs=0.25, objects=0.75
)
"""Few and larger things on photographs, as users' images show them."""


@dataclass(frozen=True)
class _Shard:
    """Scenes one after another.

    Attributes:
        pixels: uint8 RGB + label, pixels x 4.
        starts: of each scene in them.
        sizes: height and width of each scene.
        things: of each scene.
    """

    pixels: npt.NDArray[np.uint8]
    starts: list[int]
    sizes: list[tuple[int, int]]
    things: list[list[Thing]]

    def __getitem__(self, index: int) -> Scene:
        start, (height, width) = self.starts[index], self.sizes[index]
        canvas = self.pixels[start : start + height * width].reshape(height, width, 4)
        return Scene(canvas[..., :3], canvas[..., 3], self.things[index])


class SceneStore:
    """The scenes of the seeds ``0 … count - 1``, as large as they were drawn.

    Args:
        folder: where the shards are; missing ones are drawn by :meth:`prepare`.
        count: number of scenes.
        objects: whether every other shard shows :data:`OBJECTS`.
    """

    def __init__(self, folder: Path, count: int, objects: bool = False) -> None:
        self.folder, self.count, self.objects = folder, count, objects
        self._shards: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        return self._shard(index // _SHARD)[index % _SHARD]

    def prepare(self, workers: int = 2) -> None:
        """Draws the shards that are missing."""
        load_pictograms()  # rasterised once, before the workers ask for them
        load_icons()
        shards = range(-(-self.count // _SHARD))
        jobs = [
            (self._path(shard), self._style(shard), shard * _SHARD, min(_SHARD, self.count - shard * _SHARD))
            for shard in shards
            if not self._path(shard).is_file()
        ]
        if not jobs:
            return
        if self.objects:
            load_clip_art()
        self.folder.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("fork").Pool(min(workers, len(jobs))) as pool:
            for _ in track(pool.imap_unordered(_draw_shard, jobs), "drawing scenes", total=len(jobs)):
                pass

    def _style(self, shard: int) -> SceneStyle:
        return OBJECTS if self.objects and shard % 2 else STYLE

    def _path(self, shard: int) -> Path:
        count = min(_SHARD, self.count - shard * _SHARD)
        style = self._style(shard)
        drawn_from = (style, sorted(load_icons()) if style.icon_sets else ())
        recipe = hashlib.sha256(repr(drawn_from).encode()).hexdigest()[:8]
        return self.folder / f"scenes-{recipe}-{shard:04d}-{count}.npy"

    def _shard(self, shard: int) -> _Shard:
        if shard not in self._shards:
            path = self._path(shard)
            records = json.loads(path.with_suffix(".json").read_text())
            sizes = [(height, width) for height, width, _ in records]
            starts = np.cumsum([0, *(height * width for height, width in sizes)]).tolist()
            things = [
                [Thing(name, tuple(words), label) for name, words, label in listed] for *_, listed in records
            ]
            self._shards[shard] = _Shard(np.load(path, mmap_mode="r"), starts, sizes, things)
        return self._shards[shard]


class RecordCache:
    """Records of what a trained model makes of scenes, made once and kept on disk, memory-mapped.

    Args:
        folder: where the shards are; missing ones are made by :meth:`fill`.
        stem: of their names.
        scenes: that the model sees.
        count: of the scenes; whole shards only, one at least.
        records: of each scene.
    """

    def __init__(self, folder: Path, stem: str, scenes: SceneStore, count: int, records: int = 1) -> None:
        self.folder, self.scenes = folder, scenes
        self._stem, self._records = stem, records
        self._counts = [min(_RECORD_SHARD, count)] * max(1, count // _RECORD_SHARD)
        self._opened: list[npt.NDArray[Any]] = []

    def __len__(self) -> int:
        return self._records * sum(self._counts)

    def __getitem__(self, index: int) -> Any:
        """One record."""
        shard, place = divmod(index, self._records * self._counts[0])
        return self._opened[shard][place]

    def fill(self, recipe: str, make: Callable[[int, int], npt.NDArray[Any]]) -> None:
        """Makes the shards that are missing, and opens all.

        Args:
            recipe: names what the records depend on.
            make: from the number of the first scene and of scenes to all of their records.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._opened.clear()
        for shard, count in track(list(enumerate(self._counts)), f"making {self._stem}"):
            path = self.folder / f"{self._stem}-{recipe}-{shard:04d}-{count}.npy"
            if not path.is_file():
                temporary = path.with_suffix(".tmp.npy")
                np.save(temporary, make(shard * _RECORD_SHARD, count))
                temporary.replace(path)
            self._opened.append(np.load(path, mmap_mode="r"))


def fit(scene: Scene) -> Scene:
    """Scales a scene down to ``SIDE`` on its longer side, as SAM does with an image; small scenes stay."""
    image, labels = Image.fromarray(scene.image), Image.fromarray(scene.labels)
    if max(image.size) <= SIDE:
        return scene
    factor = SIDE / max(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    image = image.resize(size, Image.Resampling.BILINEAR)
    labels = labels.resize(size, Image.Resampling.NEAREST)
    shown = set(np.unique(np.asarray(labels)).tolist())
    things = [thing for thing in scene.things if thing.label in shown]
    return replace(scene, image=np.asarray(image), labels=np.asarray(labels), things=things)


def _draw_shard(job: tuple[Path, SceneStyle, int, int]) -> None:
    """Draws one shard."""
    path, style, first, count = job
    artist = SceneArtist(style)
    pixels: list[npt.NDArray[np.uint8]] = []
    records: list[tuple[int, int, list[tuple[str, tuple[str, ...], int]]]] = []
    for seed in range(first, first + count):
        scene = artist.draw(seed)
        pixels.append(np.dstack([scene.image, scene.labels]).reshape(-1, 4))
        listed = [(thing.name, thing.keywords, thing.label) for thing in scene.things]
        records.append((*scene.labels.shape, listed))
    path.with_suffix(".json").write_text(json.dumps(records))
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, np.concatenate(pixels))
    temporary.replace(path)
