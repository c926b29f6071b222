"""Reading bodies: JSON, or a multipart form with the same names, whose files wait on disk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from gateway.http.json_bodies import MAX_SMALL, parse_json
from gateway.http.middleware import limited
from gateway.settings import LimitSettings
from regionsearch.errors import Kind, RegionSearchError, invalid, too_large
from regionsearch.schemas.requests.values import Body

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


BodyT = TypeVar("BodyT", bound=Body)

LISTS = ("texts", "negatives", "include", "image_ids", "region_ids")
"""Fields of a form that may be repeated."""
NESTED = ("points", "box", "prompts", "everything", "attributes", "filter")
"""Fields of a form that are JSON."""
_AT_ONCE = 16 << 10  # bytes of a body that are parsed in less time than another thread takes to wake up


async def read_body(request: Request, model: type[BodyT], limits: LimitSettings) -> BodyT:
    """Reads a JSON body or a multipart form; names in the URL's query go before those in the body.

    In a form, files are images, lists are repeated fields, points, box and the like are JSON, and the fields
    of a query stand next to the others. What is not an image is bounded before it is parsed, and parsed in
    another thread unless there is little of it.

    Raises:
        RegionSearchError: INVALID_ARGUMENT that names the field, TOO_LARGE.
    """
    # All of it will be in memory at once, whichever way it is written.
    limit = limits.max_image_bytes * 4 // 3 + MAX_SMALL
    advice = f"the body is over {limit} bytes: an image of max_image_bytes in base64, and a little more"
    request = Request(request.scope, limited(request.scope, request.receive, limit, f"{advice}; send less"))
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not media_type and not _has_body(request):
        media_type = "application/json"
    query = {name: request.query_params[name] for name in model.model_fields.keys() & request.query_params}
    if media_type == MEDIA_TYPE:
        values = await _read_form(request, model, limits)
        return await asyncio.to_thread(model.read, values | query)
    if media_type != "application/json" and not media_type.endswith("+json"):
        what = f"a body of type {media_type}" if media_type else "a body without a content-type"
        raise invalid("content-type", f"{what} is not read here; send application/json or a form")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
    if len(body) <= _AT_ONCE:
        return _from_json(model, body, query)
    return await asyncio.to_thread(_from_json, model, body, query)


def _has_body(request: Request) -> bool:
    headers = request.headers
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _from_json(model: type[BodyT], body: bytearray, query: dict[str, Any]) -> BodyT:
    values = parse_json(body or b"{}")
    if not isinstance(values, dict):
        raise invalid("body", "the body must be a JSON object")
    return model.read(values | query)


async def _read_form(request: Request, model: type[Body], limits: LimitSettings) -> dict[str, Any]:
    values: dict[str, Any] = {}
    names: dict[str, Any] = {}
    async with read_form(request, limits) as form:
        for name, value in form.multi_items():
            content: Any = await value.read() if isinstance(value, UploadFile) else value
            if name == "images" or name in LISTS:
                values.setdefault(name, []).append(content)
                continue
            if name in NESTED and isinstance(content, str):
                content = await asyncio.to_thread(parse_json, content.encode(), name)
            if name in values:
                advice = f"send {name}s for several" if f"{name}s" in model.model_fields else "send it once"
                raise invalid(name, f"{name} comes more than once; {advice}")
            values[name] = content
            if isinstance(value, UploadFile) and value.filename and f"{name}_name" in model.model_fields:
                names[f"{name}_name"] = value.filename
    if inner := query_of(model):
        query = {name: values.pop(name) for name in inner.model_fields.keys() & values.keys()}
        values["query"] = query
    return names | values


def query_of(model: type[BaseModel]) -> type[BaseModel] | None:
    """The model of a body's `query`, whose fields a form has without nesting; None for other bodies."""
    field = model.model_fields.get("query")
    inner: object = None if field is None else field.annotation
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
