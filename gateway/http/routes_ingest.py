"""Pictures in: many files a request, with progress as server-sent events for those who ask for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile

from gateway.access import Scope
from gateway.core import Gateway
from gateway.http.access import needs
from gateway.http.answers import IngestResult, IngestResults
from gateway.http.bodies import read_form
from gateway.http.problems import problem
from gateway.ingest import checked_key, clean_name
from regionsearch.errors import Kind, RegionSearchError, invalid, too_large
from regionsearch.v1 import region_search_pb2, types_pb2

_KEEP_ALIVE_S = 15.0
_RETRY_LATER = (Kind.OVERLOADED, Kind.UNAVAILABLE, Kind.DEADLINE_EXCEEDED)
_OUTCOMES: dict[int, Literal["created", "duplicate"]] = {
    region_search_pb2.INGEST_OUTCOME_CREATED: "created",
    region_search_pb2.INGEST_OUTCOME_DUPLICATE: "duplicate",
}

_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "properties": {
                    "files": {
                        "type": "array",
                        "items": {"type": "string", "contentMediaType": "application/octet-stream"},
                        "description": "JPEG, PNG, WebP, GIF, BMP or TIFF.",
                    },
                    "tags": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "Put on every image of the request.",
                    },
                    "attributes": {
                        "type": "string",
                        "description": "A JSON object of strings, for every image.",
                    },
                },
            }
        }
    },
}

_log = structlog.get_logger(__name__)


def router(gateway: Gateway) -> APIRouter:
    """The route that takes pictures in."""
    routes = APIRouter(tags=["images"])
    limits = gateway.settings.limits

    @routes.post(
        "/v1/collections/{collection}/images",
        summary="Add pictures",
        response_model=IngestResults,
        dependencies=[needs(gateway, Scope.WRITE, timed=False)],
        openapi_extra={"requestBody": _FORM},
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def add_images(collection: str, request: Request) -> Response:
        """Segments, embeds and stores pictures; answers once all of them are on disk, one outcome a file.

        Images are known by their content: the same bytes again change nothing and are `duplicate`. With an
        `Idempotency-Key` header a repetition of the request is answered `created`, like the first time. With
        `Accept: text/event-stream` there is an event `progress` for every file and stage, `result` for every
        file that is done, and `done` at the end. Only when no file could be taken because the services are
        busy or away is the answer 429, 503 or 504.
        """
        key = checked_key(request.headers.get("idempotency-key"))
        async with read_form(request, limits) as form:
            files = [value for value in form.getlist("files") if isinstance(value, UploadFile)]
            if not files:
                raise invalid(
                    "files", "the request has no pictures; send them as multipart files named files"
                )
            if len(files) > limits.max_files:
                raise too_large("files", f"{len(files)} files are over the limit of {limits.max_files}")
            tags, attributes = [str(tag) for tag in form.getlist("tags")], _attributes(form.get("attributes"))
            gateway.ingester.check_room(len(files))
            pictures = [
                region_search_pb2.IngestImageRequest(
                    collection=collection,
                    image=types_pb2.Image(encoded=await file.read()),
                    name=clean_name(file.filename or ""),
                    tags=tags,
                    attributes=attributes,
                )
                for file in files
            ]
        run = _Run(gateway, pictures, key)
        if "text/event-stream" in request.headers.get("accept", ""):
            return StreamingResponse(
                run.events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        results = await run.results()
        waiting = [e for e in run.errors if isinstance(e, RegionSearchError) and e.kind in _RETRY_LATER]
        if len(waiting) == len(pictures):
            raise waiting[0]
        return JSONResponse(IngestResults(results=results).model_dump(exclude_none=True))

    return routes


def _attributes(value: Any) -> dict[str, str]:
    if value is None or value == "":
        return {}
    try:
        found = json.loads(value)
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise invalid("attributes", "attributes must be a JSON object whose values are strings")
    return found


class _Run:
    """The files of one request on their way in."""

    def __init__(
        self, gateway: Gateway, pictures: list[region_search_pb2.IngestImageRequest], key: str | None
    ) -> None:
        self._gateway = gateway
        self._pictures = pictures
        self._key = key
        self._priority = types_pb2.PRIORITY_INTERACTIVE if len(pictures) == 1 else types_pb2.PRIORITY_BULK
        self.errors: list[Exception | None] = [None] * len(pictures)

    async def results(
        self, report: Callable[[str, dict[str, Any]], None] = lambda event, data: None
    ) -> list[IngestResult]:
        """One result for each file, in their order."""
        tasks = [asyncio.create_task(self._ingest(index, report)) for index in range(len(self._pictures))]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def events(self) -> AsyncIterator[str]:
        """The same as server-sent events."""
        queue: asyncio.Queue[str | None] = asyncio.Queue()

        def report(event: str, data: dict[str, Any]) -> None:
            queue.put_nowait(f"event: {event}\ndata: {json.dumps(data)}\n\n")

        async def run() -> None:
            try:
                results = await self.results(report)
                report("done", IngestResults(results=results).model_dump(exclude_none=True))
            finally:
                queue.put_nowait(None)

        work = asyncio.create_task(run())
        try:
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), _KEEP_ALIVE_S)
                except TimeoutError:
                    yield ": still working\n\n"
                    continue
                if event is None:
                    break
                yield event
            await work
        finally:
            work.cancel()

    async def _ingest(self, index: int, report: Callable[[str, dict[str, Any]], None]) -> IngestResult:
        picture = self._pictures[index]

        def stage_begins(stage: region_search_pb2.IngestStage.ValueType) -> None:
            name = region_search_pb2.IngestStage.Name(stage).removeprefix("INGEST_STAGE_").lower()
            report("progress", {"index": index, "name": picture.name, "stage": name})

        try:
            answer = await self._gateway.ingester.ingest(
                picture, priority=self._priority, idempotency_key=self._key, progress=stage_begins
            )
        except RegionSearchError as error:
            self.errors[index] = error
            result = IngestResult(name=picture.name, outcome="failed", error=problem(error))
        except Exception as error:
            _log.exception("ingest failed unexpectedly", exc_info=error)
            self.errors[index] = error
            unexpected = RegionSearchError(Kind.INTERNAL, "an unexpected error; the server's log tells more")
            result = IngestResult(name=picture.name, outcome="failed", error=problem(unexpected))
        else:
            result = IngestResult(
                name=picture.name,
                outcome=_OUTCOMES[answer.outcome],
                image_id=answer.image_id,
                regions=answer.region_count,
                seq=answer.seq,
            )
        self._pictures[index] = region_search_pb2.IngestImageRequest()  # its bytes are not needed any more
        report("result", {"index": index, **result.model_dump(exclude_none=True)})
        return result
