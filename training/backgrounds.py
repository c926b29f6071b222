"""Backgrounds for scenes: flat, gradients, stripes, checks, soft and rough texture, clutter, and photographs.

The photographs are those that scikit-image and scikit-learn carry in their packages, so that nothing is
downloaded; the ones of :data:`HELD_OUT_PHOTOGRAPHS` never appear in training.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.float32]

PHOTOGRAPH_SHARE = 0.22  # of the backgrounds, unless a style wants more

_MAX_SIDE = 1600  # pixels of a photograph that are kept in memory

TRAINING_PHOTOGRAPHS = (
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/brick.png",
    "skimage/data/rocket.jpg",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/astronaut.png",
    "skimage/data/camera.png",
)
WALLPAPERS = tuple(
    f"/usr/share/{file}"
    for file in (
        *(
            f"backgrounds/{name}.jpg"
            for name in (
                "Bridge_by_Sander_Klootwijk",
                "Dragonfly_by_Bolly",
                "Fossa_by_Jasper_Roks",
                "Infinite-Sea_by_Aury88",
                "Kleiber_by_Lukas_Baubkus",
                "Picture_0B_by_freespace",
                "Picture_1A_by_freespace",
                "Wine_by_Jakkub_Mede",
                "aitzgorri_by_Aitzol_Berasategi",
                "analogpattern_by_Peter_Nerlich",
                "free_by_Peter_Nerlich",
                "friends_by_Aitzol_Berasategi",
                "greentock_by_Peter_Nerlich",
                "life_by_Aitzol_Berasategi",
                "picosdeeuropa_by_Aitzol_Berasategi",
                "seeding_by_Clements_Engelhardt",
                "sunset_by_Aitzol_Berasategi",
                "umang_by_Abhishek_Mudgal",
            )
        ),
        *(
            f"wallpapers/{name}/contents/images/2560x1600.jpg"
            for name in (
                "Autumn",
                "BytheWater",
                "ColdRipple",
                "ColorfulCups",
                "EveningGlow",
                "FallenLeaf",
                "Kite",
                "OneStandsOut",
                "Path",
            )
        ),
    )
)
"""Photographs of Debian's ``lomiri-wallpapers`` and ``plasma-workspace-wallpapers``, for training alone."""

HELD_OUT_PHOTOGRAPHS = (
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "skimage/data/coffee.png",
    "skimage/data/motorcycle_right.png",
)


def draw_background(
    rng: np.random.Generator,
    height: int,
    width: int,
    photographs: tuple[str, ...],
    photograph_share: float = PHOTOGRAPH_SHARE,
    calm: bool = False,
) -> Pixels:
    """Draws one background of a random kind.

    Args:
        rng: source of the variation.
        height: in pixels.
        width: in pixels.
        photographs: files of which crops may be used, relative to the installed Python packages or absolute;
            those that are not installed are left out.
        photograph_share: of the backgrounds, where any is installed.
        calm: only soft ones, without stripes, checks and grain.

    Returns:
        float32 RGB in 0 … 255, height × width × 3.
    """
    kind = rng.random()
    if kind < photograph_share and (available := _available(photographs)):
        return _photograph(rng, height, width, available[int(rng.integers(len(available)))])
    painters = _CALM if calm else _ALL
    pixels = painters[int(rng.integers(len(painters)))](rng, height, width)
    if not calm and rng.random() < 0.4:
        grain = rng.normal(0, rng.uniform(2, 12), (height, width, 1 if rng.random() < 0.5 else 3))
        pixels = pixels + grain.astype(np.float32)
    return pixels


def draw_photograph(
    rng: np.random.Generator, height: int, width: int, photographs: tuple[str, ...]
) -> Pixels:
    """A random crop of a random one of the photographs, float32 RGB in 0 … 255, height × width × 3.

    Raises:
        ValueError: None of them is installed.
    """
    available = _available(photographs)
    if not available:
        raise ValueError("none of the photographs is installed")
    return _photograph(rng, height, width, available[int(rng.integers(len(available)))])


def _colour(rng: np.random.Generator) -> Pixels:
    """A random colour, more often muted than vivid."""
    grey = rng.uniform(25, 245)
    return np.clip(grey + rng.normal(0, rng.choice([8, 30, 60]), 3), 0, 255).astype(np.float32)


def _enlarge(small: Pixels, height: int, width: int) -> Pixels:
    """Bicubic enlargement of a small float map, channel by channel."""
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in small]
    return np.stack([np.asarray(plane) for plane in planes], -1)


def _flat(rng: np.random.Generator, height: int, width: int) -> Pixels:
    return np.broadcast_to(_colour(rng), (height, width, 3)).copy()


def _ramp(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """0 … 1 along a random direction, height × width × 1."""
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32) * np.float32(np.cos(angle))
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32) * np.float32(np.sin(angle))
    ramp = y[:, None] + x[None]
    scaled: Pixels = (ramp - ramp.min()) / (np.ptp(ramp) + 1e-6)
    return scaled[..., None]


def _gradient(rng: np.random.Generator, height: int, width: int) -> Pixels:
    ramp = _ramp(rng, height, width)
    return (1 - ramp) * _colour(rng) + ramp * _colour(rng)


def _clouds(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Smooth noise in a few octaves between two colours: from blurred walls to marbled stone."""
    field = np.zeros((height, width, 1), np.float32)
    weight, cells = 1.0, int(rng.integers(2, 6))
    fall = rng.uniform(0.3, 0.8)
    for _ in range(int(rng.integers(1, 5))):
        octave = rng.normal(size=(1, cells + 1, int(cells * width / height) + 1)).astype(np.float32)
        field += weight * _enlarge(octave, height, width)
        weight, cells = weight * fall, cells * 3
    blend = 0.5 + rng.uniform(0.1, 0.45) * field
    return blend * _colour(rng) + (1 - blend) * _colour(rng)


def _wave(rng: np.random.Generator, height: int, width: int) -> Pixels:
    period = rng.uniform(8, 64)
    phase = _ramp(rng, height, width) * max(height, width) / period * 2 * np.pi + rng.uniform(0, 6)
    sharpness = rng.choice([1.0, 4.0, 20.0])
    wave: Pixels = (0.5 + 0.5 * np.tanh(sharpness * np.sin(phase))).astype(np.float32)
    return wave


def _stripes(rng: np.random.Generator, height: int, width: int) -> Pixels:
    wave = _wave(rng, height, width)
    return wave * _colour(rng) + (1 - wave) * _colour(rng)


def _checks(rng: np.random.Generator, height: int, width: int) -> Pixels:
    a, b = _wave(rng, height, width), _wave(rng, height, width)
    board: Pixels = a * b + (1 - a) * (1 - b)
    return board * _colour(rng) + (1 - board) * _colour(rng)


def _ground_and_sky(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Two soft textures that meet at a horizon, as on a table or a field."""
    horizon = rng.uniform(0.2, 0.75) + rng.uniform(-0.1, 0.1) * np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    below = 1 / (1 + np.exp(-np.clip((y - horizon) * rng.choice([30, 120, 400]), -30, 30)))
    ground: Pixels = below[..., None].astype(np.float32)
    return ground * _clouds(rng, height, width) + (1 - ground) * _gradient(rng, height, width)


def _clutter(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Soft blobs and boxes, out of focus, that look like a room's far end but are no things."""
    cells = int(rng.integers(4, 14))
    mosaic = rng.uniform(20, 240, (3, cells, cells)).astype(np.float32)
    tint = _colour(rng)[:, None, None]
    mix = rng.uniform(0.2, 0.7)
    return _enlarge(mix * mosaic + (1 - mix) * tint, height, width)


def _photograph(rng: np.random.Generator, height: int, width: int, file: Path) -> Pixels:
    """A random crop, mirrored and darkened at random, of one photograph."""
    photo = _read(file)
    scale = max(height / photo.height, width / photo.width)
    zoom = rng.uniform(scale, max(scale, min(1.0, 2.5 * scale)))
    h, w = height / zoom, width / zoom
    x, y = rng.uniform(0, photo.width - w + 1e-3), rng.uniform(0, photo.height - h + 1e-3)
    box = (x, y, min(x + w, photo.width), min(y + h, photo.height))
    crop = photo.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    gain = rng.uniform(0.7, 1.15, 3) if rng.random() < 0.5 else rng.uniform(0.8, 1.1, 1)
    return np.asarray(crop, np.float32) * gain.astype(np.float32)


_Painter = Callable[[np.random.Generator, int, int], Pixels]
_CALM: tuple[_Painter, ...] = (_gradient, _gradient, _ground_and_sky, _clutter)
_ALL: tuple[_Painter, ...] = (
    _flat,
    _gradient,
    _clouds,
    _clouds,
    _stripes,
    _checks,
    _ground_and_sky,
    _clutter,
)


@cache
def _available(photographs: tuple[str, ...]) -> tuple[Path, ...]:
    files: list[Path] = []
    for photograph in photographs:
        if photograph.startswith("/"):
            files += [Path(photograph)] if Path(photograph).is_file() else []
            continue
        package, _, inside = photograph.partition("/")
        spec = importlib.util.find_spec(package)
        if spec and spec.origin and (file := Path(spec.origin).parent / inside).is_file():
            files.append(file)
    return tuple(files)


@cache
def _read(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.draft("RGB", (_MAX_SIDE, _MAX_SIDE))
        photo = image.convert("RGB")
    photo.thumbnail((_MAX_SIDE, _MAX_SIDE), reducing_gap=2.0)
    return photo
