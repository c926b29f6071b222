"""Multipart forms: their files wait on disk, everything else is small, all together."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Iterator

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from gateway.http.json_bodies import MAX_SMALL
from gateway.settings import LimitSettings
from regionsearch.errors import Kind, RegionSearchError, invalid, too_large

MEDIA_TYPE = "multipart/form-data"

_MAX_FIELDS = 1000
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_HANDLES = (errno.EMFILE, errno.ENFILE)


@contextlib.asynccontextmanager
async def read_form(request: Request, limits: LimitSettings) -> AsyncIterator[FormData]:
    """The form of a request; its files are deleted afterwards.

    Raises:
        RegionSearchError: TOO_LARGE for too many files, fields, or other bytes; STORAGE_FULL when
            there is no room for the files; INVALID_ARGUMENT for what is not a form in UTF-8.
    """
    media_type, options = parse_options_header(request.headers.get("content-type"))
    if media_type != MEDIA_TYPE.encode():
        raise invalid("content-type", f"this takes a form; send it as {MEDIA_TYPE}")
    if options.get(b"charset", b"utf-8").lower() != b"utf-8":  # some take quadratic time, or make no text
        raise invalid("content-type", "a form is read as UTF-8; leave charset out")
    parser = _FormParser(
        request.headers,
        request.stream(),
        max_files=limits.max_files,
        max_fields=_MAX_FIELDS,
        max_part_size=MAX_SMALL,
    )
    try:
        with _room_on_disk():
            form = await parser.parse()
    except MultiPartException as error:
        raise _refusal(error.message) from None
    try:
        yield form
    finally:
        with contextlib.suppress(OSError):  # buffers that find no room when they are flushed
            await form.close()


class _FormParser(MultiPartParser):
    """Bounds all fields together: Starlette bounds each, and their number."""

    _small = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._small += end - start
            if self._small > MAX_SMALL:
                raise too_large(
                    "body", f"the form has more than {MAX_SMALL} bytes excluding its files; send less"
                )
        super().on_part_data(data, start, end)


def _refusal(detail: str) -> RegionSearchError:
    if detail.startswith("Too many files"):
        return too_large("files", f"{detail} (max_files); send the rest in another request")
    if detail.startswith("Too many fields"):
        return too_large("body", f"the form has more than {_MAX_FIELDS} fields; send fewer")
    return invalid("body", f"the body is not a valid form: {detail}")


@contextlib.contextmanager
def _room_on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise RegionSearchError(
                Kind.STORAGE_FULL,
                "there is no room for uploads on the gateway's disk for temporary files (TMPDIR); "
                "send less at once, or try again later",
                retry_after_s=5.0,
            ) from error
        if error.errno in _NO_HANDLES:
            raise RegionSearchError(
                Kind.UNAVAILABLE,
                "the gateway has no file descriptors left; try again later",
                retry_after_s=1.0,
            ) from error
        raise
