"""Parts of answers, and what the gateway says about itself and its services."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from regionsearch.masks import decode_rle
from regionsearch.v1 import region_search_pb2, segment_pb2, types_pb2


class Response(BaseModel):
    """Base of everything that is answered: immutable, and unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Box(Response):
    """Pixels of the image as a viewer shows it; the edges are half-open."""

    x_min: float = Field(description="Left edge.")
    y_min: float = Field(description="Top edge.")
    x_max: float = Field(description="Right edge, the first column that is outside.")
    y_max: float = Field(description="Bottom edge, the first row that is outside.")

    @classmethod
    def from_proto(cls, box: types_pb2.Box) -> Box:
        """Converts the contract's message."""
        return cls(x_min=box.x_min, y_min=box.y_min, x_max=box.x_max, y_max=box.y_max)

    def __iter__(self) -> Iterator[float]:  # type: ignore[override]
        """The four edges, so that a box is given back as it came: `search(box=hit.box)`."""
        return iter((self.x_min, self.y_min, self.x_max, self.y_max))

    def __len__(self) -> int:
        return 4


class Mask(Response):
    """COCO's compressed run-length code of a mask as large as its image."""

    size: tuple[int, int] = Field(description="Height and width.")
    counts: str = Field(repr=False, description="Run lengths, as pycocotools encodes them.")

    @classmethod
    def from_proto(cls, mask: types_pb2.Mask) -> Mask:
        """Converts the contract's message."""
        return cls(size=(mask.height, mask.width), counts=mask.coco_rle)

    def to_array(self) -> NDArray[np.bool_]:
        """The mask as a bool array of shape (height, width)."""
        return decode_rle(self.counts, *self.size)

    def _repr_png_(self) -> bytes:
        """What notebooks show: the mask, white on black."""
        out = io.BytesIO()
        PIL.Image.fromarray(self.to_array()).save(out, "PNG")
        return out.getvalue()


class SegmentFeatures(Response):
    """The segmenter's features in a collection's vectors."""

    family: str = Field(description="The segmenter's.")
    variant: str = Field(description="The segmenter's.")
    weights_digest: str = Field(description="SHA-256 of the segmenter's weights.")
    dimension: int = Field(description="Their part of each vector.")
    level: int = Field(description="The encoder's feature map; 0 is the coarsest.")
    weight: float = Field(description="The embedding's is 1.")

    @classmethod
    def from_proto(cls, features: types_pb2.SegmentFeatures) -> SegmentFeatures:
        """Converts the contract's message."""
        model = features.model
        return cls(
            family=model.family,
            variant=model.variant,
            weights_digest=model.weights_digest,
            dimension=model.dimension,
            level=features.level,
            weight=features.weight,
        )


class Model(Response):
    """What a model is; vectors are comparable when all of this agrees."""

    family: str = Field(description="What it is a model of, such as `open_clip`.")
    variant: str = Field(description="Which one, such as `ViT-B-32`.")
    weights_digest: str = Field(description="SHA-256 of its weights.")
    dimension: int = Field(description="Of its vectors; 0 for a segmenter.")
    crop_policy: str | None = Field(None, description="How regions are cropped before they are embedded.")
    precision: str | None = Field(None, description="What it computes in, such as `fp32`.")
    device: str | None = Field(None, description="What it runs on, such as `cuda:0`.")
    features: SegmentFeatures | None = Field(
        None, description="Of a collection: the segmenter's features behind the embedding in each vector."
    )

    @classmethod
    def from_proto(cls, model: types_pb2.ModelInfo) -> Model:
        """Converts the contract's message."""
        policy = types_pb2.CropPolicy.Name(model.crop_policy).removeprefix("CROP_POLICY_").lower()
        return cls(
            family=model.family,
            variant=model.variant,
            weights_digest=model.weights_digest,
            dimension=model.dimension,
            crop_policy=None if policy == "unspecified" else policy,
            precision=model.precision or None,
            device=model.device or None,
            features=SegmentFeatures.from_proto(model.features) if model.HasField("features") else None,
        )


class SegmenterModel(Model):
    """A segmenter, and what its prompts mean."""

    prompts_choose: bool = Field(
        False, description="Points and boxes choose among the masks that it finds by itself, as FastSAM's do."
    )
    takes_phrases: bool = Field(False, description="It finds all objects that phrases name, as SAM 3 does.")
    everything_mode: Literal["grid", "proposals"] = Field(
        "grid", description="Where it looks for all objects, unless a request says."
    )

    @classmethod
    def from_answer(cls, answer: segment_pb2.SegmentServiceGetModelResponse) -> SegmenterModel:
        """Converts the contract's message."""
        proposes = answer.everything_defaults.mode == segment_pb2.EVERYTHING_MODE_PROPOSALS
        return cls(
            **Model.from_proto(answer.model).model_dump(),
            prompts_choose=answer.prompts_choose,
            takes_phrases=answer.takes_phrases,
            everything_mode="proposals" if proposes else "grid",
        )


class Models(Response):
    """The models that are served now."""

    segmenter: SegmenterModel = Field(description="What cuts images into regions.")
    embedder: Model = Field(description="What makes vectors.")
    searcher: dict[str, Any] = Field(description="Its engine and the bytes it has on disk.")

    @classmethod
    def from_proto(cls, answer: region_search_pb2.GetModelsResponse) -> Models:
        """Converts the contract's message."""
        return cls(
            segmenter=SegmenterModel.from_answer(answer.segmenter),
            embedder=Model.from_proto(answer.embedder),
            searcher={"engine": answer.engine, "disk_bytes": answer.disk_bytes},
        )


class AccessRights(Response):
    """What an API key allows."""

    scopes: tuple[str, ...] = Field(
        description="Of search, write, delete and admin, which includes the others."
    )
    collections: tuple[str, ...] | None = Field(
        description="The only collections that can be seen; null for all."
    )

    @classmethod
    def from_proto(cls, answer: region_search_pb2.GetAccessResponse) -> AccessRights:
        """Converts the contract's message."""
        return cls(
            scopes=tuple(answer.scopes), collections=tuple(answer.collections) if answer.limited else None
        )


class ServiceState(Response):
    """Whether a service answers, and if not, why."""

    ready: bool = Field(description="Whether it answers and can do its work.")
    detail: str = Field(description="Why not, or `serving`.")


class Readiness(Response):
    """Whether the gateway can do its work, and what it waits for."""

    ready: bool = Field(description="Whether all services are.")
    services: dict[str, ServiceState] = Field(description="By name: segmenter, embedder, searcher, gateway.")

    @property
    def reason(self) -> str:
        """What it waits for, in one line."""
        waiting = (f"{name}: {state.detail}" for name, state in self.services.items() if not state.ready)
        return "; ".join(waiting)
