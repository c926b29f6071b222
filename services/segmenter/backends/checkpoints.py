"""Weights files of all families: reading, recognising the architecture, loading into a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from regionsearch.errors import Kind, RegionSearchError
from services.segmenter.backends.base import ModelFiles
from services.torch_runtime.model_files import read_tensors

_REMEDY = "restore the file, or pull published weights again with `regionsearch models pull`"
# The tensor whose last (SAM) or first (SAM 2) dimension is the width of the encoder, and the names by width.
_SAM, _SAM_NAMES = (
    "image_encoder.pos_embed",
    {768: "sam_vit_b", 1024: "sam_vit_l", 1280: "sam_vit_h"},
)
_SAM2, _SAM2_NAMES = (
    "image_encoder.trunk.patch_embed.proj.weight",
    {112: "sam2.1_hiera_base_plus", 144: "sam2.1_hiera_large"},
)
_SAM2_NARROW, _SAM2_LAST_BLOCK_OF_SMALL = 96, "image_encoder.trunk.blocks.15.norm1.weight"


def recognise(weights: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the model that tensors belong to, by the shape of its encoder; None if unknown."""
    if _SAM in weights and weights[_SAM].ndim == 4:
        return _SAM_NAMES.get(weights[_SAM].shape[-1])
    if _SAM2 in weights:
        width = weights[_SAM2].shape[0]
        if width == _SAM2_NARROW:
            small = _SAM2_LAST_BLOCK_OF_SMALL in weights
            return "sam2.1_hiera_small" if small else "sam2.1_hiera_tiny"
        return _SAM2_NAMES.get(width)
    return None


def recognise_file(path: Path) -> str | None:
    """As :func:`recognise`, for a file.

    Raises:
        RegionSearchError: DATA_LOSS when the file cannot be read.
    """
    return recognise(read_tensors(path, _REMEDY))


def read_weights(files: ModelFiles) -> dict[str, Tensor]:
    """Reads the tensors of a model's file by name, onto the CPU; nothing in the file is executed.

    Raises:
        RegionSearchError: DATA_LOSS when the file is of another format, or truncated.
    """
    return read_tensors(files.weights, _REMEDY)


def load_weights(model: Any, weights: Mapping[str, Tensor], files: ModelFiles) -> None:
    """Loads tensors into a model.

    Args:
        model: A ``torch.nn.Module``.
        weights: Tensors by name.
        files: The files they were read from, for the error message.

    Raises:
        RegionSearchError: DATA_LOSS when the weights belong to another architecture; names it if it is known,
            else a tensor that is missing or left over.
    """
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except RuntimeError as error:  # names or shapes of another architecture
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"{files.weights} does not hold the weights of a {files.variant}: {_difference(model, weights)}; "
            f"{_REMEDY}",
            field="model",
        ) from error


def _difference(model: Any, weights: Mapping[str, Tensor]) -> str:
    """Says in a few words why weights do not fit."""
    if any(name.startswith(("vision_encoder.", "shared_image_embedding.")) for name in weights):
        return "its tensors are named as the transformers package names them, not as the published files do"
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    name = recognise(weights)
    if name is not None and any(
        name in weights and weights[name].shape != shape for name, shape in expected.items()
    ):
        return f"it holds those of {name}"
    for words, names in (
        ("is missing", sorted(expected.keys() - weights.keys())),
        ("is left over", sorted(weights.keys() - expected.keys())),
    ):
        if names:
            return f"{names[0]} {words}" + (f", and {len(names) - 1} more" if len(names) > 1 else "")
    wrong = next(name for name, shape in expected.items() if weights[name].shape != shape)
    return f"{wrong} has the shape {tuple(weights[wrong].shape)}, not {tuple(expected[wrong])}"
