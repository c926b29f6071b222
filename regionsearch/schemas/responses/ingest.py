"""What became of images that were sent."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from regionsearch.errors import from_status
from regionsearch.schemas.responses.values import Response
from regionsearch.v1 import region_search_pb2


class FieldError(Response):
    """A field of a request that is at fault."""

    pointer: str
    detail: str


class IngestError(Response):
    """Why a file was not stored, as in a problem document."""

    code: str
    detail: str
    errors: tuple[FieldError, ...] | None = None
    retry_after_s: float | None = None
    metadata: dict[str, str] | None = None


class IngestResult(Response):
    """What became of a file."""

    name: str
    outcome: Literal["created", "duplicate", "failed"]
    image_id: str | None = None
    regions: int | None = Field(None, description="Number of regions that were found.")
    known_as: str | None = Field(
        None,
        description="Of a duplicate that was stored under another name before: that name, which it keeps.",
    )
    tags: tuple[str, ...] = Field(
        (), description="Of the image now: a duplicate keeps its own and gets those of the request."
    )
    added_tags: SkipJsonSchema[tuple[str, ...]] = ()  # known only to a client that has asked before it sends
    seq: int | None = Field(None, description="A search with this min_seq sees the image.")
    error: IngestError | None = Field(None, description="code, detail and errors, as in a problem document.")

    @classmethod
    def from_proto(cls, name: str, answer: region_search_pb2.IngestImageResponse) -> IngestResult:
        """Converts the contract's message; `name` is what the request called the file."""
        created = answer.outcome == region_search_pb2.INGEST_OUTCOME_CREATED
        return cls(
            name=name,
            outcome="created" if created else "duplicate",
            image_id=answer.image_id,
            regions=answer.region_count,
            known_as=answer.name if not created and answer.name not in ("", name) else None,
            tags=tuple(answer.tags),
            seq=answer.seq,
        )

    def to_json(self) -> dict[str, Any]:
        """The result as JSON: without what is not known of this file."""
        return self.model_dump(exclude_none=True, exclude_unset=True)


class IngestResults(Response):
    """One result for each file, in the order of the request."""

    results: tuple[IngestResult, ...]

    def to_json(self) -> dict[str, Any]:
        """The results as JSON: without what is not known of a file."""
        return self.model_dump(exclude_none=True, exclude_unset=True)


class IngestProgress(Response):
    """How far an image is; its `result` comes with the stage `done`."""

    name: str
    stage: Literal["received", "segmenting", "embedding", "storing", "done"]
    result: IngestResult | None = None

    @classmethod
    def from_proto(cls, name: str, answer: region_search_pb2.IngestImagesResponse) -> IngestProgress:
        """Converts the contract's message; `name` is what the request called the file."""
        result = None
        if answer.HasField("response"):
            result = IngestResult.from_proto(name, answer.response)
        elif answer.HasField("error"):
            error = from_status(answer.error)
            failure = IngestError(code=error.kind.value, detail=error.message)
            result = IngestResult(name=name, outcome="failed", error=failure)
        stage = region_search_pb2.IngestStage.Name(answer.stage).removeprefix("INGEST_STAGE_").lower()
        return cls.model_validate({"name": name, "stage": stage, "result": result})
