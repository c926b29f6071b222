"""Settings of the embedder's process."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from services.embedder.options import CropPolicy, TextTemplates
from services.runtime.batcher import BatchSettings
from services.torch_runtime.settings import ModelServiceSettings


class EmbedderSettings(ModelServiceSettings):
    """``REGIONSEARCH_EMBEDDER_…``, or ``[embedder]`` in the TOML file."""

    process: ClassVar[str] = "embedder"

    port: int = Field(50052, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    model: str = Field(
        "pocket",
        description="pocket, an open_clip name such as ViT-B-32 or ViT-B-32:openai, an embedder.json, or a "
        "folder with an open_clip_config.json.",
    )
    weights: Path | None = Field(
        None, description="Weights file of an open_clip model; absent: the pulled weights."
    )
    random_weights: bool = Field(
        False, description="For benchmarks and tests: run any model without its weights."
    )
    device: str = Field(
        "auto",
        description="auto, cpu, cuda, or several such as cuda:0,cuda:1; auto uses every GPU.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto is fp32 on a CPU, bf16 on a GPU that has it, fp16 on any other."
    )
    compile: bool = Field(
        False,
        description="Run the image tower through torch.compile, which needs a C++ compiler; startup takes "
        "minutes longer.",
    )
    crop_policy: CropPolicy = Field(CropPolicy.BLUR, description="Crop policy of requests that name none.")
    text_templates: TextTemplates = Field(
        TextTemplates.NONE, description="Templates of requests that name none."
    )
    text_cache: int = Field(10_000, ge=0, description="Texts whose vectors are cached.")
    max_regions: int = Field(1000, gt=0, description="Regions in one call.")
    max_images: int = Field(64, gt=0, description="Images in one call.")
    max_texts: int = Field(1000, gt=0, description="Texts in one call.")
    max_text_chars: int = Field(
        10_000, gt=0, description="Characters of one text; the model reads far fewer."
    )
    batching: BatchSettings = Field(BatchSettings(), description="Items are crops, images and sentences.")
