"""The files of a segment: its vectors and inverted lists, which are mapped, and their description."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.faiss_compat import faiss
from services.searcher.embedded.index.columns import Positions
from services.searcher.types import Vectors

PART = ".part"
_MAGIC = b"RSINDEX3"
_ROWS, _VECTORS, _LISTS = "rows", "vectors", "lists"
_DIGEST = "sha256_"

Arrays = Mapping[str, NDArray[Any]]
Halves = NDArray[np.float16]


class StoredVectors:
    """The vectors of a segment in half precision, mapped from one or more files.

    Args:
        parts: Shape (rows, dimension) each, one behind the other.
    """

    def __init__(self, parts: Sequence[Halves]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: Positions) -> Halves:
        """Those of some rows, in any order."""
        if len(self._parts) == 1:
            return self._parts[0][rows]
        found: Halves = np.empty((len(rows), self._parts[0].shape[1]), np.float16)
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers).tolist():
            here, part = numbers == number, self._parts[number]
            found[here] = part[rows[here] - (self._ends[number] - len(part))]
        return found


class SegmentFiles:
    """The folder of one segment.

    Args:
        folder: It; None takes a temporary one, which goes with this object.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = None if folder is not None else tempfile.TemporaryDirectory(prefix="segment-")
        self.folder = folder or Path(self._temporary.name if self._temporary else "")
        self._digests: dict[str, str] = {}

    def write_vectors(self, blocks: Iterable[Vectors]) -> None:
        """Stores vectors in half precision, behind those that are there.

        Raises:
            OSError: The disk refuses them.
        """
        name, digest = self._next_part(), hashlib.sha256()
        with (self.folder / name).open("wb") as file:
            for block in blocks:
                data = block.astype("<f2").tobytes()
                file.write(data)
                digest.update(data)
            file.flush()
            os.fsync(file.fileno())
        self._digests[name] = digest.hexdigest()

    def link_vectors(self, other: SegmentFiles) -> None:
        """Takes over the vectors of another segment, behind those that are there, without copying them.

        Raises:
            OSError: The disk refuses them.
        """
        for part in other.parts:
            name = self._next_part()
            try:
                os.link(other.folder / part, self.folder / name)
            except OSError:  # another disk, or one that knows no links
                shutil.copyfile(other.folder / part, self.folder / name)
            self._digests[name] = other._digests[part]

    @property
    def parts(self) -> list[str]:
        """The files with vectors, in their order."""
        return sorted((name for name in self._digests if name.startswith(_VECTORS)), key=_part_number)

    def _next_part(self) -> str:
        return f"{_VECTORS}{len(self.parts) or ''}"

    def vectors(self, rows: int, dimension: int) -> StoredVectors:
        """The stored vectors, mapped, shape (rows, dimension).

        Raises:
            ValueError: The files are of another size.
        """
        paths = [self.folder / name for name in self.parts]
        counts = [path.stat().st_size / (2 * dimension) for path in paths]
        if sum(counts) != rows or any(count % 1 for count in counts):
            raise ValueError("its vectors are of another size")
        return StoredVectors(
            [
                np.memmap(path, "<f2", "r", shape=(int(count), dimension))
                for path, count in zip(paths, counts, strict=True)
            ]
        )

    def write_lists(self, index: Any) -> Any:
        """Stores a FAISS index; returns it with its inverted lists mapped.

        Raises:
            OSError: The disk refuses it.
        """
        path = self.folder / _LISTS
        try:
            faiss.write_index(index, str(path))
        except RuntimeError as error:  # FAISS raises it for a full disk too
            raise OSError(str(error)) from error
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            self._digests[_LISTS] = hashlib.file_digest(file, hashlib.sha256).hexdigest()
        return self.lists()

    def lists(self) -> Any:
        """The stored FAISS index, with its inverted lists mapped.

        Raises:
            ValueError: FAISS cannot read it.
        """
        try:
            index = faiss.read_index(str(self.folder / _LISTS), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            raise ValueError(f"FAISS cannot read its lists ({error})") from error
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0  # costs more than it saves
        return index

    def write_rows(self, arrays: Arrays) -> None:
        """Stores the description, whole or not at all.

        Raises:
            OSError: The disk refuses it.
        """
        names = {_DIGEST + name: np.array(digest) for name, digest in self._digests.items()}
        buffer = io.BytesIO()
        np.savez(buffer, **names, **arrays)  # type: ignore[arg-type]  # its keyword-only option is not an array
        payload = buffer.getvalue()
        part = self.folder / (_ROWS + PART)
        part.write_bytes(_MAGIC + hashlib.sha256(payload).digest() + payload)
        os.replace(part, self.folder / _ROWS)  # not synchronised: a torn file fails its digest

    def read_rows(self, *, verify: bool) -> dict[str, NDArray[Any]]:
        """The description.

        Args:
            verify: Read the other files too, and compare their digests.

        Raises:
            OSError: A file is missing.
            ValueError: One of them is not what was written.
        """
        data = (self.folder / _ROWS).read_bytes()
        start = len(_MAGIC) + hashlib.sha256().digest_size
        payload = data[start:]
        if data[:start] != _MAGIC + hashlib.sha256(payload).digest():
            raise ValueError("it is damaged or not an index file")
        try:
            with np.load(io.BytesIO(payload), allow_pickle=False) as stored:
                arrays = dict(stored)
        except zipfile.BadZipFile as error:
            raise ValueError(f"it lacks something ({error})") from error
        for name in [name for name in arrays if name.startswith(_DIGEST)]:
            self._digests[name.removeprefix(_DIGEST)] = str(arrays.pop(name))
        for name, expected in self._digests.items() if verify else ():
            with (self.folder / name).open("rb") as file:
                if hashlib.file_digest(file, hashlib.sha256).hexdigest() != expected:
                    raise ValueError(f"its {name} are damaged")
        return arrays

    def move(self, folder: Path) -> None:
        """Moves the folder, in the place of one that is there. What is mapped stays so."""
        remove(folder)
        self.folder.rename(folder)
        self.folder = folder


def remove(path: Path) -> None:
    """Removes a folder, or a file as older versions wrote them."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _part_number(name: str) -> int:
    return int(name.removeprefix(_VECTORS) or 0)
