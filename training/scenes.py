"""Draws scenes: named things on a background, with the exact visible mask of each.

Everything about a scene follows from its seed. Seeds from :data:`HELD_OUT` on are never trained on.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from training import backgrounds, objects, shapes
from training.captions import list_things
from training.icon_sets import is_unseen, load_clip_art, load_icons
from training.pictograms import Pictogram, load_pictograms

HELD_OUT = 10_000_000

_SHAPE_SHARE = 0.14  # of the things; the others are pictograms
_MOST_HIDDEN = 0.15
_FONT_SHARE = 0.4  # of the things that icon sets have too are drawn as the font draws them
_OWN_SHADING = 0.4  # of the cut-outs
_CLIP_ART_SHARE = 0.6  # of the objects
_ATTEMPTS = 12  # places tried for a thing before it is left out


@dataclass(frozen=True)
class Thing:
    """A thing in a scene; its mask is ``scene.labels == label``.

    A thing without a name, ``""``, is a cut-out of a photograph: something to outline, nothing to name.
    """

    name: str
    keywords: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Scene:
    """An image and what is in it.

    Attributes:
        image: uint8 RGB, height × width × 3.
        labels: uint8, height × width: 0 is background, ``thing.label`` the visible part of a thing.
        things: in painting order; names are unique within a scene, but for things without one.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    things: list[Thing]

    @property
    def caption(self) -> str:
        """The things of the scene in one phrase."""
        return list_things(self.names)

    @property
    def names(self) -> list[str]:
        """Of the things that have one, in painting order."""
        return [thing.name for thing in self.things if thing.name]

    def mask(self, thing: Thing) -> npt.NDArray[np.bool_]:
        """The visible pixels of a thing, bool, height × width."""
        visible: npt.NDArray[np.bool_] = self.labels == thing.label
        return visible


@dataclass(frozen=True)
class SceneStyle:
    """What kind of scenes are drawn.

    Attributes:
        sizes: (width, height) of the canvases, one drawn at random.
        things: fewest and most things in a scene.
        longest: smallest and largest longer side of a thing, in pixels of a 256 px scene.
        photographs: background photographs, see :mod:`training.backgrounds`.
        photograph_share: of the backgrounds.
        damage: whether blur, noise and JPEG artefacts are added.
        calm: whether backgrounds are soft ones only.
        only: the pictograms that occur; empty for all.
        icon_sets: whether pictograms come in the styles of all icon sets too, see :mod:`training.icon_sets`;
            of these only the images that are for training.
        cut_outs: share of the things that are unnamed cut-outs of photographs.
        objects: share of the things that are drawings under the texture and light of photographs, without a
            name; see :mod:`training.objects`.
    """

    sizes: tuple[tuple[int, int], ...] = (
        (256, 256),
        (256, 256),
        (256, 192),
        (256, 171),
        (192, 256),
        (384, 256),
    )
    things: tuple[int, int] = (2, 9)
    longest: tuple[float, float] = (24.0, 140.0)
    photographs: tuple[str, ...] = backgrounds.TRAINING_PHOTOGRAPHS
    photograph_share: float = backgrounds.PHOTOGRAPH_SHARE
    damage: bool = True
    calm: bool = False
    only: tuple[str, ...] = ()
    icon_sets: bool = False
    cut_outs: float = 0.0
    objects: float = 0.0


@dataclass
class SceneArtist:
    """Draws scenes of one style; ``draw(seed)`` always gives the same scene for the same seed."""

    style: SceneStyle = field(default_factory=SceneStyle)

    @cached_property
    def pictograms(self) -> list[Pictogram]:
        """The pictograms that may occur, loaded when the first scene is drawn."""
        return [p for p in load_pictograms() if not self.style.only or p.name in self.style.only]

    @cached_property
    def drawings(self) -> dict[str, list[tuple[npt.NDArray[np.uint8], ...]]]:
        """By name, the images of each icon set that are for training; none where the style wants none."""
        drawings: dict[str, list[tuple[npt.NDArray[np.uint8], ...]]] = {}
        for set_name, icons in load_icons().items() if self.style.icon_sets else ():
            for name, images in icons.items():
                if not is_unseen(set_name, name):
                    drawings.setdefault(name, []).append(images)
        return drawings

    @cached_property
    def clip_art(self) -> list[npt.NDArray[np.uint8]]:
        """Clip art of any thing that is for training; none where the style wants no icon sets."""
        return load_clip_art() if self.style.icon_sets else []

    @cached_property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Every name that can occur, with its keywords."""
        named = {pictogram.name: pictogram.keywords for pictogram in self.pictograms}
        return named | {name: tuple(name.split()) for name in shapes.NAMES}

    def draw(self, seed: int) -> Scene:
        """Draws the scene of a seed."""
        rng = np.random.default_rng(seed)
        width, height = self.style.sizes[int(rng.integers(len(self.style.sizes)))]
        pixels = backgrounds.draw_background(
            rng, height, width, self.style.photographs, self.style.photograph_share, self.style.calm
        )
        labels = np.zeros((height, width), np.uint8)
        shadow = rng.uniform(0.2, 0.6) if rng.random() < 0.6 else 0.0
        light = rng.normal(0, 0.05, 2)  # where shadows fall, in sizes of the thing
        areas: list[int] = []
        things: list[Thing] = []
        scale = np.sqrt(height * width) / 256
        wanted = int(rng.integers(self.style.things[0], self.style.things[1] + 1))
        smallest, largest = self.style.longest
        crowding = min(1.0, (5 / wanted) ** 0.5)
        for _ in range(wanted):
            name, keywords, sprite = self._pick(rng)
            if name and any(thing.name == name for thing in things):
                continue
            longest = scale * np.exp(rng.uniform(np.log(smallest), np.log(largest * crowding)))
            sprite = _pose(sprite, min(longest, 0.8 * height, 0.8 * width), rng)
            solid = np.asarray(sprite)[..., 3] > 127
            if not (spot := _find_spot(rng, labels, areas, solid)):
                continue
            x, y = spot
            if shadow:
                _cast_shadow(pixels, sprite, x, y, light * longest, shadow)
            _paste(pixels, sprite, x, y)
            view = labels[y : y + solid.shape[0], x : x + solid.shape[1]]
            view[solid] = len(things) + 1
            things.append(Thing(name, keywords, len(things) + 1))
            areas.append(int(solid.sum()))
        if self.style.damage:
            pixels = _light_up(rng, pixels)
        image = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
        return Scene(_damage(rng, image) if self.style.damage else image, labels, things)

    def _pick(self, rng: np.random.Generator) -> tuple[str, tuple[str, ...], Image.Image]:
        if self.style.objects and rng.random() < self.style.objects:
            return "", (), self._object(rng)
        if self.style.cut_outs and rng.random() < self.style.cut_outs:
            return "", (), self._cut_out(rng)
        if rng.random() < _SHAPE_SHARE:
            name = shapes.NAMES[int(rng.integers(len(shapes.NAMES)))]
            return name, tuple(name.split()), Image.fromarray(shapes.draw_shape(name, rng))
        pictogram = self.pictograms[int(rng.integers(len(self.pictograms)))]
        return pictogram.name, pictogram.keywords, Image.fromarray(self._drawing(rng, pictogram))

    def _drawing(self, rng: np.random.Generator, pictogram: Pictogram) -> npt.NDArray[np.uint8]:
        """The thing in the style of any of the sets that have it, more often in the font's own."""
        if not (sets := self.drawings.get(pictogram.name, [])) or rng.random() < _FONT_SHARE:
            return pictogram.pixels
        images = sets[int(rng.integers(len(sets)))]
        return images[int(rng.integers(len(images)))]

    def _object(self, rng: np.random.Generator) -> Image.Image:
        """Clip art or any drawing as if it had been photographed."""
        clip_art = self.clip_art
        if clip_art and rng.random() < _CLIP_ART_SHARE:
            drawing = clip_art[int(rng.integers(len(clip_art)))]
        else:
            drawing = self._drawing(rng, self.pictograms[int(rng.integers(len(self.pictograms)))])
        return objects.photograph(rng, drawing, self.style.photographs)

    def _cut_out(self, rng: np.random.Generator) -> Image.Image:
        """A piece of a photograph in the outline of some thing, shaded as if it were round."""
        if rng.random() < _SHAPE_SHARE:
            outline = shapes.draw_shape(shapes.NAMES[int(rng.integers(len(shapes.NAMES)))], rng)
        else:
            outline = self._drawing(rng, self.pictograms[int(rng.integers(len(self.pictograms)))])
        height, width = outline.shape[:2]
        rgb = backgrounds.draw_photograph(rng, height, width, self.style.photographs)
        if rng.random() < _OWN_SHADING:  # the drawing's own light and dark, under the photograph's colours
            own = outline[..., :3].mean(-1, keepdims=True) / 255
            rgb = rgb * (1 + rng.uniform(0.2, 0.8) * (own - own.mean()))
        return objects.lit(rng, rgb, outline[..., 3])


def _pose(sprite: Image.Image, longest: float, rng: np.random.Generator) -> Image.Image:
    """Mirrors, scales and turns a sprite; the result is trimmed by the turn only."""
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    factor = longest / max(sprite.size)
    size = (max(4, round(sprite.width * factor)), max(4, round(sprite.height * factor)))
    sprite = sprite.resize(size, Image.Resampling.BICUBIC)
    angle = rng.uniform(-30, 30) if rng.random() < 0.6 else 0.0
    return sprite.rotate(angle, Image.Resampling.BICUBIC, expand=True) if abs(angle) > 1 else sprite


def _find_spot(
    rng: np.random.Generator,
    labels: npt.NDArray[np.uint8],
    areas: list[int],
    solid: npt.NDArray[np.bool_],
) -> tuple[int, int] | None:
    """A place where the new thing hides no other by more than the limit, counting what is hidden already."""
    height, width = labels.shape
    if solid.shape[0] > height or solid.shape[1] > width or solid.sum() < 40:
        return None
    visible = np.bincount(labels.ravel(), minlength=len(areas) + 1)
    needed = np.array([0, *areas]) * (1 - _MOST_HIDDEN)
    for _ in range(_ATTEMPTS):
        x = int(rng.integers(width - solid.shape[1] + 1))
        y = int(rng.integers(height - solid.shape[0] + 1))
        under = labels[y : y + solid.shape[0], x : x + solid.shape[1]][solid]
        left = visible - np.bincount(under, minlength=len(visible))
        if (left[1:] >= needed[1:]).all():
            return x, y
    return None


def _paste(pixels: npt.NDArray[np.float32], sprite: Image.Image, x: int, y: int) -> None:
    rgba = np.asarray(sprite, np.float32)
    alpha = rgba[..., 3:] / 255
    view = pixels[y : y + rgba.shape[0], x : x + rgba.shape[1]]
    view += alpha * (rgba[..., :3] - view)


def _cast_shadow(
    pixels: npt.NDArray[np.float32],
    sprite: Image.Image,
    x: int,
    y: int,
    offset: npt.NDArray[np.float64],
    strength: float,
) -> None:
    """Darkens what lies under a blurred, shifted copy of the sprite."""
    radius = max(1, round(0.04 * max(sprite.size)))
    margin = 2 * radius
    alpha = Image.new("L", (sprite.width + 2 * margin, sprite.height + 2 * margin))
    alpha.paste(sprite.getchannel("A"), (margin, margin))
    dark = np.asarray(alpha.filter(ImageFilter.BoxBlur(radius)), np.float32)[..., None] * (strength / 255)
    top, left = y - margin + round(offset[1]), x - margin + round(offset[0])
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(pixels.shape[0], top + dark.shape[0]), min(pixels.shape[1], left + dark.shape[1])
    if y0 < y1 and x0 < x1:
        pixels[y0:y1, x0:x1] *= 1 - dark[y0 - top : y1 - top, x0 - left : x1 - left]


def _light_up(rng: np.random.Generator, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A change of exposure and of the light's colour over the whole scene."""
    if rng.random() < 0.5:
        pixels = pixels * rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3).astype(np.float32)
    return pixels


def _damage(rng: np.random.Generator, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """What cameras and compression do: blur, noise, JPEG."""
    damaged = Image.fromarray(image)
    if rng.random() < 0.25:
        damaged = damaged.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    if rng.random() < 0.25:
        noise = rng.normal(0, rng.uniform(1, 7), image.shape)
        damaged = Image.fromarray(np.clip(np.asarray(damaged) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.35:
        file = io.BytesIO()
        damaged.save(file, "JPEG", quality=int(rng.integers(45, 95)))
        damaged = Image.open(file)
    return np.asarray(damaged.convert("RGB"))
