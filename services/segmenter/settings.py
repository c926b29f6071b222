"""Settings of the segmenter's process."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from services.runtime.batcher import BatchSettings
from services.runtime.settings import MIB, SettingsPart
from services.segmenter.options import Defaults, Mode
from services.torch_runtime.settings import ModelServiceSettings


class EverythingSettings(SettingsPart):
    """Options of everything mode; absent ones are chosen to suit the served model."""

    mode: Mode | None = Field(None, description="Where to look: grid or proposals.")
    points_per_side: int | None = Field(
        None, description="Points along one side of the grid, 1 to 128; time grows with their square."
    )
    pred_iou_thresh: float | None = Field(None, description="Lowest predicted IoU that is kept.")
    stability_score_thresh: float | None = Field(None, description="Lowest stability score that is kept.")
    box_nms_thresh: float | None = Field(
        None, description="Box IoU above which the worse of two regions is dropped."
    )
    crop_n_layers: int | None = Field(
        None, description="Layers of crops in addition to the whole image, for small objects in large images."
    )
    min_mask_region_area: int | None = Field(
        None, description="Holes and islands below this many pixels are removed; 0 keeps them."
    )

    def applied_to(self, defaults: Defaults) -> Defaults:
        """Overrides a model's defaults with what is set here.

        Raises:
            RegionSearchError: INVALID_ARGUMENT, naming the option.
        """
        given = self.model_dump(exclude_none=True, exclude={"mode"})
        everything = replace(defaults.everything, **given)
        everything.check()
        grid = Mode.GRID if self.points_per_side is not None else None
        return replace(defaults, everything=everything, mode=self.mode or grid or defaults.mode)


class SegmenterSettings(ModelServiceSettings):
    """``REGIONSEARCH_SEGMENTER_…``, or ``[segmenter]`` in the TOML file."""

    process: ClassVar[str] = "segmenter"

    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    model: str = Field(
        "pocket",
        description="pocket, mobile_sam, sam_vit_b, sam_vit_l, sam_vit_h, the name of a SAM 2, SAM 3 or "
        "SAM-HQ, the path of a weights file, or of a folder as it is on the Hugging Face hub.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        "auto",
        description="fp32 gives the reference's answer; the others are faster on a GPU and may differ from "
        "it. auto takes the fastest one that is recorded with the model to find 99 % of fp32's regions, "
        "else fp32; on a CPU it takes fp32.",
    )
    compile: bool = Field(
        False,
        description="Run image encoder and refiner through torch.compile, which needs a C++ compiler; "
        "startup takes minutes longer.",
    )
    proposer: str = Field(
        "",
        description="Path of FastSAM's .onnx file; everything mode then asks the model about its boxes "
        "instead of a grid. Empty for the model's own proposer, if it has one.",
    )
    everything: EverythingSettings = Field(
        EverythingSettings(), description="Options of everything mode where a request leaves them unset."
    )
    zoom: bool | None = Field(
        None,
        description="Whether answers to prompts are refined in further passes where a request leaves it "
        "unset: better masks for more time. Absent for the model's default.",
    )
    cache_bytes: int = Field(256 * MIB, ge=0, description="Device memory for embeddings of recent images.")
    max_prompts: int = Field(1000, gt=0, description="Prompts in one call.")
    max_points: int = Field(128, gt=0, description="Points in one prompt.")
    max_grid_points: int = Field(
        32_768,
        gt=0,
        description="Points of the grids of one call, over all of its crops; each crop counts as 16 more.",
    )
    max_candidate_bytes: int = Field(
        1024 * MIB,
        gt=0,
        description="Memory for the masks that one call finds in a crop, before deduplication.",
    )
    batching: BatchSettings = Field(
        BatchSettings(max_batch=32, max_queue=100_000),
        description="Items are grid points and prompts; a click waits for at most max_batch of them. On a "
        "GPU, max_batch defaults to what the model decodes at once.",
    )
    max_stream_calls: int = Field(8, gt=0, description="Items of one stream that are processed at a time.")
