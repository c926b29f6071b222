"""Collections and the images in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from regionsearch.schemas.responses.values import Model, Response
from regionsearch.v1 import region_search_pb2, search_pb2


class BinaryCodes(Response):
    """How the vectors of a collection are quantized to bits."""

    method: str
    bits: int
    rerank_factor: int

    @classmethod
    def from_proto(cls, codes: search_pb2.BinaryCodes) -> BinaryCodes:
        """Converts the contract's message."""
        method = search_pb2.BinaryCodes.Method.Name(codes.method).removeprefix("METHOD_").lower()
        return cls(method=method, bits=codes.bits, rerank_factor=codes.rerank_factor)


class Collection(Response):
    """A named set of images and vectors of one model."""

    name: str
    model: Model
    created_at: str
    image_count: int
    record_count: int
    binary_codes: BinaryCodes | None = None
    replaces: str = Field("", description="The collection whose name it is going to take (reindex).")

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
        )


class Reindex(Response):
    """How far the move of a collection to another model is."""

    collection: str
    state: Literal["running", "blocked", "done"] = Field(
        description="blocked: it goes on by itself once what `problem` says is mended."
    )
    source_model: Model
    target_model: Model
    done_image_count: int
    image_count: int
    kept_as: str = Field(description="The collection that holds the vectors of the earlier model.")
    problem: str

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


class Collections(Response):
    """A page of collections, by name."""

    collections: tuple[Collection, ...]
    next_page_token: str

    @classmethod
    def from_proto(cls, page: search_pb2.ListCollectionsResponse) -> Collections:
        """Converts the contract's message."""
        return cls(
            collections=tuple(map(Collection.from_proto, page.collections)),
            next_page_token=page.next_page_token,
        )


class Image(Response):
    """A stored image."""

    image_id: str = Field(description="SHA-256 of the file.")
    name: str
    width: int
    height: int
    content_type: str
    size_bytes: int
    tags: tuple[str, ...]
    attributes: dict[str, str]
    created_at: str
    region_count: int

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


class Images(Response):
    """A page of images, newest first."""

    images: tuple[Image, ...]
    next_page_token: str
    total_count: int

    @classmethod
    def from_proto(
        cls, page: search_pb2.ListImagesResponse | region_search_pb2.RegionSearchServiceListImagesResponse
    ) -> Images:
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
