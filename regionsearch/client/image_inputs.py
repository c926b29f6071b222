"""What users hand in: files, bytes, points, boxes."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from regionsearch.errors import invalid

ImageInput = str | Path | bytes | tuple[str, bytes | str | Path]
"""An image: a path or the bytes of a file; or a name with either."""
Point = tuple[float, float] | tuple[float, float, int]
"""x, y and perhaps a label, pixels of the upright image; label 1 (the default): here, 0: not here."""
Box = Sequence[float]
"""x_min, y_min, x_max, y_max, pixels of the upright image; edges are half-open."""


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

_BOX = ("x_min", "y_min", "x_max", "y_max")


def name_of(source: ImageInput) -> str:
    """What an image is called; never raises.

    A file's name may be bytes that are not UTF-8: where no request could carry it, it has U+FFFD.
    """
    if isinstance(source, tuple):
        name = str(source[0])
    else:
        name = os.path.basename(source) if isinstance(source, str | Path) else "image"
    return "".join("\N{REPLACEMENT CHARACTER}" if "\ud800" <= one <= "\udfff" else one for one in name)


def path_of(source: ImageInput) -> str | Path | None:
    """The file of an image that is not in memory yet."""
    place = source[1] if isinstance(source, tuple) else source
    return None if isinstance(place, bytes) else place


def read_image_input(source: ImageInput) -> bytes:
    """The bytes of an image's file.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a file that cannot be read, and for what is not a file.
    """
    place = source[1] if isinstance(source, tuple) else source
    if isinstance(place, bytes):
        return place
    with open_file(place) as file:
        return file.read()


@contextlib.contextmanager
def open_file(path: str | Path) -> Iterator[BufferedReader]:
    """Opens a regular file without blocking, as a pipe without a writer would.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a file that cannot be read, and for what is not a file.
    """
    if not isinstance(path, str | os.PathLike):
        raise invalid(
            "image", f"{path!r} is not a valid source: expected a path, bytes, or a name with either"
        )
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise invalid("image", f"{printable(path)} is not a regular file")
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


def printable(path: str | Path) -> str:
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
    if len(box) != len(_BOX):
        raise invalid("box", f"box has {len(box)} numbers; give {', '.join(_BOX)}")
    return dict(zip(_BOX, box, strict=True))
