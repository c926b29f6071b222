"""The things of the vocabulary as other artists drew them, in icon sets whose licences let weights be shared.

Noto Color Emoji (`training.pictograms`) defines the vocabulary. Each set here draws many of the same things
in another style, so that a model learns a thing and not a glyph. ``scripts/install_training_data.sh`` fetches
them; nothing of them is committed.

Two kinds of image are kept from training and measured: one in eight of each set (:func:`is_unseen`), and the
whole of the sets in :data:`UNSEEN_SETS`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import multiprocessing
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.pictograms import CACHE, load_glyph_names, trim

SIDE = 136  # pixels of the longer side of an icon that is rasterised
SOURCES = CACHE / "icon-sets"  # where the npm packages are unpacked
CLIP_ART = Path("/usr/share/openclipart/png")

CLIP_ART_SIDE = 256  # pixels of the longer side of clip art of anything

_UNSEEN_OF = 8  # one image in so many of each set is never trained on
_MIN_SIDE = 24  # pixels; smaller clip art shows nothing
_MIN_COLOURS = 250  # of 32 levels a channel, of clip art of anything; fewer are flat drawings
_MAX_PIXELS = 20_000_000  # of clip art; larger ones take long and show no more

Pixels = npt.NDArray[np.uint8]
Names = dict[str, str]  # glyph, one character -> name in the vocabulary


@dataclass(frozen=True)
class IconSet:
    """One artist's images of things.

    Attributes:
        name: Short, for files and reports.
        package: The npm or Debian package.
        licence: SPDX identifier, or the words of the package.
        read: Yields name and image, uint8 RGBA (height, width, 4), for a vocabulary.
    """

    name: str
    package: str
    licence: str
    read: Callable[[Path, Names], Iterator[tuple[str, Pixels]]]


def _iconify(folder: Path, names: Names) -> Iterator[tuple[str, Pixels]]:
    """Vector icons of an Iconify package, found by code point where it lists them, else by name."""
    icons = json.loads((folder / "icons.json").read_text())
    characters = json.loads((folder / "chars.json").read_text())
    bodies = {}
    for glyph, name in names.items():
        icon = characters.get(f"{ord(glyph):x}", _slug(name))
        if entry := icons["icons"].get(icon):
            width, height = (entry.get(key) or icons.get(key) or 16 for key in ("width", "height"))
            bodies[name] = (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{entry["body"]}</svg>'
            )
    with ThreadPoolExecutor(2) as pool:
        yield from zip(bodies, pool.map(_rasterise, bodies.values()), strict=True)


def _fluent_3d(folder: Path, names: Names) -> Iterator[tuple[str, Pixels]]:
    """WebP images named by code point, upright in their middle skin tone."""
    for glyph, name in names.items():
        code = f"{ord(glyph):04x}"
        for file in (folder / "assets" / f"{code}{suffix}.webp" for suffix in ("", "-fe0f")):
            if file.is_file():
                with Image.open(file) as image:
                    yield name, _shrink(image)
                break


def _clip_art(folder: Path, names: Names) -> Iterator[tuple[str, Pixels]]:
    """Files whose name begins with a name of the vocabulary: ``red_apple_jane_doe_01.png``."""
    known = {tuple(_slug(name).split("-")): name for name in names.values()}
    for file in sorted(folder.rglob("*.png")):
        words = tuple(re.sub(r"[^a-z]+", " ", file.stem.lower()).split())
        for length in range(min(4, len(words)), 0, -1):
            if name := known.get(words[:length]):
                with contextlib.suppress(Image.DecompressionBombError), Image.open(file) as image:
                    if image.width * image.height <= _MAX_PIXELS and _is_cut_out(pixels := _shrink(image)):
                        yield name, pixels
                break


ICON_SETS = (
    IconSet("fluent-3d", "@lobehub/fluent-emoji-3d", "MIT", _fluent_3d),
    IconSet("fluent", "@iconify-json/fluent-emoji", "MIT", _iconify),
    IconSet("fluent-flat", "@iconify-json/fluent-emoji-flat", "MIT", _iconify),
    IconSet("twemoji", "@iconify-json/twemoji", "CC-BY-4.0", _iconify),
    IconSet("noto-v1", "@iconify-json/noto-v1", "Apache-2.0", _iconify),
    IconSet("fxemoji", "@iconify-json/fxemoji", "Apache-2.0", _iconify),
    IconSet("emojione", "@iconify-json/emojione", "CC-BY-4.0", _iconify),
    IconSet("clip-art", "openclipart-png", "public domain", _clip_art),
)
UNSEEN_SETS = frozenset({"emojione"})


def is_unseen(set_name: str, name: str) -> bool:
    """Whether a set's images of a thing are kept from training; decided by the names alone."""
    if set_name in UNSEEN_SETS:
        return True
    return hashlib.sha256(f"{set_name}/{name}".encode()).digest()[0] % _UNSEEN_OF == 0


def missing_sets(sources: Path = SOURCES) -> list[str]:
    """Names of the sets that are not on this machine; ``scripts/install_training_data.sh`` fetches them."""
    return [one.name for one in ICON_SETS if not _folder(one, sources).is_dir()]


@functools.cache
def load_icons(cache: Path = CACHE, sources: Path = SOURCES) -> dict[str, dict[str, tuple[Pixels, ...]]]:
    """All images of all sets: set -> name -> images, uint8 RGBA, trimmed to their opaque part.

    Sets that are not on this machine are left out. Rasterised once, then read from ``cache``.
    """
    missing = missing_sets(sources)
    return {one.name: _load_set(one, cache, sources) for one in ICON_SETS if one.name not in missing}


@functools.cache
def load_clip_art(unseen: bool = False, cache: Path = CACHE, folder: Path = CLIP_ART) -> list[Pixels]:
    """Clip art of anything that is one coloured thing, uint8 RGBA, trimmed to its opaque part.

    Rasterised once, then read from ``cache``; empty where the package is not installed.

    Args:
        unseen: those that are kept from training in place of the others.
        cache: where the rasterised images are kept.
        folder: of the PNG files.
    """
    if not folder.is_dir():
        return []
    recipe = f"{CLIP_ART_SIDE}/{_MIN_COLOURS}"
    file = cache / f"clip-art-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.npz"
    if not file.is_file():
        paths = sorted(folder.rglob("*.png"))
        with multiprocessing.get_context("fork").Pool(2) as pool:
            drawn = pool.map(_colourful, paths, chunksize=32)
        kept = [(path.stem, pixels) for path, pixels in zip(paths, drawn, strict=True) if pixels is not None]
        _store(file, kept)
    return [pixels for name, pixels in _stored(file) if is_unseen("clip-art", name) is unseen]


def _colourful(path: Path) -> Pixels | None:
    """Clip art that is one thing of many colours; None for all other."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                return None
            pixels = _shrink(image, CLIP_ART_SIDE)
    except (OSError, Image.DecompressionBombError):
        return None
    if not _is_cut_out(pixels):
        return None
    levels = pixels[..., :3][pixels[..., 3] > 127].astype(np.int32) // 8
    return trim(pixels) if np.unique(levels @ np.array([1024, 32, 1])).size >= _MIN_COLOURS else None


def _folder(icon_set: IconSet, sources: Path) -> Path:
    package = icon_set.package
    return sources / package.replace("/", "-").lstrip("@") if package.startswith("@") else CLIP_ART


def _load_set(icon_set: IconSet, cache: Path, sources: Path) -> dict[str, tuple[Pixels, ...]]:
    names = load_glyph_names()
    recipe = f"{icon_set.package}/{SIDE}/{sorted(names.items())}"
    file = cache / f"icons-{icon_set.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.npz"
    if not file.is_file():
        read = icon_set.read(_folder(icon_set, sources), names)
        _store(file, [(name, trim(pixels)) for name, pixels in read if pixels.any()])
    loaded: dict[str, tuple[Pixels, ...]] = {}
    for name, pixels in _stored(file):
        loaded[name] = (*loaded.get(name, ()), pixels)
    return loaded


def _store(file: Path, images: list[tuple[str, Pixels]]) -> None:
    """Keeps named images of any size in one file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp.npz")
    np.savez_compressed(
        temporary,
        names=np.array([name for name, _ in images]),
        sizes=np.array([pixels.shape[:2] for _, pixels in images]),
        pixels=np.concatenate([pixels.reshape(-1, 4) for _, pixels in images]),
    )
    temporary.replace(file)


def _stored(file: Path) -> Iterator[tuple[str, Pixels]]:
    """The images of a file of :func:`_store`, in its order."""
    with np.load(file) as stored:
        flat, end = stored["pixels"], 0
        for name, (height, width) in zip(stored["names"].tolist(), stored["sizes"].tolist(), strict=True):
            begin, end = end, end + height * width
            yield name, flat[begin:end].reshape(height, width, 4)


def _rasterise(svg: str) -> Pixels:
    command = ["rsvg-convert", "--width", str(SIDE), "--height", str(SIDE), "--keep-aspect-ratio"]
    done = subprocess.run(command, input=svg.encode(), capture_output=True, check=False)
    if done.returncode:  # an icon that the program cannot draw is left out, as an empty one
        return np.zeros((1, 1, 4), np.uint8)
    with Image.open(io.BytesIO(done.stdout)) as image:
        return np.asarray(image.convert("RGBA"))


def _shrink(image: Image.Image, side: int = SIDE) -> Pixels:
    rgba = image.convert("RGBA")
    rgba.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(rgba)


def _is_cut_out(pixels: Pixels) -> bool:
    """Whether an image is one thing on nothing, and in colour: not a framed scene, not a thin drawing."""
    height, width = pixels.shape[:2]
    if min(height, width) < _MIN_SIDE or max(height, width) > 3 * min(height, width):
        return False
    solid = pixels[..., 3] > 127
    rgb = pixels[..., :3][solid].astype(np.int16)
    return bool(0.15 < solid.mean() < 0.93 and np.ptp(rgb, axis=1).mean() > 12)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("'", "").replace("’", "")).strip("-")
