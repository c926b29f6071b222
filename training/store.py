"""Scenes drawn once and kept on disk, memory-mapped, so that drawing does not slow training down."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track

from training.pictograms import load_pictograms
from training.scenes import Scene, SceneArtist, SceneStyle, Thing

SIDE = 256
_SHARD = 500
_STYLE = SceneStyle(sizes=(*SceneStyle().sizes, (480, 320), (600, 400)))


@dataclass(frozen=True)
class StoredScene:
    """A scene as the trainers read it.

    Attributes:
        image: uint8 RGB, at most ``SIDE`` on the longer side, height × width × 3.
        labels: uint8, height × width, as :class:`training.scenes.Scene`.
        things: the named things.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    things: list[Thing]


class SceneStore:
    """The scenes of the seeds ``0 … count - 1``.

    Args:
        folder: where the shards are; missing ones are drawn by :meth:`prepare`.
        count: number of scenes.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self._shards: dict[int, tuple[npt.NDArray[np.uint8], list[tuple[int, int, list[Thing]]]]] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> StoredScene:
        pixels, records = self._shard(index // _SHARD)
        height, width, things = records[index % _SHARD]
        canvas = pixels[index % _SHARD, :height, :width]
        return StoredScene(canvas[..., :3], canvas[..., 3], things)

    def prepare(self, workers: int = 2) -> None:
        """Draws the shards that are missing."""
        load_pictograms()  # rasterises them once, before the workers ask for them
        shards = range(-(-self.count // _SHARD))
        jobs = [
            (self._path(shard), shard * _SHARD, min(_SHARD, self.count - shard * _SHARD))
            for shard in shards
            if not self._path(shard).is_file()
        ]
        if not jobs:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("fork").Pool(min(workers, len(jobs))) as pool:
            for _ in track(pool.imap_unordered(_draw_shard, jobs), "drawing scenes", total=len(jobs)):
                pass

    def _path(self, shard: int) -> Path:
        count = min(_SHARD, self.count - shard * _SHARD)
        recipe = hashlib.sha256(repr((_STYLE, SIDE)).encode()).hexdigest()[:8]
        return self.folder / f"scenes-{recipe}-{shard:04d}-{count}.npy"

    def _shard(self, shard: int) -> tuple[npt.NDArray[np.uint8], list[tuple[int, int, list[Thing]]]]:
        if shard not in self._shards:
            path = self._path(shard)
            records = [
                (height, width, [Thing(name, tuple(words), label) for name, words, label in things])
                for height, width, things in json.loads(path.with_suffix(".json").read_text())
            ]
            self._shards[shard] = np.load(path, mmap_mode="r"), records
        return self._shards[shard]


def fit(scene: Scene) -> StoredScene:
    """Scales a scene down to ``SIDE`` on its longer side, as SAM does with an image; small scenes stay."""
    image, labels = Image.fromarray(scene.image), Image.fromarray(scene.labels)
    if max(image.size) > SIDE:
        factor = SIDE / max(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        image = image.resize(size, Image.Resampling.BILINEAR)
        labels = labels.resize(size, Image.Resampling.NEAREST)
    shown = set(np.unique(np.asarray(labels)).tolist())
    return StoredScene(np.asarray(image), np.asarray(labels), [t for t in scene.things if t.label in shown])


def _draw_shard(job: tuple[Path, int, int]) -> None:
    """Draws one shard; image and labels share an array as RGB + label."""
    path, first, count = job
    artist = SceneArtist(_STYLE)
    pixels = np.zeros((count, SIDE, SIDE, 4), np.uint8)
    records: list[tuple[int, int, list[tuple[str, tuple[str, ...], int]]]] = []
    for i in range(count):
        fitted = fit(artist.draw(first + i))
        height, width = fitted.labels.shape
        pixels[i, :height, :width, :3], pixels[i, :height, :width, 3] = fitted.image, fitted.labels
        records.append(
            (height, width, [(thing.name, thing.keywords, thing.label) for thing in fitted.things])
        )
    path.with_suffix(".json").write_text(json.dumps(records))
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, pixels)
    temporary.replace(path)
