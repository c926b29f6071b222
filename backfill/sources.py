"""Where images come from: files of any file system of fsspec, shards of WebDataset, columns of tables."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec
import pyarrow as pa

from backfill.rows import Row, to_table
from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.image_files import FOREIGN, SUFFIXES
from regionsearch.rpc.calls import chunked
from regionsearch.v1 import region_search_pb2

ROWS = 16  # images in one table

_SHARDS = (".tar", ".tar.gz", ".tgz")
_NAMES = ("name", "file_name", "filename", "path")
_HF = "hf:"


@dataclass(frozen=True)
class Metadata:
    """Where the metadata of images comes from: columns of a table, or fields of a shard's ``.json``.

    Attributes:
        tags: Tags of every image.
        image: Column of the images; empty for the first one that holds bytes.
        name: Column of the names; empty for the usual ones, then the path with the image.
        tags_column: Column of tags, a list or one string.
        attributes: Columns of attributes; None for all others that hold numbers, strings or booleans.
    """

    tags: tuple[str, ...] = ()
    image: str = ""
    name: str = ""
    tags_column: str = "tags"
    attributes: tuple[str, ...] | None = None

    def request(self, name: str, values: Mapping[str, Any]) -> bytes:
        """A serialized `IngestImageRequest` without its image.

        Args:
            name: The image's name.
            values: The other columns.
        """
        tags = values.get(self.tags_column) or ()
        tags = [tags] if isinstance(tags, str) else tags
        wanted = values.keys() - {self.tags_column} if self.attributes is None else self.attributes
        texts = {column: _text(values.get(column)) for column in sorted(wanted)}
        request = region_search_pb2.IngestImageRequest(
            name=name,
            tags=dict.fromkeys([*self.tags, *map(str, tags)]),
            attributes={column: text for column, text in texts.items() if text is not None},
        )
        return request.SerializeToString()


@dataclass
class Files:
    """The files of a source.

    Attributes:
        url: fsspec URL of their file system.
        images: Paths of images, with their names.
        shards: Paths of shards, with their names.
        tables: Paths of Parquet files.
        skipped: Number of other files by suffix.
    """

    url: str
    images: list[tuple[str, str]] = field(default_factory=list)
    shards: list[tuple[str, str]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def find_files(source: str) -> Files:
    """Lists a folder, bucket or zip file, or the matches of a pattern.

    Args:
        source: A path or URL of fsspec, of a folder or of one file; may hold ``*``.

    Raises:
        RegionSearchError: INVALID_ARGUMENT, when nothing is found or fsspec lacks the protocol's package.
    """
    url = f"zip://::{source}" if source.lower().endswith(".zip") else source
    try:
        fs, root = fsspec.core.url_to_fs(url)
        root = str(root).rstrip("/")
        if "*" in root:
            paths, base = sorted(map(str, fs.glob(root))), root.partition("*")[0].rpartition("/")[0]
        elif url == source and fs.isfile(root):
            paths, base = [root], root.rpartition("/")[0]
        else:
            paths, base = sorted(map(str, fs.find(root))), root
    except (ImportError, ValueError, OSError) as error:
        raise invalid("source", f"{source} cannot be opened: {error}") from error
    found = Files(url)
    for path in paths:
        name = PurePosixPath(path.removeprefix(base).lstrip("/"))
        lower = path.lower()
        if any(part.startswith(".") or part.lower() in FOREIGN for part in name.parts):
            found.skipped["hidden"] += 1
        elif _is_shard(path):
            found.shards.append((path, str(name)))
        elif name.suffix.lower() in SUFFIXES:
            found.images.append((path, str(name)))
        elif lower.endswith(".parquet"):
            found.tables.append(path)
        else:
            found.skipped[name.suffix.lower() or "without a suffix"] += 1
    if not (found.images or found.shards or found.tables):
        raise invalid("source", f"{source} holds no images, no shards (.tar) and no Parquet files")
    return found


def read_files(paths: pa.Table, url: str, metadata: Metadata) -> Iterator[pa.Table]:
    """Reads images and shards. One that cannot be read fails alone, which Ray's own readers do not offer.

    Args:
        paths: Columns ``path`` and ``name``.
        url: fsspec URL of their file system.
        metadata: Their tags and attributes.
    """
    fs, _ = fsspec.core.url_to_fs(url)

    def rows() -> Iterator[Row]:
        entries = [(entry["path"], entry["name"]) for entry in paths.to_pylist()]
        images = [entry for entry in entries if not _is_shard(entry[0])]
        for some in chunked(images, ROWS):
            # Object stores are asked for these at once.
            contents = fs.cat_ranges([path for path, _ in some], None, None, on_error="return")
            for (path, name), content in zip(some, contents, strict=True):
                if isinstance(content, Exception):
                    yield _unreadable(path, content)
                else:
                    yield Row(path, metadata.request(name, {}), content)
        for path, name in entries:
            if _is_shard(path):
                try:
                    with fs.open(path, "rb") as file:
                        yield from _read_shard(file, name, metadata)
                except Exception as error:
                    yield _unreadable(path, error)

    yield from _tables(rows())


def _is_shard(path: str) -> bool:
    return path.lower().endswith(_SHARDS)


def _read_shard(file: IO[bytes], shard: str, metadata: Metadata) -> Iterator[Row]:
    """The samples of a tar file: consecutive members of one name, an image and its metadata."""
    key, sample = "", dict[str, bytes]()
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for member in tar:
            folder, slash, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            if not member.isfile() or not stem:
                continue
            if f"{folder}{slash}{stem}" != key:
                yield from _sample(key, sample, shard, metadata)
                key, sample = f"{folder}{slash}{stem}", {}
            content = tar.extractfile(member)
            sample[suffix.lower()] = content.read() if content is not None else b""
    yield from _sample(key, sample, shard, metadata)


def _sample(key: str, sample: Mapping[str, bytes], shard: str, metadata: Metadata) -> Iterator[Row]:
    image = next((suffix for suffix in sample if f".{suffix}" in SUFFIXES), None)
    if image is None:
        return
    source = f"{shard}/{key}.{image}"
    try:
        values: dict[str, Any] = json.loads(sample.get("json", b"{}"))
        for suffix, column in (("txt", "caption"), ("cls", "class")):
            if suffix in sample:
                values.setdefault(column, sample[suffix].decode().strip())
        yield Row(source, metadata.request(f"{key}.{image}", values), sample[image])
    except (ValueError, AttributeError) as error:
        yield _unreadable(source, error)


def read_table(table: pa.Table, source: str, metadata: Metadata) -> Iterator[pa.Table]:
    """Reads images of a table's column of bytes, or of Hugging Face's pairs of bytes and path.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when the column does not exist.
    """
    column = metadata.image or _image_column(table.schema)
    if column not in table.column_names:
        raise invalid("image_column", f"{source} has no column {column!r}: it has {table.column_names}")

    def rows() -> Iterator[Row]:
        for values in table.to_pylist():
            cell = values.pop(column)
            pair = cell if isinstance(cell, dict) else {"bytes": cell}
            columns = (metadata.name, *_NAMES)
            named = next((values.pop(key) for key in columns if key in values), None)
            name = str(named or pair.get("path") or "")
            try:
                data = pair.get("bytes")
                if not isinstance(data, bytes):
                    raise TypeError(f"column {column!r} holds {type(data).__name__}, not the bytes of a file")
                yield Row(f"{source}/{name}", metadata.request(name, values), data)
            except (TypeError, ValueError) as error:
                yield _unreadable(f"{source}/{name}", error)

    yield from _tables(rows())


def load_hugging_face(source: str) -> Any:
    """A data set of the library `datasets` with encoded images: ``hf:NAME``, or ``hf:NAME@SPLIT``.

    Raises:
        RegionSearchError: FAILED_PRECONDITION when the library is missing.
    """
    name, _, split = source.removeprefix(_HF).partition("@")
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION, "hf: needs a library that is not installed: pip install datasets"
        ) from error
    loaded = datasets.load_dataset(name, split=split or "train")
    images = [column for column, kind in loaded.features.items() if isinstance(kind, datasets.Image)]
    for column in images:
        loaded = loaded.cast_column(column, datasets.Image(decode=False))
    return loaded


def is_hugging_face(source: str) -> bool:
    """Whether a source is a data set of the library `datasets`; ``hf://`` is a file system."""
    return source.startswith(_HF) and not source.startswith(f"{_HF}//")


def _image_column(schema: pa.Schema) -> str:
    """Column "image" if it holds bytes, else the first that does."""

    def has_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(n).name == "bytes" for n in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    candidates = [column.name for column in schema if has_bytes(column.type)]
    return "image" if "image" in candidates or not candidates else candidates[0]


def _unreadable(source: str, error: Exception) -> Row:
    row = Row(source)
    row.fail(RegionSearchError(Kind.DATA_LOSS, f"cannot be read: {error}"))
    return row


def _tables(rows: Iterable[Row]) -> Iterator[pa.Table]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS:
            yield to_table(group)
            group = []
    if group:
        yield to_table(group)


def _text(value: Any) -> str | None:
    """A value as an attribute; None for what is not one."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (str, int, float)) and value != "" else None


def as_table(paths: Sequence[tuple[str, str]]) -> pa.Table:
    """Paths and names as `read_files` takes them."""
    return pa.table({"path": [path for path, _ in paths], "name": [name for _, name in paths]})
