"""Collections and the images in them: making, adding, changing, listing."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, JsonValue

from regionsearch import defaults
from regionsearch.schemas.requests.inference import EverythingOptions
from regionsearch.schemas.requests.values import (
    Body,
    CollectionName,
    PageSize,
    PageToken,
    constant,
    shaped,
)
from regionsearch.v1 import region_search_pb2, search_pb2, types_pb2

MAX_IDS = 1000
"""Images that may be asked about in one call."""
CropPolicyName = Literal[
    "default", "bbox", "masked_white", "masked_black", "masked_mean", "blur", "context", "red_circle",
    "ensemble",
]  # fmt: skip

_WORD: dict[str, JsonValue] = {"minLength": 1, "maxLength": 4096, "pattern": r"^[^\u0000]*$"}
Word = Annotated[str, Field(max_length=4096, json_schema_extra=_WORD)]
"""A tag, or an attribute's name or value; what an image may have in all is looked at later."""
_AnyText = Annotated[
    str, Field(max_length=1 << 20)
]  # as long as all fields of a form; a bound checks for UTF-8


class Page(Body):
    """Which part of a list is wanted."""

    model_config = ConfigDict(extra="ignore")  # a URL may have parameters that are not ours

    page_size: PageSize = Field(0, description="0 means 100; at most 1000.")
    page_token: PageToken = ""


class IngestBody(Body):
    """What is said about all files of a form that adds images; how much is kept is looked at later."""

    tags: list[_AnyText] = Field(
        [],
        description="Put on every image of the request.",
        json_schema_extra={"items": {"type": "string", "minLength": 1, "maxLength": 4096}},
    )
    attributes: dict[_AnyText, _AnyText] = Field({}, description="A JSON object of strings, for every image.")
    everything: EverythingOptions | None = Field(
        None,
        description="How regions are looked for in every image; absent: as the collection says, else as it "
        "suits the model.",
    )

    def to_form(self) -> dict[str, Any]:
        """As fields of a form."""
        form = {"tags": self.tags, "attributes": json.dumps(self.attributes)}
        if self.everything is not None:
            form["everything"] = self.everything.model_dump_json(exclude_none=True)
        return form

    def to_proto(self, collection: str) -> region_search_pb2.IngestImageRequest:
        """As the contract has it, still without an image."""
        return region_search_pb2.IngestImageRequest(
            collection=collection,
            tags=self.tags,
            attributes=self.attributes,
            everything=None if self.everything is None else self.everything.to_proto(),
        )


class ImageChangeBody(Body):
    """A change of what is said about an image, as a JSON merge patch (RFC 7396): what is absent stays.

    `tags` replaces all tags, as merge patches replace every list; `add_tags` and `remove_tags` change single
    ones.
    """

    name: str | None = Field(None, max_length=4096, description="null: no name.")
    tags: list[Word] | None = Field(None, max_length=1000, fail_fast=True, description="null: none.")
    add_tags: list[Word] = Field([], max_length=1000, fail_fast=True, description="Put on in addition.")
    remove_tags: list[Word] = Field([], max_length=1000, fail_fast=True, description="Taken off.")
    attributes: dict[Annotated[str, Field(max_length=4096)], Word | None] = Field(
        {},
        max_length=1000,
        description="Sets each, or takes it away where it is null.",
        json_schema_extra={"propertyNames": _WORD},
    )

    def to_proto(self, image_id: str) -> search_pb2.ImageUpdate:
        """As the contract has it."""
        update = search_pb2.ImageUpdate(
            image_id=image_id, add_tags=self.add_tags, remove_tags=self.remove_tags
        )
        if "name" in self.model_fields_set:
            update.name = self.name or ""
        if "tags" in self.model_fields_set:
            update.tags.values.extend(self.tags or [])
            update.tags.SetInParent()
        for name, value in self.attributes.items():
            if value is None:
                update.remove_attributes.append(name)
            else:
                update.set_attributes[name] = value
        return update


class ImageIdsBody(Body):
    """Images by id."""

    image_ids: list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = Field(
        min_length=1, max_length=MAX_IDS, fail_fast=True, description="SHA-256 of their files."
    )

    def to_proto(self, collection: str) -> region_search_pb2.CheckImagesRequest:
        """As the contract has it."""
        return region_search_pb2.CheckImagesRequest(collection=collection, image_ids=self.image_ids)


class TrainCodesBody(Body):
    """Short codes that are learned from a collection's vectors."""

    method: Literal["pca_rotation", "itq", "learned"] = Field(
        description="How bits are made of a vector; `learned`: by a hashing head, sign(tanh(Wx + b))."
    )
    bits: int = Field(
        256, ge=8, le=4096, multiple_of=8, description="At most the model's dimension, unless learned."
    )
    rerank_factor: int = Field(
        10, ge=1, le=1000, description="How many times as many candidates are scored again as are asked for."
    )

    def to_proto(self) -> search_pb2.BinaryCodes:
        """As the contract has it."""
        method = search_pb2.BinaryCodes.Method.Value(f"METHOD_{self.method.upper()}")
        return search_pb2.BinaryCodes(**self.model_dump(exclude={"method"}), method=method)


class BinaryCodesBody(TrainCodesBody):
    """Short codes for a first pass in Hamming space, or for searches by nothing else."""

    model_config = shaped(
        [constant("method", "learned"), {"properties": {"head": {"maxLength": 0}}}],
    )

    head: Annotated[
        str,
        Field(
            max_length=128,
            pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
            description="File of a learned one on the searcher; absent: it is learned from the collection.",
        ),
    ] = ""


class SegmentFeaturesBody(Body):
    """The segmenter's features as the second part of each vector, behind the embedding."""

    level: int = Field(
        0, ge=0, le=100, description="The encoder's feature map whose means they are; 0 is the coarsest."
    )
    weight: FiniteFloat = Field(defaults.FEATURES_WEIGHT, gt=0, le=100, description="The embedding's is 1.")

    def to_proto(self) -> types_pb2.SegmentFeatures:
        """As the contract has it, still without a model."""
        return types_pb2.SegmentFeatures(**self.model_dump())


class CollectionBody(Body):
    """A new collection, for the embedder's present model."""

    name: CollectionName = Field(
        min_length=1,
        json_schema_extra={"pattern": "^[a-z0-9][a-z0-9_-]*$"},
        description="1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit.",
    )
    crop_policy: CropPolicyName = Field(
        "default", description="How regions are cut out; default: the gateway's."
    )
    binary_codes: BinaryCodesBody | None = Field(
        None, description="Absent: vectors are compared as they are."
    )
    everything: EverythingOptions | None = Field(
        None,
        description="How regions of its images are looked for where an ingest does not say; absent: as it "
        "suits the model.",
    )
    segment_features: SegmentFeaturesBody | None = Field(
        None,
        description="Vectors of embeddings and of the segmenter's features: examples are compared by both, "
        "words by the embedding alone. Absent: of embeddings.",
    )
    recall_target: FiniteFloat | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the best 10 that a search of very many regions finds at least, if it does not "
        "ask for exact results; absent: as the searcher is set.",
    )


class ReindexBody(Body):
    """A move of a collection to another model."""

    embedder: str = Field(
        "",
        max_length=200,
        description="Variant of the model to move to, such as ViT-B-32; absent: the one that the collection "
        "does not have.",
    )
