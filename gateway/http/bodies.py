"""What comes in over HTTP, as JSON or as a form with the same names, and its way into the contract."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    WithJsonSchema,
    model_validator,
)

from gateway.settings import CropPolicyName
from regionsearch.v1 import region_search_pb2, search_pb2, segment_pb2, types_pb2

_INT32 = 2**31 - 1
_INT64 = 2**63 - 1
_SMALL_BODY = 1 << 20  # everything in a JSON body besides its pictures


def _picture(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is no base64; send the picture's file in base64, or as a part of a form") from None


Picture = Annotated[
    bytes,
    BeforeValidator(_picture),
    WithJsonSchema(
        {"type": "string", "contentEncoding": "base64", "description": "A picture's file in base64."}
    ),
]
Pixel = Annotated[FiniteFloat, Field(ge=-1e6, le=1e6)]
Text = Annotated[str, Field(max_length=10_000)]
Id = Annotated[str, Field(max_length=160)]
Tag = Annotated[str, Field(min_length=1, max_length=255)]
PageSize = Annotated[int, Field(ge=0, le=_INT32)]


class Body(BaseModel):
    """Base of what comes in: unknown names are mistakes."""

    model_config = ConfigDict(extra="forbid")


class PointBody(Body):
    """A click, in pixels of the picture as a viewer shows it."""

    x: Pixel
    y: Pixel
    label: Literal[0, 1] = Field(1, description="1: the object is here; 0: it is not here.")

    def to_proto(self) -> types_pb2.Point:
        """As the contract has it."""
        return types_pb2.Point(x=self.x, y=self.y, label=self.label)


class BoxBody(Body):
    """A box in pixels; the edges are half-open."""

    x_min: Pixel
    y_min: Pixel
    x_max: Pixel
    y_max: Pixel

    def to_proto(self) -> types_pb2.Box:
        """As the contract has it."""
        return types_pb2.Box(**self.model_dump())


class QueryBody(Body):
    """What to look for; words, examples and pointing combine."""

    text: Text | None = Field(None, description="One phrase.")
    texts: list[Text] = Field([], description="Several phrases; each region goes to its best one.")
    image: Picture | None = Field(None, description="A picture of it; with points or box the object there.")
    region_id: Id | None = Field(None, description="A stored region: more like this.")
    image_id: Id | None = Field(None, description="A stored image; with points or box the object there.")
    points: list[PointBody] = Field([], max_length=128)
    box: BoxBody | None = None

    def to_proto(self) -> region_search_pb2.Query:
        """As the contract has it."""
        return region_search_pb2.Query(
            texts=([] if self.text is None else [self.text]) + self.texts,
            image=None if self.image is None else types_pb2.Image(encoded=self.image),
            region_id=self.region_id or "",
            image_id=self.image_id or "",
            points=[point.to_proto() for point in self.points],
            box=None if self.box is None else self.box.to_proto(),
        )


class FilterBody(Body):
    """Every condition that is set must hold."""

    image_ids: list[Id] = []
    exclude_image_ids: list[Id] = []
    region_ids: list[Id] = []
    exclude_region_ids: list[Id] = []
    tags: list[Tag] = Field([], description="The image has at least one of these.")
    exclude_tags: list[Tag] = Field([], description="The image has none of these.")
    min_area: int | None = Field(None, ge=0, le=_INT64, description="Pixels.")
    max_area: int | None = Field(None, ge=0, le=_INT64, description="Pixels.")
    min_predicted_iou: FiniteFloat | None = None
    min_stability_score: FiniteFloat | None = None
    attributes: dict[Tag, str] = Field({}, description="The image has exactly these.")

    def to_proto(self) -> search_pb2.Filter:
        """As the contract has it."""
        values = self.model_dump(exclude_none=True)
        values["record_ids"] = values.pop("region_ids")
        values["exclude_record_ids"] = values.pop("exclude_region_ids")
        return search_pb2.Filter(**values)


_LEVELS = {
    "region": search_pb2.LEVEL_REGION,
    "image": search_pb2.LEVEL_IMAGE,
    "both": search_pb2.LEVEL_UNSPECIFIED,
}


class SearchBody(Body):
    """A search of a collection."""

    query: QueryBody
    negatives: list[Text] = Field([], description="Phrases that are not meant.")
    level: Literal["region", "image", "both"] = "both"
    group_by: Literal["image"] | None = Field(None, description="One hit an image, its best.")
    filter: FilterBody | None = None
    min_score: FiniteFloat | None = Field(None, description="Lowest cosine that is kept.")
    relative_cutoff: FiniteFloat | None = Field(None, ge=0, le=1, description="Part of the best score.")
    min_relevancy: FiniteFloat | None = Field(None, description="With negatives; 0.5 when absent.")
    page_size: PageSize = Field(0, description="0 means 20; at most 1000.")
    page_token: str = ""
    min_seq: int | None = Field(None, ge=0, le=_INT64, description="See at least this write.")
    include: list[Literal["mask"]] = []

    def to_proto(self, collection: str) -> region_search_pb2.RegionSearchServiceSearchRequest:
        """As the contract has it."""
        by_image = self.group_by == "image"
        return region_search_pb2.RegionSearchServiceSearchRequest(
            collection=collection,
            query=self.query.to_proto(),
            negatives=self.negatives,
            level=_LEVELS[self.level],
            group_by=search_pb2.GROUP_BY_IMAGE if by_image else search_pb2.GROUP_BY_UNSPECIFIED,
            filter=None if self.filter is None else self.filter.to_proto(),
            min_score=self.min_score,
            relative_cutoff=self.relative_cutoff,
            min_relevancy=self.min_relevancy,
            page_size=self.page_size,
            page_token=self.page_token,
            min_seq=self.min_seq,
            include_masks="mask" in self.include,
        )


class OnePicture(Body):
    """A picture that is sent along or stored."""

    collection: str = Field("", description="Of a stored image; default when absent.")
    image: Picture | None = Field(None, description="The picture itself.")
    image_id: Id | None = Field(None, description="A stored image instead.")

    @model_validator(mode="after")
    def _one(self) -> OnePicture:
        if (self.image is None) == (self.image_id is None):
            raise ValueError("send either image or image_id")
        return self


class WithinBody(OnePicture):
    """A search inside one picture."""

    text: Text | None = Field(None, description="One phrase.")
    texts: list[Text] = Field([], description="Several phrases; each region goes to its best one.")
    negatives: list[Text] = []
    min_score: FiniteFloat | None = Field(None, description="Lowest cosine that makes a hit.")
    relative_cutoff: FiniteFloat | None = Field(
        None, ge=0, le=1, description="Part of a phrase's best score."
    )
    min_relevancy: FiniteFloat | None = None
    include: list[Literal["mask"]] = Field(
        ["mask"], description="An empty list leaves the regions' masks out."
    )
    render: Literal["outline", "boxes", "mask"] | None = Field(
        None, description="Answers with the picture and the hits drawn into it."
    )
    image_format: Literal["png", "webp"] = Field("png", description="Of a rendered picture.")

    @property
    def phrases(self) -> list[str]:
        """All phrases."""
        return ([] if self.text is None else [self.text]) + self.texts

    def to_proto(self) -> region_search_pb2.SearchWithinRequest:
        """As the contract has it."""
        request = region_search_pb2.SearchWithinRequest(
            collection=self.collection,
            texts=self.phrases,
            negatives=self.negatives,
            min_score=self.min_score,
            relative_cutoff=self.relative_cutoff,
            min_relevancy=self.min_relevancy,
        )
        if self.image is not None:
            request.image.encoded = self.image
        else:
            request.image_id = self.image_id or ""
        return request


class PromptBody(Body):
    """One object: points, a box, or both."""

    points: list[PointBody] = Field([], max_length=128)
    box: BoxBody | None = None

    def to_proto(self) -> segment_pb2.Prompt:
        """As the contract has it."""
        return segment_pb2.Prompt(
            points=[point.to_proto() for point in self.points],
            box=None if self.box is None else self.box.to_proto(),
        )


class EverythingBody(Body):
    """Options of everything mode; what is absent has the model's default."""

    points_per_side: int | None = Field(None, ge=1, le=128)
    pred_iou_thresh: FiniteFloat | None = None
    stability_score_thresh: FiniteFloat | None = None
    stability_score_offset: FiniteFloat | None = None
    box_nms_thresh: FiniteFloat | None = None
    crop_n_layers: int | None = Field(None, ge=0, le=4)
    min_mask_region_area: int | None = Field(None, ge=0, le=_INT32)
    max_regions: int | None = Field(
        None, ge=1, le=1000, description="Keeps only what an ingest would keep, at most this many."
    )

    def to_proto(self) -> segment_pb2.EverythingOptions:
        """As the contract has it."""
        values = self.model_dump(exclude_none=True, exclude={"max_regions"})
        options = segment_pb2.EverythingOptions(**values)
        if self.max_regions is not None:
            options.selection.max_regions = self.max_regions
        return options


class SegmentBody(OnePicture):
    """Masks of a picture: of everything, of one prompt (points, box) or of several."""

    points: list[PointBody] = Field([], max_length=128)
    box: BoxBody | None = None
    prompts: list[PromptBody] = Field([], max_length=1000, description="Several objects at once.")
    text: Text | None = Field(None, description="With among=stored: the region of the highest score.")
    everything: bool | EverythingBody = False
    multimask: bool = Field(False, description="The three masks of an ambiguous click.")
    among: Literal["model", "stored"] = Field(
        "model", description="stored: pick among the regions of a stored image instead of asking the model."
    )

    @model_validator(mode="after")
    def _one_mode(self) -> SegmentBody:
        pointed = bool(self.points) or self.box is not None
        modes = [pointed, bool(self.prompts), self.text is not None, self.everything is not False]
        if sum(modes) != 1:
            raise ValueError("say what to segment: points and box, or prompts, or everything: true")
        if self.among == "stored" and (self.image_id is None or not (pointed or self.text)):
            raise ValueError("among=stored needs an image_id and points, a box or a text")
        if self.among == "model" and self.text is not None:
            raise ValueError("a text picks among stored regions; use it with image_id and among=stored")
        return self

    def prompt(self) -> segment_pb2.Prompt:
        """Points and box as one prompt."""
        return PromptBody(points=self.points, box=self.box).to_proto()

    def to_proto(self, image: types_pb2.Image) -> segment_pb2.SegmentRequest:
        """As the contract has it."""
        if self.everything is not False:
            options = EverythingBody() if self.everything is True else self.everything
            return segment_pb2.SegmentRequest(image=image, everything=options.to_proto())
        prompts = [prompt.to_proto() for prompt in self.prompts] or [self.prompt()]
        return segment_pb2.SegmentRequest(
            image=image, prompts=segment_pb2.Prompts(prompts=prompts, multimask=self.multimask)
        )


class EmbeddingsBody(Body):
    """Texts or pictures, not both."""

    texts: list[Text] = Field([], max_length=1000)
    images: list[Picture] = Field([], max_length=64)

    @model_validator(mode="after")
    def _one(self) -> EmbeddingsBody:
        if bool(self.texts) == bool(self.images):
            raise ValueError("send either texts or images")
        return self


class BinaryCodesBody(Body):
    """Short codes for a first pass in Hamming space."""

    method: Literal["pca_rotation", "itq", "learned"]
    bits: int = Field(256, ge=8, le=4096, multiple_of=8)
    rerank_factor: int = Field(10, ge=1, le=1000)
    head: str = ""

    def to_proto(self) -> search_pb2.BinaryCodes:
        """As the contract has it."""
        method = search_pb2.BinaryCodes.Method.Value(f"METHOD_{self.method.upper()}")
        return search_pb2.BinaryCodes(**self.model_dump(exclude={"method"}), method=method)


class CollectionBody(Body):
    """A new collection, for the embedder's present model."""

    name: str = Field(description="1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit.")
    crop_policy: CropPolicyName = Field(
        "default", description="How regions are cut out; default: the gateway's."
    )
    binary_codes: BinaryCodesBody | None = None
