"""Conversion between protobuf messages and the engine's types."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import invalid, too_large
from regionsearch.images import ImageLimits, decoded_bytes, image_from_proto
from regionsearch.masks import RunLengthMask
from regionsearch.prompts import read_box
from regionsearch.tensors import (
    mask_from_proto,
    mask_to_proto,
    runs_from_proto,
    tensor_from_proto,
    tensor_to_proto,
)
from regionsearch.v1 import segment_pb2, types_pb2
from services.segmenter.backends.base import ModelIdentity
from services.segmenter.call_context import LazyImage
from services.segmenter.everything import Region
from services.segmenter.options import (
    Defaults,
    EverythingOptions,
    Mode,
    RankBy,
    SelectionOptions,
    planned_points,
)
from services.segmenter.prompts import Prompt, RoughMask
from services.segmenter.tasks import ENCODE_ITEMS


def read_image(image: types_pb2.Image, limits: ImageLimits) -> LazyImage:
    """Reads the image of a request; its pixels are decoded later."""
    if image.WhichOneof("source") == "raw":
        identity = f"{image.raw.height}x{image.raw.width}:".encode() + image.raw.rgb
    else:
        identity = image.encoded
    return LazyImage(
        hashlib.sha256(identity).hexdigest(),
        lambda: image_from_proto(image, limits),
        decoded_bytes(image, limits),
    )


_MODES = {
    segment_pb2.EVERYTHING_MODE_GRID: Mode.GRID,
    segment_pb2.EVERYTHING_MODE_PROPOSALS: Mode.PROPOSALS,
}
_RANKS = {segment_pb2.RANK_BY_AREA: RankBy.AREA}


def read_everything(
    options: segment_pb2.EverythingOptions, defaults: Defaults, max_grid_points: int
) -> tuple[EverythingOptions, SelectionOptions | None, Mode]:
    """Reads and checks the options of everything mode; absent ones take their defaults.

    Raises:
        RegionSearchError: INVALID_ARGUMENT or TOO_LARGE, naming the option.
    """
    everything = replace(defaults.everything, **_given(options, defaults.everything))
    everything.check()
    mode = _read_mode(options, defaults.mode)
    points = planned_points(everything, mode)
    if points + ENCODE_ITEMS * everything.crops > max_grid_points:
        raise too_large(
            f"everything.{'crop_n_layers' if everything.crop_n_layers else 'points_per_side'}",
            f"everything asks for {points} points in {everything.crops} crops, each of which "
            f"counts as {ENCODE_ITEMS} more, over the limit of {max_grid_points} (max_grid_points); lower "
            "points_per_side or crop_n_layers, or raise crop_n_points_downscale_factor",
        )
    if not options.HasField("selection"):
        return everything, None, mode
    given = _given(options.selection, SelectionOptions())
    given["rank_by"] = _RANKS.get(options.selection.rank_by, RankBy.QUALITY)
    selection = replace(SelectionOptions(), **given)
    selection.check()
    return everything, selection, mode


def _read_mode(options: segment_pb2.EverythingOptions, default: Mode) -> Mode:
    """Where to look; setting points_per_side implies the grid."""
    asked = _MODES.get(options.mode)
    if not options.HasField("points_per_side"):
        return asked or default
    if asked is Mode.PROPOSALS:
        raise invalid(
            "everything.points_per_side",
            "everything.points_per_side needs a grid, but everything.mode is proposals; send one of them",
        )
    return Mode.GRID


def _given(message: Any, defaults: EverythingOptions | SelectionOptions) -> dict[str, Any]:
    return {f.name: getattr(message, f.name) for f in fields(defaults) if message.HasField(f.name)}


def write_everything(defaults: Defaults) -> segment_pb2.EverythingOptions:
    """Writes the defaults of everything mode."""
    options = defaults.everything
    [mode] = [value for value, mode in _MODES.items() if mode is defaults.mode]
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return segment_pb2.EverythingOptions(mode=mode, **values)


def read_prompts(
    message: segment_pb2.Prompts, max_prompts: int, max_points: int, limits: ImageLimits
) -> list[Prompt]:
    """Reads the prompts of a request.

    Raises:
        RegionSearchError: INVALID_ARGUMENT or TOO_LARGE, naming the prompt.
    """
    if not message.prompts:
        raise invalid("prompts.prompts", "prompts.prompts is empty; send at least one prompt")
    if len(message.prompts) > max_prompts:
        raise too_large(
            "prompts.prompts",
            f"prompts.prompts has {len(message.prompts)} prompts, over the limit of {max_prompts} "
            "(max_prompts)",
        )
    return [
        _read_prompt(prompt, f"prompts.prompts[{index}]", max_points, limits)
        for index, prompt in enumerate(message.prompts)
    ]


MAX_PHRASES = 64
MIN_SCORE = 0.5  # SAM 3's own


def read_phrases(request: segment_pb2.SegmentRequest) -> tuple[list[str], float]:
    """Reads the phrases of a request, and the least score of what they name.

    Raises:
        RegionSearchError: INVALID_ARGUMENT or TOO_LARGE, naming the field.
    """
    message = request.phrases
    texts = list(message.texts)
    if not texts:
        raise invalid("phrases.texts", "phrases.texts is empty; send at least one phrase")
    if len(texts) > MAX_PHRASES:
        raise too_large(
            "phrases.texts", f"phrases.texts has {len(texts)} phrases; send at most {MAX_PHRASES}"
        )
    for index, text in enumerate(texts):
        if not text.strip():
            raise invalid(f"phrases.texts[{index}]", f"phrases.texts[{index}] is empty; say what to look for")
    min_score = message.min_score if message.HasField("min_score") else MIN_SCORE
    if not 0 <= min_score <= 1:
        raise invalid("phrases.min_score", f"phrases.min_score is {min_score}; give a value from 0 to 1")
    if request.output.low_res_logits:
        raise invalid("output.low_res_logits", "output.low_res_logits is for prompts only; leave it out")
    return texts, min_score


def read_known(message: segment_pb2.KnownRegions, max_masks: int, limits: ImageLimits) -> list[RunLengthMask]:
    """Reads the masks of known regions.

    Raises:
        RegionSearchError: INVALID_ARGUMENT or TOO_LARGE, naming the mask.
    """
    if len(message.masks) > max_masks:
        raise too_large(
            "known.masks",
            f"known.masks has {len(message.masks)} masks, over the limit of {max_masks} (max_prompts)",
        )
    return [
        runs_from_proto(mask, f"known.masks[{index}]", limits.max_pixels)
        for index, mask in enumerate(message.masks)
    ]


def read_features_level(output: segment_pb2.OutputOptions, channels: tuple[int, ...]) -> int | None:
    """The level of the feature map that a request asks for; None where it asks for no features.

    Args:
        output: What is asked for.
        channels: Of the model's maps.

    Raises:
        RegionSearchError: INVALID_ARGUMENT, naming `output.features_level`.
    """
    if not 0 <= output.features_level < len(channels):
        raise invalid(
            "output.features_level",
            f"output.features_level is {output.features_level}; the model's feature maps are 0 to "
            f"{len(channels) - 1}",
        )
    return output.features_level if output.features else None


def read_zoom(request: segment_pb2.SegmentRequest, default: bool) -> bool:
    """Whether answers to prompts are refined.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for zoom with `low_res_logits`: the logits of a refined mask
            belong to its close-up, and could not serve as a prompt on the whole image.
    """
    if not request.output.low_res_logits:
        return request.prompts.zoom if request.prompts.HasField("zoom") else default
    if request.prompts.zoom:
        raise invalid(
            "prompts.zoom", "prompts.zoom and output.low_res_logits cannot be combined; ask for one of them"
        )
    return False


def _read_prompt(prompt: segment_pb2.Prompt, name: str, max_points: int, limits: ImageLimits) -> Prompt:
    has_box, prior = prompt.HasField("box"), prompt.WhichOneof("prior")
    if not prompt.points and not has_box and prior is None:
        raise invalid(name, f"{name} is empty; give points, a box or a mask")
    if len(prompt.points) > max_points:
        raise too_large(
            f"{name}.points",
            f"{name}.points has {len(prompt.points)} points, over the limit of {max_points} (max_points)",
        )
    labels = [point.label if point.HasField("label") else 1 for point in prompt.points]
    if any(label not in (0, 1) for label in labels):
        raise invalid(
            f"{name}.points", f"{name}.points has a label other than 1 (object) and 0 (not the object)"
        )
    points = np.array([(point.x, point.y) for point in prompt.points], np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise invalid(f"{name}.points", f"{name}.points holds NaN or infinity; send pixels")
    box = read_box(prompt.box, f"{name}.box") if has_box else None
    mask = prompt.mask
    decode = functools.partial(mask_from_proto, mask, f"{name}.mask", limits.max_pixels)
    return Prompt(
        points,
        np.array(labels, np.int32),
        box,
        RoughMask((mask.height, mask.width), decode) if prior == "mask" else None,
        tensor_from_proto(prompt.mask_logits, f"{name}.mask_logits", ndim=2)
        if prior == "mask_logits"
        else None,
    )


def write_region(
    region: Region,
    encoding: types_pb2.MaskEncoding.ValueType,
    features: NDArray[np.float32] | None = None,
    logits: NDArray[np.float32] | None = None,
) -> types_pb2.Region:
    """Writes a region. Boxes of messages are half-open; those of the engine name the outermost pixels."""
    left, top, right, bottom = region.box
    if region.area == 0:
        right, bottom = left - 1, top - 1
    crop = region.crop
    message = types_pb2.Region(
        box=types_pb2.Box(x_min=left, y_min=top, x_max=right + 1, y_max=bottom + 1),
        mask=write_mask(region, encoding),
        predicted_iou=region.predicted_iou,
        # NaN for a mask that is empty at every threshold.
        stability_score=0.0 if math.isnan(region.stability_score) else region.stability_score,
        area=region.area,
        crop_box=types_pb2.Box(x_min=crop.left, y_min=crop.top, x_max=crop.right, y_max=crop.bottom),
    )
    if region.point is not None:
        message.prompt_point.CopyFrom(types_pb2.Point(x=region.point[0], y=region.point[1], label=1))
    if features is not None:
        message.features.CopyFrom(tensor_to_proto(features))
    if logits is not None:
        message.low_res_logits.CopyFrom(tensor_to_proto(logits))
    return message


def write_mask(region: Region, encoding: types_pb2.MaskEncoding.ValueType) -> types_pb2.Mask:
    """Writes a mask; COCO run lengths are passed on without decoding them."""
    if encoding in (types_pb2.MASK_ENCODING_PACKED_BITS, types_pb2.MASK_ENCODING_PNG):
        return mask_to_proto(region.runs.to_mask(), encoding)
    height, width = region.runs.size
    return types_pb2.Mask(height=height, width=width, coco_rle=region.runs.coco_rle())


def write_model(identity: ModelIdentity) -> types_pb2.ModelInfo:
    """Writes the model's identity."""
    return types_pb2.ModelInfo(
        family=identity.family,
        variant=identity.variant,
        weights_digest=identity.digest,
        precision=identity.precision,
        device=identity.device,
    )
