"""What every writer of COCO documents shares."""

from __future__ import annotations

from pathlib import PurePosixPath

_ID_PART = 8


def unique_file_name(name: str, image_id: str, taken: set[str]) -> str:
    """A `file_name` that no other image of a document has: importers take images of one name for one image.

    Args:
        name: What the image is called, perhaps with folders.
        image_id: Its id, a part of which stands before a name that is taken.
        taken: The names of the document so far; the answer is added.
    """
    path = PurePosixPath(name)
    length = _ID_PART
    while str(path) in taken:
        path = path.with_name(f"{image_id[:length]}-{PurePosixPath(name).name}")
        length += _ID_PART
    taken.add(str(path))
    return str(path)
