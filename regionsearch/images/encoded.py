"""An image file: inspected, then decoded in full or small; the one reader of all processes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile

from regionsearch.errors import RegionSearchError, invalid, too_large
from regionsearch.images import background, isolated, jpeg, png, simple, tiff
from regionsearch.images.container import (
    CONTENT_TYPES,
    DEFAULT_LIMITS,
    READABLE,
    Container,
    DamagedError,
    ImageLimits,
    TooIntricateError,
    unsupported,
)
from regionsearch.images.conversion import (
    STRIP_PIXELS,
    SrgbConverter,
    is_dark,
    is_deep_colour,
    on_white,
    read_lower_halves,
    scale_to_white,
)
from regionsearch.images.exif import exif_orientation, photo_facts

Pixels = NDArray[np.uint8]
Result = TypeVar("Result")

_SIDEWAYS = frozenset({5, 6, 7, 8})
# EXIF orientation -> a view of the upright image as its file has it, and what turns a stored one upright.
_AS_STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NO_END = bytes(range(0x55, 0x95))  # what no encoder writes where a JPEG breaks off
_REFUSED = {
    b"\0\0\0\x0cjP  \r\n\x87\n": "is a JPEG 2000 file, which is not supported",
    b"\xff\x4f\xff\x51": "is a JPEG 2000 file, which is not supported",
    b"\0\0\0\x0cJXL \r\n\x87\n": "is a JPEG XL file, which is not supported",
    b"\xff\x0a": "is a JPEG XL file, which is not supported",
}


@dataclass(frozen=True)
class ImageHeader:
    """What a file says about itself; width and height in pixels, upright."""

    width: int
    height: int
    content_type: str


class EncodedImage:
    """A file whose format, size and cost are known; nothing is decoded yet. Use it once, in any thread.

    Args:
        data: The file.
        limits: What is refused.
        field: Where it stands in the request, for errors.

    Attributes:
        header: Size and type.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for no bytes, UNSUPPORTED_IMAGE for what is not an image,
            TOO_LARGE over a limit, or for a structure that is far more intricate than its pixels need. A file
            that is damaged further on passes.
    """

    def __init__(self, data: bytes, limits: ImageLimits = DEFAULT_LIMITS, field: str = "image") -> None:
        if not data:
            raise invalid(field, f"{field} is empty; send the bytes of a {READABLE} file")
        limits.check_bytes(len(data), field)
        self._field = field
        with self._typed_errors("is not an image that can be read", f"send a {READABLE} file"):
            self._container = _take_apart(data, field)
            self._image = _open(self._container)
        # Of HEIC and AVIF the decoder knows it; Pillow puts the orientation of AVIF's container there, too.
        self._exif = self._container.exif or self._image.info.get("exif") or b""
        is_avif = self._container.file_format == "AVIF"
        self._orientation = exif_orientation(self._exif) if is_avif else self._container.orientation
        self._profile = self._image.info.get("icc_profile") or self._container.profile
        self._stored_size = self._image.size
        self._isolated = isolated.is_needed(self._container.file_format, *self._stored_size)
        self._deep = is_deep_colour(self._image)
        limits.check_pixels(*self._stored_size, field)
        upright = self._stored_size[::-1] if self._orientation in _SIDEWAYS else self._stored_size
        self.header = ImageHeader(*upright, CONTENT_TYPES[self._container.file_format])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets the file go."""
        self._image.close()

    def facts(self) -> dict[str, str]:
        """When, with what and where the photograph was taken, as attributes; see `exif`."""
        return photo_facts(self._exif)

    @property
    def _area(self) -> int:
        return self.header.width * self.header.height

    @property
    def decoded_bytes(self) -> int:
        """Memory that :meth:`decode` takes at most: seven bytes a pixel, four inside Pillow and three in the
        array that remains, and what the format's decoder takes for itself.
        """
        return 7 * self._area + self._spare_bytes

    def reduced_bytes(self, side: int) -> int:
        """Memory that :meth:`reduced` takes at most."""
        shrunk = self._draft_factor(side) ** 2
        # The image, and two copies of what it is reduced to at first, up to twice as long and wide as wanted.
        return 4 * self._area // shrunk + 8 * min(self._area, 4 * side**2) + self._spare_bytes

    @property
    def _spare_bytes(self) -> int:
        process = isolated.BYTES if self._isolated else 0
        lower_halves = 4 * self._area if self._deep else 0
        return self._container.spare_bytes * self._area + process + lower_halves

    def decode(self) -> Pixels:
        """The pixels: uint8 sRGB (height, width, 3), upright.

        The first frame of an animation counts, transparency is laid on white, 16 bits are scaled to 8, CMYK,
        palettes and colour profiles are converted.

        Raises:
            RegionSearchError: UNSUPPORTED_IMAGE for a damaged file.
        """

        def work() -> Pixels:
            self._load()
            upright = np.empty((self.header.height, self.header.width, 3), np.uint8)
            stored = _AS_STORED[self._orientation](upright)
            for top, strip in self._strips():
                stored[top : top + strip.height] = np.asarray(on_white(strip))
            return upright

        return self._decoding(work)

    def reduced(self, side: int) -> Image.Image:
        """A small upright image, RGB or RGBA in sRGB, whose longer side has `side` pixels, or fewer where the
        image itself has. JPEGs are decoded at a fraction of their size.

        Raises:
            RegionSearchError: UNSUPPORTED_IMAGE for a damaged file.
        """
        width, height = self._stored_size
        longer = max(width, height)
        scale = min(side, longer) / longer
        wanted = max(1, round(width * scale)), max(1, round(height * scale))

        def work() -> Image.Image:
            self._load(wanted)
            width, height = self._image.size
            factor = max(1, min(width // (2 * wanted[0]), height // (2 * wanted[1])))
            small: Image.Image | None = None
            for top, strip in self._strips(factor):
                if strip.mode == "RGBA":
                    strip = strip.convert("RGBa")  # so that no colour of what is transparent bleeds in
                if small is None:
                    small = Image.new(strip.mode, (-(-width // factor), -(-height // factor)))
                small.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
            assert small is not None
            box = (0, 0, width / factor, height / factor)
            if (width, height) != wanted:
                small = small.resize(wanted, Image.Resampling.LANCZOS, box)
            if small.mode == "RGBa":
                small = small.convert("RGBA")
            turn = _UPRIGHT.get(self._orientation)
            return small if turn is None else small.transpose(turn)

        return self._decoding(work)

    def _draft_factor(self, side: int) -> int:
        if self._container.file_format != "JPEG":
            return 1
        return next(
            factor for factor in (8, 4, 2, 1) if max(self._stored_size) >= factor * side or factor == 1
        )

    def _load(self, wanted: tuple[int, int] | None = None) -> None:
        """Decodes the file; a JPEG at the smallest fraction of its size that is as large as wanted."""
        container, (width, height) = self._container, self._stored_size
        if self._isolated:
            transparent = self._image.has_transparency_data
            self._image = isolated.load(container.joined(), container.file_format, width, height, transparent)
            return
        deep = self._deep and container.has_end and "transparency" not in self._image.info
        self._image.draft(None, wanted)  # of JPEGs; the others know no fractions
        try:
            self._image.load()
        except OSError:
            if container.file_format != "PNG" or container.has_end or not png.has_all_rows(container.pixels):
                raise
            cast(ImageFile.ImageFile, self._image).tile = []  # only what follows the rows is missing
            self._image.load()
        if deep and is_dark(self._image):
            with _open(container) as lower:
                read_lower_halves(lower)
                lower.load()
                scale_to_white(self._image, lower)
        if container.file_format != "JPEG" or container.has_end:
            return
        if not _ends_well(self._image, container, wanted):
            raise DamagedError("image file is truncated")

    def _strips(self, multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
        """Strips of the decoded image with their tops: RGB or RGBA, in sRGB; rows are a multiple of that."""
        convert = SrgbConverter(self._image, self._profile, self._container.inverted)
        width, height = self._image.size
        rows = multiple * max(1, STRIP_PIXELS // (width * multiple))
        for top in range(0, height, rows):
            yield top, convert(self._image.crop((0, top, width, min(top + rows, height))))

    def _decoding(self, work: Callable[[], Result]) -> Result:
        """Does work that decodes; that of a large image yields the cores to others."""
        name = self._container.file_format
        with self._typed_errors(f"is a damaged {name} file", "send it again", tell=True):
            return background.in_background(work) if self._area > background.PIXELS else work()

    @contextlib.contextmanager
    def _typed_errors(self, problem: str, advice: str, tell: bool = False) -> Iterator[None]:
        field = self._field
        try:
            yield
        except (RegionSearchError, MemoryError):
            raise
        except TooIntricateError as error:
            raise too_large(
                field,
                f"{field} would take far more work than its pixels need ({error}); save it again with "
                "another program",
            ) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise too_large(
                field, f"{field} has far too many pixels ({error}); send a smaller image"
            ) from error
        except (
            Exception
        ) as error:  # Pillow's parsers and decoders let any exception of a damaged file through
            tell = tell or isinstance(error, DamagedError)
            reason = f" ({str(error) or type(error).__name__})" if tell else ""
            raise unsupported(field, f"{problem}{reason}; {advice}") from error


def _take_apart(data: bytes, field: str) -> Container:
    if data.startswith(jpeg.START + b"\xff"):
        return jpeg.take_apart(data)
    if data.startswith(png.SIGNATURE):
        return png.take_apart(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return simple.take_apart_webp(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return simple.take_apart_gif(data)
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return tiff.take_apart(data)
    if data.startswith(b"BM"):
        return simple.take_apart_bmp(data)
    if data[4:8] == b"ftyp" and (name := simple.brand_format(data)):
        return simple.take_apart_iso(data, name)
    for start, problem in _REFUSED.items():
        if data.startswith(start):
            raise unsupported(field, f"{problem}; send a {READABLE} file")
    raise DamagedError("unknown format")


def _open(container: Container) -> Image.Image:
    if container.file_format == "HEIF":
        _register_heif()
    tail = b"" if container.has_end or container.file_format != "JPEG" else jpeg.END
    return Image.open(io.BytesIO(container.joined(tail)), formats=[container.file_format])


def _register_heif() -> None:
    from pi_heif import HeifImagePlugin  # noqa: F401  # the import registers it; only where it is needed


def _ends_well(image: Image.Image, container: Container, wanted: tuple[int, int] | None) -> bool:
    """Whether a JPEG without its end has all of its rows: then nothing of what follows is used for them.

    A progressive file that ends between two scans has them all, less sharp than they were: like libjpeg and
    browsers, this takes it as it is. In the middle of a scan some rows are better than others.
    """
    pieces = container.joined().rstrip(b"\xff")
    with Image.open(io.BytesIO(pieces + _NO_END + jpeg.END), formats=["JPEG"]) as other:
        other.draft(None, wanted)
        other.load()
        rows = max(1, STRIP_PIXELS // image.width)
        return not any(
            ImageChops.difference(image.crop(box), other.crop(box)).getbbox()
            for top in range(0, image.height, rows)
            for box in [(0, top, image.width, min(top + rows, image.height))]
        )
