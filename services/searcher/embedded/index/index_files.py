"""Index files next to the record store: what was expensive to compute about a segment, and nothing else.

A file holds no vectors. It names the rows that it is about by key and by a checksum of their stored vectors,
so the store stays the source of truth: rows that have gone since then are left out, and a file that is
damaged, of another store or older than a restored snapshot is ignored, deleted and rebuilt.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from services.searcher.embedded.index.columns import Contents, Positions
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.segments import IndexSegment
from services.searcher.embedded.index.vector_index import State
from services.searcher.embedded.rows import RowIds

FOLDER = "indexes"

_MAGIC = b"RSINDEX2"
_RENAMED = {"homes": "list_ids", "probes": "nprobe"}  # arrays of files of older versions
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)\.([a-z]+)")
_log = structlog.get_logger(__name__)

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class SavedIndex:
    """The content of one index file.

    Attributes:
        kind: The segment's kind.
        keys: Of its rows, ascending.
        checksums: Of its vectors, one a row.
        arrays: What the kind of segment needs to come back.
    """

    kind: str
    keys: RowIds
    checksums: Contents
    arrays: Arrays

    def rows_of(self, compaction: CompactionInput) -> Positions | None:
        """The compaction's rows as rows of this file; None unless it knows them all, with these vectors."""
        keys = compaction.columns().record_rowid
        places = np.searchsorted(self.keys, keys)
        if not len(keys) or places[-1] >= len(self.keys) or not np.array_equal(self.keys[places], keys):
            return None
        sums = compaction.columns().content
        return places if np.array_equal(self.checksums[places], sums) else None


class IndexCache:
    """The index files of one store.

    Args:
        folder: Where they lie; made when the first one is written.
        read_only: Files are used, but neither written nor deleted.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self._folder = folder
        self._read_only = read_only
        self._names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def find(self, collection: int) -> list[SavedIndex]:
        """The readable files about a collection, in order of their keys, none overlapping the one before."""
        found: list[SavedIndex] = []
        for number, first, last, kind, name in sorted(self._parsed()):
            if number != collection or (found and first <= found[-1].keys[-1]):
                continue
            try:
                saved = _decoded(kind, (self._folder / name).read_bytes())
                if (saved.keys[0], saved.keys[-1]) != (first, last):
                    raise ValueError("it belongs to other rows")
            except (OSError, ValueError) as error:
                _log.warning("index file ignored, it will be rebuilt", file=name, reason=str(error))
            else:
                found.append(saved)
        return found

    def save(self, collection: int, segment: IndexSegment, arrays: Arrays) -> None:
        """Writes a segment's file, whole or not at all, in the place of those about the same rows.

        A disk that refuses it costs a rebuild at start.
        """
        columns = segment.columns
        keys = columns.record_rowid[: columns.used]
        sums = columns.content[: columns.used]
        name = f"{collection}-{keys[0]}-{keys[-1]}.{segment.kind}"
        temporary = self._folder / f"{name}.part"
        try:
            self._folder.mkdir(exist_ok=True)
            temporary.write_bytes(_encoded({**arrays, "keys": keys, "checksums": sums}))
            os.replace(temporary, self._folder / name)  # not synchronised: a torn file fails its digest
        except OSError as error:
            _log.warning("index file not written", file=name, reason=error.strerror)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        else:
            older = {
                other
                for number, first, last, _, other in self._parsed()
                if number == collection and first <= keys[-1] and keys[0] <= last
            }
            self._delete(older - {name})
            self._names.add(name)

    def prune(self, states: Mapping[int, State]) -> None:
        """Deletes the files of segments that no longer exist, given all collections' states by rowid."""
        if self._read_only:
            return
        kept = {
            name
            for number, first, last, kind, name in self._parsed()
            if number in states and _has(states[number], first, last, kind)
        }
        self._delete(self._names - kept)

    def _delete(self, names: set[str]) -> None:
        for name in names:
            with contextlib.suppress(OSError):
                (self._folder / name).unlink(missing_ok=True)
        self._names -= names

    def _parsed(self) -> list[tuple[int, int, int, str, str]]:
        matches = [match for match in map(_NAME.fullmatch, self._names) if match]
        return [(int(m[1]), int(m[2]), int(m[3]), m[4], m[0]) for m in matches]


def _has(state: State, first: int, last: int, kind: str) -> bool:
    return any(
        view.segment.kind == kind
        and view.rows > 0
        and first <= view.segment.columns.record_rowid[0]
        and view.segment.columns.record_rowid[view.rows - 1] <= last
        for view in state.views
    )


def _encoded(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its keyword-only option is not an array
    payload = buffer.getvalue()
    return _MAGIC + hashlib.sha256(payload).digest() + payload


def _decoded(kind: str, data: bytes) -> SavedIndex:
    """Raises ValueError for anything that `_encoded` has not made."""
    start = len(_MAGIC) + hashlib.sha256().digest_size
    payload = data[start:]
    if data[:start] != _MAGIC + hashlib.sha256(payload).digest():
        raise ValueError("it is damaged or not an index file")
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as stored:
            arrays = {_RENAMED.get(name, name): array for name, array in stored.items()}
        keys, sums = arrays.pop("keys"), arrays.pop("checksums")
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"it lacks something ({error})") from error
    if not len(keys) or len(keys) != len(sums):
        raise ValueError("it holds no rows")
    return SavedIndex(kind, keys, sums, arrays)
