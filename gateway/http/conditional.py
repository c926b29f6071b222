"""Conditional requests (RFC 9110, section 13): what a client has already is not sent, or made, again."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from gateway.http.problems import MEDIA_TYPE

_IMMUTABLE = "private, max-age=31536000, immutable"
_REVALIDATE = "private, no-cache"
_INERT = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}

CHANGED: dict[int | str, dict[str, Any]] = {
    412: {
        "description": "ABORTED: it has changed since it was read",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}
"""For the documentation of routes that call `check_if_match`."""


def json_with_etag(request: Request, content: Any, media_type: str = "application/json") -> Response:
    """JSON that a client which has it already does not get again."""
    response = JSONResponse(content, media_type=media_type)
    etag = _etag(response)
    headers = {"ETag": etag, "Cache-Control": _REVALIDATE}
    if _names(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


def check_if_match(request: Request, content: Any) -> None:
    """Lets a change through unless its ``If-Match`` names another state than the present one.

    Args:
        request: The change.
        content: What `json_with_etag` would answer now about what is changed.

    Raises:
        HTTPException: 412.
    """
    given = request.headers.get("if-match")
    if given is not None and not _names(given, etag_of(content)):
        raise changed()


def etag_of(content: Any) -> str:
    """The ``ETag`` that `json_with_etag` gives this content."""
    return _etag(JSONResponse(content))


def changed() -> HTTPException:
    """The error of a change whose ``If-Match`` names another state than the present one."""
    return HTTPException(412, "this has changed since it was read (If-Match); read it again")


async def image_response(
    request: Request,
    etag: str,
    media_type: str,
    make: Callable[[], Awaitable[bytes]],
    *,
    immutable: bool,
    name: str | None = None,
) -> Response:
    """Answers with an image, which is made only if the client does not have it.

    Args:
        request: The request.
        etag: Entity tag of the content.
        media_type: Media type of the file.
        make: Makes the file.
        immutable: Whether the content of this address never changes, so that it need not be revalidated.
        name: What a browser calls the file when it is saved.
    """
    caching = _IMMUTABLE if immutable else _REVALIDATE
    headers = {"ETag": f'"{etag}"', "Cache-Control": caching, **_INERT}
    if _names(request.headers.get("if-none-match"), f'"{etag}"'):
        return Response(status_code=304, headers=headers)
    if name is not None:
        headers["Content-Disposition"] = f'inline; filename="{name}"'
    return Response(await make(), media_type=media_type, headers=headers)


def _etag(response: JSONResponse) -> str:
    return f'W/"{hashlib.sha256(response.body).hexdigest()[:32]}"'


def _names(header: str | None, etag: str) -> bool:
    """Whether a list of tags holds one, or is ``*``.

    Weak and strong tags agree, in If-Match too: here a tag stands for what is stored and not for its bytes
    on the way, which proxies compress, weakening the tag.
    """
    given = {tag.strip().removeprefix("W/") for tag in (header or "").split(",")}
    return etag.removeprefix("W/") in given or "*" in given
