"""Collections, the images in them, and what became of images that were sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from google.protobuf.json_format import MessageToDict
from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from regionsearch.errors import from_status
from regionsearch.schemas.requests.inference import EVERYTHING_MODES, RANKS, EverythingOptions
from regionsearch.schemas.responses.values import Model, Response
from regionsearch.v1 import region_search_pb2, search_pb2, segment_pb2


class BinaryCodes(Response):
    """How the vectors of a collection are quantized to bits."""

    method: str = Field(description="`pca_rotation`, `itq` or `learned`.")
    bits: int = Field(description="Of each code.")
    rerank_factor: int = Field(
        description="How many times as many candidates are scored again as are asked for."
    )
    trained: bool = Field(
        description="Whether searches may compare codes alone; else codes are learned once there are many."
    )

    @classmethod
    def from_proto(cls, codes: search_pb2.BinaryCodes) -> BinaryCodes:
        """Converts the contract's message."""
        method = search_pb2.BinaryCodes.Method.Name(codes.method).removeprefix("METHOD_").lower()
        return cls(
            method=method,
            bits=codes.bits,
            rerank_factor=codes.rerank_factor,
            trained=codes.trained_seq > 0,
        )


class EverythingDefaults(EverythingOptions):
    """Options of everything mode that a collection keeps."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # as of every answer

    @classmethod
    def from_proto(cls, options: segment_pb2.EverythingOptions) -> EverythingDefaults:
        """Converts the contract's message, which is not checked again."""
        values = MessageToDict(options, preserving_proto_field_name=True)  # with floats as they were written
        selection = options.selection
        modes = {number: mode for mode, number in EVERYTHING_MODES.items()}
        ranks = {number: rank for rank, number in RANKS.items()}
        values |= {"mode": modes.get(options.mode), "max_regions": selection.max_regions or None}
        values["rank_by"] = ranks.get(selection.rank_by)
        known = {name: value for name, value in values.items() if name in cls.model_fields}
        return EverythingDefaults.model_construct(**known)


class Collection(Response):
    """A named set of images and vectors of one model."""

    name: str = Field(description="By which requests name it.")
    model: Model = Field(description="The model of its vectors.")
    created_at: str = Field(description="When, after RFC 3339.")
    image_count: int = Field(description="Images in it.")
    record_count: int = Field(description="Vectors in it: of regions and of whole images.")
    binary_codes: BinaryCodes | None = Field(None, description="Null: vectors are compared as they are.")
    replaces: str = Field("", description="The collection whose name it is going to take (reindex).")
    everything: EverythingDefaults | None = Field(
        None, description="How regions of its images are looked for where an ingest does not say."
    )
    recall_target: float | None = Field(
        None,
        description="Share of the best 10 that a search of very many regions finds at least; null: as the "
        "searcher is set.",
    )

    @classmethod
    def from_proto(cls, collection: search_pb2.Collection) -> Collection:
        """Converts the contract's message."""
        codes = collection.binary_codes
        return cls(
            name=collection.name,
            model=Model.from_proto(collection.model),
            created_at=collection.create_time.ToJsonString(),
            image_count=collection.image_count,
            record_count=collection.record_count,
            binary_codes=BinaryCodes.from_proto(codes) if codes.method else None,
            replaces=collection.replaces,
            everything=EverythingDefaults.from_proto(collection.everything)
            if collection.HasField("everything")
            else None,
            recall_target=collection.recall_target or None,
        )


class Reindex(Response):
    """How far the move of a collection to another model is."""

    collection: str = Field(description="The collection that is moved.")
    state: Literal["running", "blocked", "done"] = Field(
        description="blocked: it goes on by itself once what `problem` says is mended."
    )
    source_model: Model = Field(description="The model before.")
    target_model: Model = Field(description="The model afterwards.")
    done_image_count: int = Field(description="Images that are embedded again.")
    image_count: int = Field(description="Images in all.")
    kept_as: str = Field(description="The collection that holds the vectors of the earlier model.")
    problem: str = Field(description="What keeps it from going on; empty otherwise.")

    @classmethod
    def from_proto(cls, reindex: region_search_pb2.Reindex) -> Reindex:
        """Converts the contract's message."""
        state = region_search_pb2.ReindexState.Name(reindex.state).removeprefix("REINDEX_STATE_").lower()
        return cls.model_validate(
            {
                "collection": reindex.collection,
                "state": state,
                "source_model": Model.from_proto(reindex.source_model),
                "target_model": Model.from_proto(reindex.target_model),
                "done_image_count": reindex.done_image_count,
                "image_count": reindex.image_count,
                "kept_as": reindex.kept_as,
                "problem": reindex.problem,
            }
        )


class CollectionPage(Response):
    """A page of collections, by name."""

    collections: tuple[Collection, ...] = Field(description="By name.")
    next_page_token: str = Field(description="For the next page; empty on the last one.")

    @classmethod
    def from_proto(cls, page: search_pb2.ListCollectionsResponse) -> CollectionPage:
        """Converts the contract's message."""
        return cls(
            collections=tuple(map(Collection.from_proto, page.collections)),
            next_page_token=page.next_page_token,
        )


class Image(Response):
    """A stored image."""

    image_id: str = Field(description="SHA-256 of the file.")
    name: str = Field(description="Display name, perhaps with folders; empty if it has none.")
    width: int = Field(description="Pixels, upright.")
    height: int = Field(description="Pixels, upright.")
    content_type: str = Field(description="Of its file, such as `image/jpeg`.")
    size_bytes: int = Field(description="Of its file.")
    tags: tuple[str, ...] = Field(description="In the order in which they were added.")
    attributes: dict[str, str] = Field(description="Further facts, by name.")
    created_at: str = Field(description="When it was added, after RFC 3339.")
    region_count: int = Field(description="Regions of it that can be found.")

    @classmethod
    def from_proto(cls, image: search_pb2.StoredImage) -> Image:
        """Converts the contract's message."""
        return cls(**_image_fields(image))


class UpdatedImage(Image):
    """A stored image after a change."""

    seq: int = Field(description="A search with this min_seq sees the change.")

    @classmethod
    def from_update(cls, image: search_pb2.StoredImage, seq: int) -> UpdatedImage:
        """Converts an image as it is after a change, and the number of that write."""
        return cls(**_image_fields(image), seq=seq)


class StoredImages(Response):
    """Images that need not be sent."""

    images: tuple[Image, ...] = Field(description="Those that are stored, in the order of their ids.")

    @classmethod
    def from_proto(cls, images: Sequence[search_pb2.StoredImage]) -> StoredImages:
        """Converts the contract's messages."""
        return cls(images=tuple(map(Image.from_proto, images)))


class ImagePage(Response):
    """A page of images."""

    images: tuple[Image, ...] = Field(description="Newest first unless asked for in another order.")
    next_page_token: str = Field(description="For the next page; empty on the last one.")
    total_count: int = Field(description="Images in the collection.")

    @classmethod
    def from_proto(
        cls, page: search_pb2.ListImagesResponse | region_search_pb2.RegionSearchServiceListImagesResponse
    ) -> ImagePage:
        """Converts the contract's message."""
        return cls(
            images=tuple(map(Image.from_proto, page.images)),
            next_page_token=page.next_page_token,
            total_count=page.total_count,
        )


def _image_fields(image: search_pb2.StoredImage) -> dict[str, Any]:
    return {
        "image_id": image.image_id,
        "name": image.name,
        "width": image.width,
        "height": image.height,
        "content_type": image.content_type,
        "size_bytes": image.size_bytes,
        "tags": tuple(image.tags),
        "attributes": dict(image.attributes),
        "created_at": image.create_time.ToJsonString(),
        "region_count": image.region_count,
    }


class FieldError(Response):
    """A field of a request that is at fault."""

    pointer: str = Field(description="JSON pointer to it, such as `/query/texts/0`.")
    detail: str = Field(description="What is wrong with it.")


class IngestError(Response):
    """Why a file was not stored, as in a problem document."""

    code: str = Field(description="One of the closed list of codes.")
    detail: str = Field(description="What is wrong and what helps.")
    errors: tuple[FieldError, ...] | None = Field(None, description="The fields at fault.")
    retry_after_s: float | None = Field(None, description="Seconds after which it may work.")
    metadata: dict[str, str] | None = Field(None, description="Facts for programs.")


class IngestResult(Response):
    """What became of a file."""

    name: str = Field(description="Of the file, as it was sent.")
    outcome: Literal["created", "duplicate", "failed"] = Field(
        description="`duplicate`: these bytes were there already."
    )
    image_id: str | None = Field(None, description="SHA-256 of the file; null if it was not stored.")
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

    results: tuple[IngestResult, ...] = Field(description="In the order of the files.")

    def to_json(self) -> dict[str, Any]:
        """The results as JSON: without what is not known of a file."""
        return self.model_dump(exclude_none=True, exclude_unset=True)


class IngestProgress(Response):
    """How far an image is; its `result` comes with the stage `done`."""

    name: str = Field(description="Of the file.")
    stage: Literal["received", "segmenting", "embedding", "storing", "done"] = Field(
        description="What is done with it now."
    )
    result: IngestResult | None = Field(None, description="With the stage `done`.")

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
