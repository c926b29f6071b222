"""What users hand in: files, bytes, points, boxes."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from regionsearch.errors import invalid, too_large
from regionsearch.image_files import find_images
from regionsearch.schemas.responses.values import Box as FoundBox

Content = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[np.uint8]
"""An image: path, bytes or open file of one, or pixels: of Pillow, or an array (height, width, 3)."""
ImageInput = Content | tuple[str, Content]
"""An image, perhaps with its name."""
Point = tuple[float, float] | tuple[float, float, int]
"""x, y and perhaps a label, pixels of the upright image; label 1 (the default): here, 0: not here."""
Box = Sequence[float] | Mapping[str, float] | FoundBox
"""x_min, y_min, x_max, y_max, pixels of the upright image; half-open. An answer's box is one too."""


@dataclass(frozen=True)
class NegativeExample:
    """Something that is not meant, shown instead of said: one of the three.

    Attributes:
        image: An image of it.
        region_id: A stored region.
        image_id: A stored image, as a whole.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for none of them, or more than one.
    """

    image: ImageInput | None = None
    region_id: str | None = None
    image_id: str | None = None

    def __post_init__(self) -> None:
        if [self.image, self.region_id, self.image_id].count(None) != 2:
            raise invalid("negatives", "an example is one of image, region_id and image_id")

    def fields(self) -> dict[str, Any]:
        """The one field, as requests have it; reads the file."""
        if self.image is not None:
            return {"image": read_image_input(self.image)}
        return {"image_id": self.image_id} if self.region_id is None else {"region_id": self.region_id}


Negative = str | NegativeExample
"""What is not meant: a phrase or an example."""

MAX_FILE_BYTES = 1 << 30  # far above what a message or a form can carry
_BOX = ("x_min", "y_min", "x_max", "y_max")


def is_image(value: object) -> TypeGuard[Content]:
    """Whether something is one image, rather than several."""
    known = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    return isinstance(value, known) or hasattr(value, "read")


def several(sources: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput]:
    """The images, where a single one may stand for itself, and a single folder for the images in it.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a folder without images.
    """
    if not is_image(sources):
        return sources  # type: ignore[return-value]  # a tuple is several images here, not one with its name
    if isinstance(sources, str | os.PathLike) and os.path.isdir(sources):
        return find_images([Path(sources)]).named()
    return [sources]


def name_of(source: ImageInput) -> str:
    """What an image is called; never raises.

    A file's name may be bytes that are not UTF-8: where no request could carry it, it has U+FFFD.
    """
    if isinstance(source, tuple):
        name = str(source[0])
    else:
        place = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
        named = isinstance(place, str | os.PathLike)
        name = os.path.basename(str(place)) if named else "image"
    return "".join("\N{REPLACEMENT CHARACTER}" if "\ud800" <= one <= "\udfff" else one for one in name)


def path_of(source: ImageInput) -> str | Path | None:
    """The file of an image that is not in memory yet."""
    place = source[1] if isinstance(source, tuple) else source
    if isinstance(place, os.PathLike):
        return Path(place)
    if isinstance(place, str) or not is_image(place):
        return place  # type: ignore[return-value]  # what is no source is refused when it is opened
    return None


def read_image_input(source: ImageInput) -> bytes:
    """The bytes of an image's file; pixels become a PNG, upright.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a file that cannot be read, and for what is not an image.
    """
    place = source[1] if isinstance(source, tuple) else source
    if isinstance(place, bytes | bytearray | memoryview):
        return bytes(place)
    if isinstance(place, np.ndarray):
        place = _from_array(place)
    if isinstance(place, Image.Image):
        out = io.BytesIO()
        upright = ImageOps.exif_transpose(place)
        usual = upright.mode in ("L", "LA", "RGB", "RGBA", "1", "P", "I;16")
        (upright if usual else upright.convert("RGB")).save(out, "PNG")
        return out.getvalue()
    if not isinstance(place, str | os.PathLike) and hasattr(place, "read"):
        return _read_open(place)
    with open_file(place) as file:  # type: ignore[arg-type]  # which refuses what is not a path
        return file.read()


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    shapes = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not shapes or not pixels.size:
        raise invalid(
            "image",
            f"an array of {pixels.dtype} of shape {pixels.shape} is not an image: expected uint8 of shape "
            "(height, width, 3), (height, width, 4) or (height, width)",
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _read_open(file: Any) -> bytes:
    """What is left of an open file, which stays where it is, if it can, so that it can be read again."""
    try:
        start = file.tell() if file.seekable() else None
        data = file.read()
        if start is not None:
            file.seek(start)
    except (OSError, ValueError, AttributeError) as error:
        raise invalid("image", f"the open file cannot be read: {error}") from error
    if not isinstance(data, bytes):
        raise invalid("image", "the open file gives text: open it in binary mode, 'rb'")
    return data


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[BufferedReader]:
    """Opens a regular file without blocking, as a pipe without a writer would.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a file that cannot be read, and for what is not a file;
            TOO_LARGE for one that would only be read to be refused.
    """
    if not isinstance(path, str | os.PathLike):
        raise invalid(
            "image",
            f"{path!r} is not a valid source: expected a path, bytes, an open file, a Pillow image, an "
            "array, or a name with one of these",
        )
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise invalid("image", f"{printable(path)} is not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise too_large(
                    "image",
                    f"{printable(path)} has {status.st_size} bytes; no server takes an image of more than "
                    f"{MAX_FILE_BYTES}",
                )
            yield file
    except OSError as error:
        reason = error.strerror or str(error)
        raise invalid("image", f"{printable(path)} cannot be read: {reason}") from error
    except (ValueError, TypeError) as error:  # NUL in a path, or what is not a path
        raise invalid(
            "image", f"{path!r} is not a valid source: expected a path or bytes ({error})"
        ) from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # no such thing on Windows, and no such pipes


def printable(path: str | os.PathLike[str]) -> str:
    """A path for messages: what is not UTF-8 in it is escaped, so that showing and sending it never fails."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def read_optional(source: ImageInput | None) -> bytes | None:
    """The bytes of an image's file, where there is one; raises as `read_image_input`."""
    return None if source is None else read_image_input(source)


def negatives_of(negatives: Sequence[Negative]) -> list[str | dict[str, Any]]:
    """What is not meant as requests have it; reads files."""
    return [one if isinstance(one, str) else one.fields() for one in negatives]


def points_of(points: Sequence[Point]) -> list[dict[str, float]]:
    """Points as requests have them."""
    return [dict(zip(("x", "y", "label"), point, strict=False)) for point in points]


def box_of(box: Box | None) -> dict[str, float] | None:
    """A box as requests have it.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for another number of edges.
    """
    if box is None:
        return None
    if isinstance(box, Mapping):
        return dict(box)
    if len(box) != len(_BOX):
        raise invalid("box", f"box has {len(box)} numbers; give {', '.join(_BOX)}")
    return dict(zip(_BOX, box, strict=True))
