"""Options of everything mode."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from regionsearch.schemas.requests.shapes import Shape, absent, shaped
from regionsearch.schemas.requests.values import INT32, Body
from regionsearch.v1 import segment_pb2

_Share = Annotated[FiniteFloat, Field(ge=0, le=1)]

_MODES = {
    "grid": segment_pb2.EVERYTHING_MODE_GRID,
    "proposals": segment_pb2.EVERYTHING_MODE_PROPOSALS,
}


_NO_GRID_OR_NO_PROPOSALS: list[Shape] = [
    absent("points_per_side"),
    {"properties": {"mode": {"enum": [None, "grid"]}}},
]


class EverythingBody(Body):
    """Options of everything mode; what is absent has the model's default."""

    model_config = shaped(_NO_GRID_OR_NO_PROPOSALS)

    mode: Literal["grid", "proposals"] | None = Field(
        None,
        description="Where to look: at a grid of points, or at the far fewer points that a model with a "
        "proposer names.",
    )
    points_per_side: int | None = Field(None, ge=1, le=128, description="Of the grid; not with proposals.")
    pred_iou_thresh: _Share | None = Field(None, description="Lowest predicted IoU that is kept.")
    stability_score_thresh: _Share | None = Field(None, description="Lowest stability score that is kept.")
    stability_score_offset: Annotated[FiniteFloat, Field(ge=0, le=100)] | None = Field(
        None, description="Shift of the mask threshold when the stability score is measured."
    )
    box_nms_thresh: _Share | None = Field(
        None, description="Box IoU above which the worse of two regions is dropped."
    )
    crop_n_layers: int | None = Field(
        None, ge=0, le=4, description="Layers of crops in addition to the whole image."
    )
    crop_nms_thresh: _Share | None = Field(
        None, description="Box IoU above which the worse of two regions of different crops is dropped."
    )
    crop_overlap_ratio: Annotated[FiniteFloat, Field(ge=0, le=0.9)] | None = Field(
        None, description="Overlap of neighbouring crops, as a part of the image's shorter side."
    )
    crop_n_points_downscale_factor: int | None = Field(
        None, ge=1, le=8, description="In layer i the grid has points_per_side / factor^i points a side."
    )
    min_mask_region_area: int | None = Field(
        None, ge=0, le=INT32, description="Holes and islands below this many pixels are removed."
    )
    max_regions: int | None = Field(
        None, ge=1, le=1000, description="Keeps only what an ingest would keep, at most this many."
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.mode == "proposals" and self.points_per_side is not None:
            raise ValueError("points_per_side is of a grid, and mode is proposals; send one of them")
        return self

    def to_proto(self) -> segment_pb2.EverythingOptions:
        """As the contract has it."""
        values = self.model_dump(exclude_none=True, exclude={"max_regions", "mode"})
        options = segment_pb2.EverythingOptions(**values)
        if self.mode is not None:
            options.mode = _MODES[self.mode]
        if self.max_regions is not None:
            options.selection.max_regions = self.max_regions
        return options
