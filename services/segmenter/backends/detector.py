"""A detector of objects and their masks, from an ONNX file: FastSAM, or any other YOLOv8 that segments.

FastSAM's published weights and the package that exports them are under the AGPL, so that neither is bundled:
users export the file themselves. The code here follows from the outputs of such a network: boxes, scores and
mask coefficients for each anchor, and prototype masks that the coefficients weight. Sources: Zhao
et al. 2023, "Fast Segment Anything"; Bolya et al. 2019, "YOLACT" (prototype masks).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.images import Pixels
from services.segmenter.backends.base import Embedding, Geometry, ResizeStep
from services.segmenter.options import MAX_PROPOSALS

_SIDE = 1024  # of the input, if the file does not say: FastSAM's
_GREY = 114  # around an image that is not square
_STRIDE = 4  # of the prototype masks
_ANCHOR_STRIDES = 8, 16, 32
_PRECISIONS = {"tensor(float)": "fp32", "tensor(float16)": "fp16"}


@dataclass(frozen=True)
class Detections:
    """The objects detected in one image, best first.

    Attributes:
        boxes: float32 (n, 4) as x_min, y_min, x_max, y_max, half-open, in pixels of the image.
        scores: float32 (n,).
        coefficients: float32 (n, m), weights of the prototype masks.
    """

    boxes: Tensor
    scores: Tensor
    coefficients: Tensor


class Detector:
    """A detector loaded from its file.

    Args:
        path: An export with raw outputs: (1, 4 + classes + m, anchors) and prototypes (1, m, h, w). A third
            output (1, c, h, w), if present, is a feature map that regions are pooled from.
        device: ``cpu`` or ``cuda:N``, which needs the package onnxruntime-gpu.

    Raises:
        RegionSearchError: DATA_LOSS when the file is damaged or holds another network, FAILED_PRECONDITION
            when ONNX Runtime is not installed or cannot use the device.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.device = device
        self._session = _open(path, device)
        [entry, *_] = self._session.get_inputs()
        self._input = entry.name
        if entry.type not in _PRECISIONS or len(entry.shape) != 4:
            raise _foreign(path, f"its input is a {entry.type} of the shape {entry.shape}")
        self.precision = _PRECISIONS[entry.type]
        self._dtype = np.float16 if self.precision == "fp16" else np.float32
        height, width = entry.shape[2:]
        if not isinstance(height, int) or not isinstance(width, int):
            described = self._session.get_modelmeta().custom_metadata_map.get("imgsz")
            height, width = json.loads(described) if described else (_SIDE, _SIDE)
        self.size: tuple[int, int] = height, width
        self.mask_size = height // _STRIDE, width // _STRIDE
        self.channels = 0  # of the map that regions are pooled from
        nothing = torch.zeros(3, height, width, dtype=torch.uint8)
        try:
            shapes = [tuple(output.shape) for output in self._run(nothing)]
        except Exception as error:  # whatever the runtime raises for a graph that it cannot run
            raise _foreign(path, f"it cannot be run ({error})") from error
        anchors = sum((height // stride) * (width // stride) for stride in _ANCHOR_STRIDES)
        match shapes:
            case [(values, count), (m, *mask_size), *maps] if (count, *mask_size) == (
                anchors,
                *self.mask_size,
            ):
                fits = values >= 5 + m
                self.channels = maps[0][0] if maps else m
            case _:
                fits = False
        if not fits:
            raise _foreign(path, f"its outputs have the shapes {', '.join(map(str, shapes))}")

    def prepare(self, image: Pixels) -> tuple[Tensor, Geometry]:
        """Resizes an image to fill the input along one axis, with grey around it (letterbox). Thread-safe."""
        height, width = image.shape[:2]
        gain = min(self.size[0] / height, self.size[1] / width)
        inside = max(1, round(height * gain)), max(1, round(width * gain))
        top, left = ((whole - part) // 2 for whole, part in zip(self.size, inside, strict=True))
        resized = image if inside == (height, width) else cv2.resize(image, inside[::-1])
        padded = np.full((*self.size, 3), _GREY, np.uint8)
        padded[top : top + inside[0], left : left + inside[1]] = resized
        steps = _steps(self.mask_size, (top, left), inside, (height, width))
        geometry = Geometry((height, width), inside, self.size, steps, (top, left))
        return torch.from_numpy(padded).permute(2, 0, 1), geometry

    def embed(self, prepared: tuple[Tensor, Geometry]) -> Embedding:
        """Runs the network; the features are the map to pool from, the anchors and the prototypes."""
        pixels, geometry = prepared
        anchors, prototypes, *features = self._run(pixels)
        return Embedding((features[0] if features else prototypes, anchors, prototypes), geometry)

    def _run(self, image: Tensor) -> list[Tensor]:
        """The network's outputs for a prepared image (3, H, W): raw anchors, prototypes, features if any."""
        pixels = image.numpy()[None] / np.float32(255)
        outputs = self._session.run(None, {self._input: pixels.astype(self._dtype, copy=False)})
        return [torch.from_numpy(output[0].astype(np.float32)).to(self.device) for output in outputs]


def detect(embedding: Embedding, min_score: float, nms_thresh: float) -> Detections:
    """Decodes the anchors of an embedding to at most `MAX_PROPOSALS` objects, best first.

    Args:
        embedding: The result of :meth:`Detector.embed`.
        min_score: Anchors must score more, in the best of their classes.
        nms_thresh: Box IoU above which the worse of two objects is dropped, regardless of their classes.
    """
    _, anchors, prototypes = embedding.features
    scores = anchors[4 : -len(prototypes)].amax(dim=0)
    anchors = anchors[:, scores > min_score].t()
    scores = scores[scores > min_score]
    middles, halves = anchors[:, :2], anchors[:, 2:4] / 2
    boxes = torch.cat([middles - halves, middles + halves], dim=1)
    kept = nms(boxes, scores, nms_thresh)[:MAX_PROPOSALS]
    boxes, geometry = boxes[kept], embedding.geometry
    boxes = boxes - torch.tensor([*geometry.corner[::-1]] * 2, device=boxes.device)
    for axis in (0, 1):
        size = geometry.image_size[axis]
        boxes[:, 1 - axis :: 2] /= geometry.input_size[axis] / size
        boxes[:, 1 - axis :: 2].clamp_(0, size)
    return Detections(boxes, scores[kept], anchors[kept, -len(prototypes) :])


def _steps(
    mask_size: tuple[int, int],
    corner: tuple[int, int],
    inside: tuple[int, int],
    image_size: tuple[int, int],
) -> tuple[ResizeStep, ...]:
    """The steps from prototypes to pixels: cut off the grey border, after an enlargement by 2 or 4 if it does
    not end on a whole pixel otherwise.
    """
    border = [_STRIDE * part - whole for part, whole in zip(mask_size, inside, strict=True)]
    edges = (*corner, *border)
    scale = next(scale for scale in (1, 2, 4) if all(edge * scale % _STRIDE == 0 for edge in edges))
    cut = ResizeStep(
        (mask_size[0] * scale, mask_size[1] * scale),
        (inside[0] * scale // _STRIDE, inside[1] * scale // _STRIDE),
        (corner[0] * scale // _STRIDE, corner[1] * scale // _STRIDE),
    )
    return cut, ResizeStep(image_size, image_size)


def _open(path: Path, device: torch.device) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"{path} needs the package onnxruntime: pip install 'regionsearch[fastsam]'",
            field="model",
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise RegionSearchError(
                Kind.FAILED_PRECONDITION,
                f"onnxruntime cannot use {device}: install onnxruntime-gpu in its place, or set the "
                "device to cpu",
                field="device",
            )
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the runtime has its own exception for each kind of damage
        raise _foreign(path, f"it cannot be read ({error})") from error


def _foreign(path: Path, reason: str) -> RegionSearchError:
    return RegionSearchError(
        Kind.DATA_LOSS,
        f"{path} is not a segmenting YOLOv8 with raw outputs: {reason}; export it again, without NMS, as "
        "docs/models.md describes",
        field="model",
    )


def check_precision(asked: str, detector: Detector) -> None:
    """Checks that the precision asked for is that of the file.

    Raises:
        RegionSearchError: INVALID_ARGUMENT.
    """
    if asked not in ("auto", detector.precision):
        raise invalid(
            "precision",
            f"precision is {asked}, and the model was exported in {detector.precision}; set it to auto or "
            f"{detector.precision}, or export the model again",
        )


def limits_of(boxes: Tensor) -> NDArray[np.int64]:
    """The pixels whose top left corner lies in each box: (n, 4) as top, bottom, left, right, half-open."""
    edges = boxes.ceil().to(torch.int64).cpu().numpy()
    return edges[:, [1, 3, 0, 2]]
