"""Errors over HTTP: RFC 9457 problem documents with the closed set of kinds as their codes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Mount, Route

from regionsearch.errors import Kind, RegionSearchError, invalid, not_found
from regionsearch.schemas.requests.values import field_error

MEDIA_TYPE = "application/problem+json"

_STATUS_AND_TITLE: dict[Kind, tuple[int, str]] = {
    Kind.INVALID_ARGUMENT: (400, "Invalid request"),
    Kind.UNSUPPORTED_IMAGE: (415, "Unsupported or corrupt image"),
    Kind.TOO_LARGE: (413, "Too large"),
    Kind.UNAUTHENTICATED: (401, "API key required"),
    Kind.PERMISSION_DENIED: (403, "The API key does not allow this"),
    Kind.NOT_FOUND: (404, "Not found"),
    Kind.ALREADY_EXISTS: (409, "Already exists"),
    Kind.MODEL_MISMATCH: (409, "Vectors of different models"),
    Kind.FAILED_PRECONDITION: (409, "Not possible in the current state"),
    Kind.ABORTED: (409, "Conflict: the resource has changed"),
    Kind.OVERLOADED: (429, "Too busy"),
    Kind.CANCELLED: (499, "The client went away"),
    Kind.INTERNAL: (500, "Unexpected error"),
    Kind.DATA_LOSS: (500, "Stored data is damaged"),
    Kind.UNIMPLEMENTED: (501, "Not supported"),
    Kind.UNAVAILABLE: (503, "Not ready"),
    Kind.DEADLINE_EXCEEDED: (504, "Took too long"),
    Kind.STORAGE_FULL: (507, "The disk is full"),
}
STATUS = {kind: status for kind, (status, _) in _STATUS_AND_TITLE.items()}

_log = structlog.get_logger(__name__)


def problem(error: RegionSearchError) -> dict[str, Any]:
    """What every error looks like inside a JSON answer, without the request's own facts."""
    found: dict[str, Any] = {"code": error.kind.value, "detail": error.message}
    if error.field is not None:
        found["errors"] = [{"pointer": pointer(error.field), "detail": error.message}]
    if error.retry_after_s is not None:
        found["retry_after_s"] = round(error.retry_after_s, 3)
    if error.metadata:
        found["metadata"] = error.metadata
    return found


def pointer(field: str) -> str:
    """A field's JSON pointer: ``query.points[2]`` is ``/query/points/2``."""
    # In the contract an image is a message with its file inside; in JSON and forms it is the file.
    return "/" + re.sub(r"\.|\[", "/", field.removesuffix(".encoded")).replace("]", "")


def respond(request: Request, error: RegionSearchError, status: int | None = None) -> JSONResponse:
    """The answer to a request that failed, with the status of its kind or one that HTTP alone knows."""
    status = status or STATUS[error.kind]
    document = {
        "type": f"urn:regionsearch:problem:{error.kind.value.lower().replace('_', '-')}",
        "title": _STATUS_AND_TITLE[error.kind][1],
        "status": status,
        **problem(error),
        "instance": request.url.path,
        "request_id": getattr(request.state, "request_id", ""),
    }
    headers = {"Cache-Control": "no-store"}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.kind is Kind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(document, status, headers, media_type=MEDIA_TYPE)


def respond_unexpected(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that met a bug: the traceback goes to the log, nothing of it to the client."""
    _log.exception("request failed unexpectedly", exc_info=error)
    message = f"an unexpected error; the log tells more under request_id {request.state.request_id}"
    return respond(request, RegionSearchError(Kind.INTERNAL, message))


def install(app: FastAPI, methods_at: Callable[[str], list[str]]) -> None:
    """Answers the exceptions that routes raise with problem documents.

    Args:
        app: The application.
        methods_at: The methods that a path has, for those that it has not.
    """

    async def typed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RegionSearchError)
        if error.kind is Kind.INTERNAL:
            _log.error("request failed", error=error.message)
        return respond(request, error)

    async def unfit(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where, *path = first["loc"]
        return respond(
            request, field_error(path if path and where != "header" else first["loc"], first["msg"])
        )

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return respond(request, not_found("path", f"there is nothing at {request.url.path}; see /docs"))
        if error.status_code == 412:
            return respond(request, RegionSearchError(Kind.ABORTED, error.detail, field="if-match"), 412)
        if error.status_code == 405:
            allowed = ", ".join(methods_at(request.url.path))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"Allow": allowed})
            message = f"{request.method} is not possible here, only {allowed}"
            answer = respond(request, invalid("method", message), 405)
            answer.headers["Allow"] = allowed
            return answer
        return respond(request, invalid("request", str(error.detail)))

    app.add_exception_handler(RegionSearchError, typed)
    app.add_exception_handler(RequestValidationError, unfit)
    app.add_exception_handler(HTTPException, framework)


def methods_by_path(routes: Iterable[BaseRoute]) -> Callable[[str], list[str]]:
    """A function that tells the methods of a path: of all routes that serve it, not only of the first.

    HEAD is wherever GET is (see `gateway.http.middleware.RequestContext`), OPTIONS everywhere.

    Args:
        routes: All routes, those of routers one by one.
    """
    known = list(routes)

    def methods_at(path: str) -> list[str]:
        methods = {"OPTIONS"}
        for route in known:
            match, _ = route.matches({"type": "http", "method": "OPTIONS", "path": path})
            if match is Match.NONE:
                continue
            if isinstance(route, Route):
                methods |= route.methods or set()
            elif isinstance(route, Mount):  # of files
                methods.add("GET")
        return sorted(methods | ({"HEAD"} if "GET" in methods else set()))

    return methods_at
