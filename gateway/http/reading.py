"""Reading bodies: JSON, or a multipart form with the same names."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from gateway.http.middleware import limited
from gateway.http.problems import from_validation
from gateway.http.values import Body
from gateway.settings import LimitSettings
from regionsearch.errors import invalid, too_large

_SMALL_BODY = 1 << 20  # everything in a body besides its pictures

BodyT = TypeVar("BodyT", bound=Body)

LISTS = ("texts", "negatives", "include")
"""Fields of a form that may be repeated."""
_NESTED = ("points", "box", "prompts", "everything")


async def read_body(request: Request, model: type[BodyT], limits: LimitSettings) -> BodyT:
    """Reads a JSON body or a multipart form; names in the URL's query go before those in the body.

    In a form, files are pictures, lists are repeated fields, and points, box and the like are JSON.

    Raises:
        RegionSearchError: INVALID_ARGUMENT that names the field, TOO_LARGE.
    """
    # All of it will be in memory at once, whichever way it is written.
    limit = limits.max_image_bytes * 4 // 3 + _SMALL_BODY
    advice = f"the body is over {limit} bytes: a picture of max_image_bytes in base64, and a little more"
    request = Request(request.scope, limited(request.scope, request.receive, limit, f"{advice}; send less"))
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        values = await _read_form(request, model, limits)
    elif media_type == "application/json" or media_type.endswith("+json"):
        values = await _read_json(request)
    else:
        raise invalid("content-type", f"{media_type} is not read here; send application/json or a form")
    known = model.model_fields.keys() & request.query_params.keys()
    values |= {name: request.query_params[name] for name in known}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise from_validation([{**e, "loc": ("body", *e["loc"])} for e in error.errors()]) from None


async def _read_json(request: Request) -> dict[str, Any]:
    try:
        values = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError) as error:
        raise invalid("body", f"the body is no JSON ({error})") from None
    if not isinstance(values, dict):
        raise invalid("body", "the body must be a JSON object")
    return values


async def _read_form(request: Request, model: type[Body], limits: LimitSettings) -> dict[str, Any]:
    values: dict[str, Any] = {}
    async with read_form(request, limits) as form:
        for name, value in form.multi_items():
            content: Any = await value.read() if isinstance(value, UploadFile) else value
            if name == "images" or name in LISTS:
                values.setdefault(name, []).append(content)
                continue
            if name in _NESTED and isinstance(content, str):
                try:
                    content = json.loads(content)
                except (ValueError, RecursionError) as error:
                    raise invalid(name, f"{name} is no JSON ({error})") from None
            if name in values:
                advice = f"send {name}s for several" if f"{name}s" in model.model_fields else "send it once"
                raise invalid(name, f"{name} comes more than once; {advice}")
            values[name] = content
    return values


@contextlib.asynccontextmanager
async def read_form(request: Request, limits: LimitSettings) -> AsyncIterator[FormData]:
    """The form of a request; its files are deleted afterwards.

    Raises:
        RegionSearchError: TOO_LARGE for too many files, INVALID_ARGUMENT for what is no form.
    """
    try:
        form = await request.form(max_files=limits.max_files, max_fields=1000, max_part_size=_SMALL_BODY)
    except HTTPException as error:
        detail = str(error.detail)
        if detail.startswith("Too many"):
            raise too_large("files", f"{detail} (max_files); send the rest in another request") from None
        raise invalid("body", f"the body is no form that can be read: {detail}") from None
    try:
        yield form
    finally:
        await form.close()
