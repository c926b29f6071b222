"""The named pictograms that scenes are made of: Noto Color Emoji glyphs with their CLDR names and keywords.

A name must be a fair query: an image has to tell it from every other name. So flags, skin tones, buttons
with writing on them, arrows and the like are left out by name, and of glyphs that look alike (clock faces,
phases of the moon, smileys that differ by an eyebrow) only the first is kept, found by comparing the
images.
"""

from __future__ import annotations

import functools
import hashlib
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
ANNOTATIONS = Path("/usr/share/unicode/cldr/common/annotations/en.xml")
CACHE = Path(__file__).parent / "out"

_BITMAP_SIZE = 109  # the one size of the font's bitmap strike
_BITMAP_SHAPE = (128, 136)
_UNFAIR = re.compile(
    r"skin tone|^(red|curly|white) hair$|^bald$|button|arrow|^input |flag|o’clock|-thirty|moon face$"
    r"|(new|gibbous|quarter|crescent) moon|circle|square|triangle|diamond|mailbox|speaker "
    r"|hundred points|banknote"
    r"|pointing|-facing|hand$|hands$|gesture|fist|^person (frown|pout|gestur|tipp|rais|bow"
    r"|facepalm|shrug)|^deaf"
    r"|^(oncoming|small|left|right) |suit$|place medal|(no one|no \w+)$|^(ATM|litter"
    r"|restroom|customs|passport)"
    r"|^(men|women)’s room|water closet|baggage claim|left luggage|potable|mark$|marks$"
    r"|infinity|curly loop|medium"
    r"|^(Aries|Taurus|Gemini|Cancer|Leo|Virgo|Libra|Scorpio|Sagittarius|Capricorn|Aquarius|Pisces|Ophiuchus)$"
    r"|place of worship|^om$|wheel of dharma|dotted|heavy |multiply|^plus$|^minus$|divide"
    r"|wavy dash|part alternation"
    r"|asterisk|eight-pointed|male sign|transgender|currency|exchange|circled|information|recycling|vibration"
    r"|mobile phone off|antenna bars|symbol|tumbler|identification|middle finger|kiss$"
    r"|people|breast|cigarette|Kaaba"
    r"|tilted right|with key|with pen|envelope with|e-mail|page facing|page with"
    r"|globe showing (A)|lowered|ZZZ|zzz"
    r"|departure|arrival|two hearts|revolving|growing heart|beating heart|smoking|placard|^link$"
    r"|without snow",
)
_ALIKE = 0.045  # mean absolute difference of two 24 px glyphs, under which they count as one image


@dataclass(frozen=True)
class Pictogram:
    """One named image.

    Attributes:
        name: CLDR short name, lower case, such as ``"dog face"``.
        keywords: CLDR keywords, none of them the name.
        pixels: uint8 RGBA, trimmed to its opaque part, height × width × 4.
    """

    name: str
    keywords: tuple[str, ...]
    pixels: npt.NDArray[np.uint8]


class FontMissingError(RuntimeError):
    """The emoji font or the CLDR annotations are not on this machine; the message says how to get them."""


@functools.cache
def load_pictograms(cache: Path = CACHE) -> list[Pictogram]:
    """All fair pictograms, ordered by code point; rasterised once and then read from ``cache``.

    Raises:
        FontMissingError: when the font or CLDR is needed and missing.
    """
    return list(_load_glyphs(cache).values())


def load_glyph_names(cache: Path = CACHE) -> dict[str, str]:
    """The vocabulary's names by the character that shows each thing."""
    return {glyph: pictogram.name for glyph, pictogram in _load_glyphs(cache).items()}


@functools.cache
def _load_glyphs(cache: Path) -> dict[str, Pictogram]:
    for path, package in ((FONT, "fonts-noto-color-emoji"), (ANNOTATIONS, "unicode-cldr-core")):
        if not path.is_file():
            raise FontMissingError(f"{path} is missing; install the Debian package {package}")
    recipe = f"{FONT.stat().st_size}/{ANNOTATIONS.stat().st_size}/{_UNFAIR.pattern}/{_ALIKE}"
    file = cache / f"pictograms-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.npz"
    names = _fair_names()
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        glyphs = {glyph: pixels for glyph in names if (pixels := _rasterise(glyph)).any()}
        kept = _drop_lookalikes(glyphs)
        temporary = file.with_suffix(".tmp.npz")
        np.savez(temporary, glyphs=np.array(kept), pixels=np.stack([glyphs[glyph] for glyph in kept]))
        temporary.replace(file)
    with np.load(file) as stored:
        bitmaps = dict(zip(stored["glyphs"].tolist(), stored["pixels"], strict=True))
    return {glyph: Pictogram(*names[glyph], pixels=trim(bitmap)) for glyph, bitmap in bitmaps.items()}


def _fair_names() -> dict[str, tuple[str, tuple[str, ...]]]:
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for annotation in ET.parse(ANNOTATIONS).getroot().iter("annotation"):  # noqa: S314 - a file of the system
        glyph, text = annotation.get("cp", ""), annotation.text or ""
        if annotation.get("type") == "tts":
            names[glyph] = text
        else:
            keywords[glyph] = [word.strip() for word in text.split("|")]
    fair: dict[str, tuple[str, tuple[str, ...]]] = {}
    for glyph, name in sorted(names.items()):
        single = len(glyph) == 1 and ord(glyph) > 0x2000
        if single and not _UNFAIR.search(name) and not name.startswith("Japanese “"):
            plain = name.lower().replace("’", "'").replace(":", "")
            words = tuple(w.lower() for w in keywords.get(glyph, []) if w.lower() != plain and w.isascii())
            fair[glyph] = (plain, words)
    return fair


def _rasterise(glyph: str) -> npt.NDArray[np.uint8]:
    font = ImageFont.truetype(str(FONT), _BITMAP_SIZE)
    height, width = _BITMAP_SHAPE
    canvas = Image.new("RGBA", (width, height))
    ImageDraw.Draw(canvas).text((0, 0), glyph, font=font, embedded_color=True)
    return np.asarray(canvas).copy()


def trim(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The opaque part of an RGBA image."""
    ys, xs = np.nonzero(pixels[..., 3] > 16)
    return pixels[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def _drop_lookalikes(glyphs: dict[str, npt.NDArray[np.uint8]]) -> list[str]:
    """Greedy: a glyph is kept unless it, or its mirror image, is too close to one kept before."""
    kept: list[str] = []
    seen = np.empty((0, 24 * 24 * 4), np.float32)
    for glyph, pixels in glyphs.items():
        small = Image.fromarray(trim(pixels)).resize((24, 24), Image.Resampling.BOX)
        rgba = np.asarray(small, np.float32) / 255
        rgba[..., :3] *= rgba[..., 3:]
        views = np.stack([rgba.ravel(), rgba[:, ::-1].ravel()])
        if len(seen) and min(float(np.abs(seen - view).mean(1).min()) for view in views) < _ALIKE:
            continue
        kept.append(glyph)
        seen = np.concatenate([seen, views[:1]])
    return kept
