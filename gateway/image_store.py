"""Where images are kept: content addressed, in a local folder or any object store that fsspec knows."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import structlog
from fsspec.implementations.local import LocalFileSystem

from regionsearch.errors import Kind, RegionSearchError, invalid, not_found
from regionsearch.images import image_id as content_id
from regionsearch.lru import LruCache

_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_COLLECTION = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

_ASIDE = re.compile(r"\.([0-9a-f]{64})\.orphan")
_PART = ".part"
_TRIES = 10
_PIECE = 1 << 20
_REMEMBERED = 4096  # damaged files, until they are stored again

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class StorePartition:
    """A part of a collection's images, as the store has them.

    Attributes:
        images: Ids of images that are there.
        aside: Ids of images that were set aside.
        parts: Paths of images that are being written, or whose writer has died.
    """

    images: list[str]
    aside: list[str]
    parts: list[str]


class ImageStore:
    """Encoded images by collection and image id. A put that has returned survives the death of the machine.

    Keys are made from a checked collection name and the SHA-256 of the bytes, never from what a user calls a
    file. Files appear under their key complete or not at all. All methods work in threads.
    """

    def __init__(self, url: str) -> None:
        """Args:
        url: Folder, or a URL of fsspec.
        """
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)
        self._damaged: LruCache[str, bool] = LruCache(_REMEMBERED)  # by path

    async def put(self, collection: str, image_id: str, data: bytes) -> None:
        """Stores an image. One that is there already is as good as new afterwards: `older` counts from now.

        A file under its key that is damaged is replaced.

        Raises:
            RegionSearchError: STORAGE_FULL, or UNAVAILABLE when the store does not answer.
        """
        await asyncio.to_thread(self._put, self._path(collection, image_id), data)

    async def heal(self, collection: str, image_id: str, data: bytes) -> None:
        """Stores an image again where its file is missing or damaged.

        Raises:
            RegionSearchError: STORAGE_FULL, or UNAVAILABLE when the store does not answer.
        """
        await asyncio.to_thread(self._heal, self._path(collection, image_id), data)

    async def get(self, collection: str, image_id: str) -> bytes:
        """The bytes of an image.

        Raises:
            RegionSearchError: NOT_FOUND; DATA_LOSS when they are not those that were stored.
        """
        path = self._path(collection, image_id)
        data = await asyncio.to_thread(self._get, path)
        if data is None:
            raise not_found("image_id", f"there is no image {image_id!r} in collection {collection!r}")
        if await asyncio.to_thread(content_id, data) != image_id:
            self._damaged.put(path, True)
            raise RegionSearchError(
                Kind.DATA_LOSS,
                f"the stored file of image {image_id} is damaged: send the image again, which replaces it",
            )
        return data

    async def check_writable(self, collection: str, image_id: str | None = None) -> None:
        """Refuses a deletion that would leave files behind, before anything else is deleted.

        Only folders are looked at; what an object store allows shows when it is asked.

        Raises:
            RegionSearchError: UNAVAILABLE.
        """
        folder = self._folder(collection)
        if image_id is not None and _IMAGE_ID.fullmatch(image_id):
            folder = f"{folder}/{image_id[:2]}"
        if self._local and not await asyncio.to_thread(_may_change, folder):
            raise _unusable("the folder is read-only")

    async def exists(self, collection: str, image_id: str) -> bool:
        """Whether an image is there; not one whose file is empty, or was found damaged when it was read."""
        return await asyncio.to_thread(self._exists, self._path(collection, image_id))

    async def collections(self) -> list[str]:
        """Collections that have images, or had some."""
        names = await asyncio.to_thread(self._list, self._root)
        return [name for name in names if _COLLECTION.fullmatch(name)]

    async def partitions(self, collection: str) -> AsyncIterator[StorePartition]:
        """What is there of a collection, a part of it at a time."""
        folder = self._folder(collection)
        for name in await asyncio.to_thread(self._list, folder):
            names = await asyncio.to_thread(self._list, f"{folder}/{name}")
            aside = [_ASIDE.fullmatch(other) for other in names]
            yield StorePartition(
                [other for other in names if _IMAGE_ID.fullmatch(other)],
                [match.group(1) for match in aside if match],
                [f"{folder}/{name}/{other}" for other in names if other.endswith(_PART)],
            )

    async def older(self, collection: str, image_id: str, seconds: float) -> bool:
        """Whether an image is there and was put longer ago than that."""
        return await asyncio.to_thread(self._older, self._path(collection, image_id), seconds)

    async def quarantine(self, collection: str, image_id: str, seconds: float) -> bool:
        """Moves an image to where only `restore` and `purge` find it, unless it was put within `seconds`.

        Returns:
            Whether it was moved.
        """
        return await asyncio.to_thread(self._set_aside, self._path(collection, image_id), seconds)

    async def restore(self, collection: str, image_id: str) -> None:
        """Undoes `quarantine`; an image that was put since then stays."""
        await asyncio.to_thread(self._take_back, self._path(collection, image_id))

    async def purge(self, collection: str, image_id: str) -> None:
        """Makes `quarantine` final."""
        await asyncio.to_thread(self._delete, _aside(self._path(collection, image_id)))

    async def tidy(self, collection: str) -> None:
        """Removes the folders of a collection that are empty."""
        await asyncio.to_thread(self._tidy, self._folder(collection))

    async def delete_part(self, path: str, seconds: float) -> None:
        """Deletes what a writer left that died longer ago than that."""
        if await asyncio.to_thread(self._older, path, seconds):
            await asyncio.to_thread(self._delete, path)

    def _folder(self, collection: str) -> str:
        if not _COLLECTION.fullmatch(collection):
            raise invalid("collection", f"{collection!r} is not a collection name")
        return f"{self._root}/{collection}"

    def _path(self, collection: str, image_id: str) -> str:
        if not _IMAGE_ID.fullmatch(image_id):
            raise not_found("image_id", f"{image_id!r} is not an image id: those are 64 hexadecimal digits")
        return f"{self._folder(collection)}/{image_id[:2]}/{image_id}"

    def _put(self, path: str, data: bytes) -> None:
        with _typed_errors():
            if not self._local:  # an object appears when its upload is complete
                self._fs.pipe_file(path, data)
            elif not (self._holds(path, data) and _touched(path)):
                _write_durably(Path(path), data)
        self._damaged.remove(path)

    def _heal(self, path: str, data: bytes) -> None:
        if self._holds(path, data):
            self._damaged.remove(path)
        else:
            self._put(path, data)

    def _holds(self, path: str, data: bytes) -> bool:
        """Whether a file has exactly these bytes; read in pieces, so that nothing is in memory twice."""
        try:
            if self._fs.size(path) != len(data):
                return False
            with self._fs.open(path, "rb") as file:
                return all(
                    file.read(_PIECE) == data[start : start + _PIECE] for start in range(0, len(data), _PIECE)
                )
        except OSError:  # it is not there, or the disk does not give it back
            return False

    def _list(self, folder: str) -> list[str]:
        with _typed_errors():
            self._fs.invalidate_cache(folder)
            try:
                found = self._fs.ls(folder, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def _older(self, path: str, seconds: float) -> bool:
        with _typed_errors():
            try:
                put: datetime = self._fs.modified(path)
            except FileNotFoundError:
                return False
            return (datetime.now(UTC) - put.astimezone(UTC)).total_seconds() >= seconds

    def _set_aside(self, path: str, seconds: float) -> bool:
        with _typed_errors():
            aside = _aside(path)
            try:
                if not self._local:
                    self._fs.mv(path, aside)
                    return True
                Path(path).rename(aside)
            except FileNotFoundError:
                return False
            if self._older(aside, seconds):
                return True
            Path(aside).rename(path)  # put again while we looked
            return False

    def _take_back(self, path: str) -> None:
        with _typed_errors(), contextlib.suppress(FileNotFoundError):
            if self._exists(path):  # what is aside may be damaged, and be the reason for it
                self._fs.rm(_aside(path))
            elif self._local:
                Path(_aside(path)).replace(path)
            else:
                self._fs.mv(_aside(path), path)

    def _get(self, path: str) -> bytes | None:
        with _typed_errors():
            try:
                data: bytes = self._fs.cat_file(path)
            except FileNotFoundError:
                return None
            return data

    def _exists(self, path: str) -> bool:
        with _typed_errors(), contextlib.suppress(FileNotFoundError):
            return bool(self._fs.size(path)) and not self._damaged.get(path)
        return False

    def _delete(self, path: str) -> None:
        with _typed_errors(), contextlib.suppress(FileNotFoundError):
            self._fs.rm(path)

    def _tidy(self, folder: str) -> None:
        if not self._local:
            return
        for empty in [*(f"{folder}/{name}" for name in self._list(folder)), folder]:
            with contextlib.suppress(OSError):  # it is not empty
                Path(empty).rmdir()


def _touched(path: str) -> bool:
    """Makes a file as old as a new one; whether it is there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _may_change(folder: str) -> bool:
    """Whether files of a folder may be moved and deleted; one that is not there has none."""
    return os.access(folder, os.W_OK | os.X_OK) or not os.path.lexists(folder)


def _aside(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.orphan"


def _write_durably(path: Path, data: bytes) -> None:
    """Writes a temporary file next to the target, syncs it, renames it, and syncs the folder."""
    handle, fresh = _fresh_file(path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    for folder in path.parents[:3]:  # its shelf and its collection may be new, in the folder above
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _fresh_file(folder: Path) -> tuple[int, Path]:
    """A new file in a folder, which is made if need be; others may be tidying up."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=_PART)
            return handle, Path(name)
    raise FileNotFoundError(errno.ENOENT, "the folder goes away again and again", str(folder))


@contextlib.contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RegionSearchError(
                Kind.STORAGE_FULL,
                "the image store is full: delete images, which works meanwhile, or enlarge it",
            ) from error
        _log.error(
            "the image store does not work", error=str(error)
        )  # names a file, which callers need not know
        raise _unusable(error.strerror or type(error).__name__) from error


def _unusable(why: str) -> RegionSearchError:
    return RegionSearchError(
        Kind.UNAVAILABLE,
        f"the image store cannot be used: {why}; the gateway's log tells more",
        retry_after_s=1.0,
    )
