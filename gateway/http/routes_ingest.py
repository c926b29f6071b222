"""Images in: many files a request, with progress as server-sent events for those who ask for it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import FormData, UploadFile

from gateway.core import Gateway
from gateway.http.access import needs
from gateway.http.body_parser import read_form
from gateway.http.json_bodies import parse_json
from gateway.http.openapi import form_of
from gateway.http.problems import STATUS, problem
from gateway.ingest import count_failure
from gateway.records import IdempotencyKey, checked_key, clean_name
from gateway.rights import Scope
from regionsearch.errors import Kind, RegionSearchError, invalid, too_large
from regionsearch.rpc.calls import gather_or_cancel
from regionsearch.schemas.requests.records import IngestBody
from regionsearch.schemas.responses.records import IngestError, IngestResult, IngestResults
from regionsearch.v1 import region_search_pb2, types_pb2

_KEEP_ALIVE_S = 15.0

_log = structlog.get_logger(__name__)


def router(gateway: Gateway) -> APIRouter:
    """The route that takes images in."""
    routes = APIRouter(tags=["images"])
    limits = gateway.settings.limits

    @routes.post(
        "/v1/collections/{collection}/images",
        summary="Add images",
        response_model=IngestResults,
        dependencies=[needs(gateway, Scope.WRITE, timed=False)],
        openapi_extra=form_of(IngestBody),
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def add_images(collection: str, request: Request) -> Response:
        """Segments, embeds and stores images; answers once all of them are on disk, one outcome a file.

        Images are known by their content: the same bytes again are `duplicate`, and nothing is segmented
        again; the tags and attributes of the request are added to those of the image, and a stored file that
        is missing or damaged is replaced. With an `Idempotency-Key` header a repetition of the request is
        answered `created`, like the first time; another request under the same key is refused (409). With
        `Accept: text/event-stream` there is an event `progress` for every file and stage, `result` for every
        file that is done, and `done` at the end. When no file could be stored, and none for a reason of its
        own, the answer is an error: 429, 503 or 504 when the services are busy or away, 507 when a disk is
        full.
        """
        name = checked_key(request.headers.get("idempotency-key"))
        async with contextlib.AsyncExitStack() as held:
            form = await held.enter_async_context(read_form(request, limits))
            files, body = await _read(form)
            about = body.to_proto(collection)
            gateway.ingester.check(about)
            held.enter_context(gateway.ingester.admit(len(files)))
            run = _Run(gateway, files, about, _idempotency_key(name, files))
            if "text/event-stream" in request.headers.get("accept", ""):
                events = run.events(held.pop_all())
                return StreamingResponse(
                    events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
                )
            results = await run.results()
        errors = [error for error in run.errors if error is not None and _not_the_files(error)]
        if len(errors) == len(files):
            raise max(errors, key=lambda error: STATUS[_kind(error)])
        return JSONResponse(IngestResults(results=tuple(results)).to_json())

    return routes


def _idempotency_key(name: str | None, files: list[UploadFile]) -> IdempotencyKey | None:
    """The key with what tells the request from another one; one file is told by its content."""
    if name is None:
        return None
    if len(files) == 1:
        return IdempotencyKey(name)
    listed = json.dumps([[file.filename, file.size] for file in files])
    return IdempotencyKey(name, hashlib.sha256(listed.encode(errors="replace")).hexdigest())


def _kind(error: Exception) -> Kind:
    return error.kind if isinstance(error, RegionSearchError) else Kind.INTERNAL


def _not_the_files(error: Exception) -> bool:
    """Whether a file failed for a reason that is not the file's own."""
    kind = _kind(error)
    return kind in (Kind.OVERLOADED, Kind.ALREADY_EXISTS) or STATUS[kind] >= 500


async def _read(form: FormData) -> tuple[list[UploadFile], IngestBody]:
    """The files of a form, and what it says about all of them."""
    files: list[UploadFile] = []
    tags: list[str] = []
    objects = dict.fromkeys(("attributes", "everything"), "")
    for name, value in form.multi_items():
        if (name == "files") is not isinstance(value, UploadFile):
            what = "a file, with a filename" if name == "files" else "not a file"
            raise invalid(name[:100], f"{name[:100]} must be {what}")
        if isinstance(value, UploadFile):
            files.append(value)
        elif name == "tags":
            tags.append(value)
        elif objects.get(name) == "":
            objects[name] = value
        else:
            reason = "comes more than once" if name in objects else "is not a field of this form"
            known = "there are files, tags, attributes and everything"
            raise invalid(name[:100], f"{name[:100]} {reason}; {known}")
    if not files:
        raise invalid("files", "the request has no images; send multipart files named files")
    said = {
        name: await asyncio.to_thread(parse_json, text.encode(), name)
        for name, text in objects.items()
        if text
    }
    return files, IngestBody.read({"tags": tags} | said)


def _failed(name: str, error: RegionSearchError) -> IngestResult:
    return IngestResult(name=name, outcome="failed", error=IngestError.model_validate(problem(error)))


class _Run:
    """The files of one request on their way in."""

    def __init__(
        self,
        gateway: Gateway,
        files: list[UploadFile],
        about: region_search_pb2.IngestImageRequest,
        key: IdempotencyKey | None,
    ) -> None:
        self._gateway = gateway
        self._files = files
        self._about = about
        self._key = key
        self._priority = types_pb2.PRIORITY_INTERACTIVE if len(files) == 1 else types_pb2.PRIORITY_BULK
        # Files wait on disk: only as many are in memory as can be worked on.
        self._turn = asyncio.Semaphore(gateway.settings.limits.max_images_in_work)
        self.errors: list[Exception | None] = [None] * len(files)

    async def results(
        self, report: Callable[[str, dict[str, Any]], None] = lambda event, data: None
    ) -> list[IngestResult]:
        """One result for each file, in their order."""
        return await gather_or_cancel(*(self._ingest(index, report) for index in range(len(self._files))))

    async def events(self, held: contextlib.AsyncExitStack) -> AsyncIterator[str]:
        """The same as server-sent events; lets go of what is held for the request at the end."""
        queue: asyncio.Queue[str | None] = asyncio.Queue()

        def report(event: str, data: dict[str, Any]) -> None:
            queue.put_nowait(f"event: {event}\ndata: {json.dumps(data)}\n\n")

        async def run() -> None:
            try:
                results = await self.results(report)
                report("done", IngestResults(results=tuple(results)).to_json())
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
            await held.aclose()

    def _check_size(self, file: UploadFile) -> None:
        """Refuses a file that is too large before it is read from disk into memory."""
        most = self._gateway.settings.limits.max_image_bytes
        if file.size is not None and file.size > most:
            message = f"the file has {file.size} bytes, over the limit of {most} (max_image_bytes)"
            error = too_large("image.encoded", f"{message}; send a smaller file")
            count_failure(error)
            raise error

    async def _ingest(self, index: int, report: Callable[[str, dict[str, Any]], None]) -> IngestResult:
        file = self._files[index]
        # Browsers and their like write a quotation mark so in the head of a part (the HTML standard's rule).
        name = clean_name((file.filename or "").replace("%22", '"'))

        def stage_begins(stage: region_search_pb2.IngestStage.ValueType) -> None:
            word = region_search_pb2.IngestStage.Name(stage).removeprefix("INGEST_STAGE_").lower()
            report("progress", {"index": index, "name": name, "stage": word})

        try:
            self._check_size(file)
            async with self._turn:
                request = region_search_pb2.IngestImageRequest(
                    image=types_pb2.Image(encoded=await file.read()), name=name
                )
                request.MergeFrom(self._about)
                answer = await self._gateway.ingester.ingest(
                    request, priority=self._priority, idempotency_key=self._key, progress=stage_begins
                )
        except RegionSearchError as error:
            self.errors[index] = error
            result = _failed(name, error)
        except Exception as error:
            _log.exception("ingest failed unexpectedly", exc_info=error)
            self.errors[index] = error
            unexpected = RegionSearchError(Kind.INTERNAL, "an unexpected error; the server's log tells more")
            result = _failed(name, unexpected)
        else:
            result = IngestResult.from_proto(name, answer)
        report("result", {"index": index, **result.to_json()})
        return result
