"""Index files next to the record store: the vectors of a sealed segment, mapped, and how they are searched.

Each segment has a folder with its stored vectors, its inverted lists if it has any, and a description that
names its rows and their checksums. A segment that is merged hands on its files of vectors as links: they are
neither copied nor stored twice. The record store stays the source of truth: a folder that is damaged, of
another store or older than a restored snapshot is ignored, deleted and rebuilt. Vectors and lists are mapped,
so they may be larger than memory; the system keeps in memory what is used.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.searcher.embedded.index.columns import Contents
from services.searcher.embedded.index.segment_files import PART, Arrays, SegmentFiles, remove
from services.searcher.embedded.index.segments import IndexSegment
from services.searcher.embedded.index.vector_index import State
from services.searcher.embedded.rows import RowIds

FOLDER = "indexes"

_NAME = re.compile(r"(\d+)-(\d+)-(\d+)\.([a-z]+)")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SavedIndex:
    """A stored segment.

    Attributes:
        kind: The segment's kind.
        keys: Keys of its rows, ascending.
        checksums: Checksums of its vectors, one per row.
        arrays: What the kind of segment needs to come back.
        files: Where its vectors and lists are.
    """

    kind: str
    keys: RowIds
    checksums: Contents
    arrays: Arrays
    files: SegmentFiles


class IndexCache:
    """The index files of one store.

    Args:
        folder: Where they lie; made when the first one is written.
        read_only: Files are used, but neither written nor deleted.
        verify: Read all of a file before it is used.
    """

    def __init__(self, folder: Path, *, read_only: bool = False, verify: bool = True) -> None:
        self._folder = folder
        self._read_only = read_only
        self._verify = verify
        self._names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def find(self, collection: int) -> list[SavedIndex]:
        """The readable files about a collection, in order of their keys, none overlapping the one before."""
        found: list[SavedIndex] = []
        for number, first, last, kind, name in sorted(self._parsed()):
            if number != collection or (found and first <= found[-1].keys[-1]):
                continue
            files = SegmentFiles(self._folder / name)
            try:
                arrays = files.read_rows(verify=self._verify)
                keys, checksums = arrays.pop("keys"), arrays.pop("checksums")
                if len(keys) != len(checksums) or [*keys[[0, -1]]] != [first, last]:
                    raise ValueError("it belongs to other rows")
            except (OSError, ValueError, KeyError, IndexError) as error:
                _log.warning("index file ignored, it will be rebuilt", file=name, reason=str(error))
            else:
                found.append(SavedIndex(kind, keys, checksums, arrays, files))
        return found

    def begin(self) -> SegmentFiles:
        """A folder for a segment that is about to be built.

        Raises:
            OSError: The disk refuses it.
        """
        self._folder.mkdir(exist_ok=True)
        return SegmentFiles(Path(tempfile.mkdtemp(PART, dir=self._folder)))

    def save(self, collection: int, segment: IndexSegment, files: SegmentFiles, arrays: Arrays) -> None:
        """Writes what is known of a segment, in the place of what there is about the same rows.

        A disk that refuses it costs a rebuild at start.
        """
        columns = segment.columns
        keys = columns.record_rowid[: columns.used]
        sums = columns.content[: columns.used]
        name = f"{collection}-{keys[0]}-{keys[-1]}.{segment.kind}"
        try:
            files.write_rows({**arrays, "keys": keys, "checksums": sums})
            if files.folder.name != name:
                files.move(self._folder / name)
        except OSError as error:
            _log.warning("index file not written", file=name, reason=error.strerror)
            return
        older = {
            other
            for number, first, last, _, other in self._parsed()
            if number == collection and first <= keys[-1] and keys[0] <= last
        }
        self._delete(older - {name})
        self._names.add(name)

    def prune(self, states: Mapping[int, State]) -> None:
        """Deletes the files of segments that no longer exist, given all collections' states by rowid.

        Not while a segment is built.
        """
        if self._read_only:
            return
        with contextlib.suppress(OSError):
            self._names = {path.name for path in self._folder.iterdir()}
        kept = {
            name
            for number, first, last, kind, name in self._parsed()
            if number in states and _has(states[number], first, last, kind)
        }
        self._delete(self._names - kept)

    def _delete(self, names: set[str]) -> None:
        for name in names:
            remove(self._folder / name)
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
