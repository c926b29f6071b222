"""A segmenter and an embedder of a world of flat colours: exact, instant, searchable by words.

Every colour of an image except white is one region; a region's vector is its mean colour, its features are
the shape of its box; colour names embed to the colours themselves. Calls are recorded, and can be made to
wait or to fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import ImageColor

from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.images import image_from_proto
from regionsearch.masks import mask_box
from regionsearch.rpc.calls import caller
from regionsearch.tensors import mask_from_proto, mask_to_proto, tensor_to_proto
from regionsearch.v1 import embed_pb2, embed_pb2_grpc, segment_pb2, segment_pb2_grpc, types_pb2
from services.runtime.server import Lifespan, Server, run
from services.runtime.settings import ServiceSettings

DIMENSION = 4
FEATURES = 2
SEGMENTER = types_pb2.ModelInfo(family="sam", variant="flat", weights_digest="5" * 64)
EMBEDDER = types_pb2.ModelInfo(
    family="open_clip",
    variant="colours",
    weights_digest="e" * 64,
    dimension=DIMENSION,
    crop_policy=types_pb2.CROP_POLICY_BLUR,
)


@dataclass
class Script:
    """What the fakes are told and what they have seen."""

    calls: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[RegionSearchError]] = field(
        default_factory=dict
    )  # per method, used up one by one
    hold: dict[str, asyncio.Event] = field(default_factory=dict)  # a method waits for its event
    cancelled: Counter[str] = field(default_factory=Counter)
    model: types_pb2.ModelInfo = field(default_factory=lambda: EMBEDDER)
    model_reads: int = 0  # GetModel of the embedder
    cut_offs: list[embed_pb2.CutOff] = field(default_factory=list)
    requests: list[object] = field(default_factory=list)
    takes_phrases: bool = False
    callers: dict[str, list[str]] = field(default_factory=dict)  # of the calls of a method, in their order

    @contextlib.asynccontextmanager
    async def call(self, method: str, request: object) -> AsyncIterator[None]:
        """Around every call."""
        self.calls[method] += 1
        self.requests.append(request)
        self.callers.setdefault(method, []).append(caller())
        if self.failures.get(method):
            raise self.failures[method].pop(0)
        try:
            if method in self.hold:
                await self.hold[method].wait()
            yield
        except asyncio.CancelledError:
            self.cancelled[method] += 1
            raise


class FakeSegmenter(segment_pb2_grpc.SegmentServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def Segment(self, request, context):
        async with self._script.call("Segment", request):
            pixels = image_from_proto(request.image)
            height, width = pixels.shape[:2]
            answer = segment_pb2.SegmentResponse(
                image_height=height, image_width=width, model=SEGMENTER, embedding_cached=True
            )
            if request.output.features or request.HasField("known"):
                answer.image_features.CopyFrom(tensor_to_proto(shape_vector(np.ones((height, width)))))
            if request.HasField("known"):
                shapes = [shape_vector(mask_from_proto(mask)) for mask in request.known.masks]
                answer.regions.extend(types_pb2.Region(features=tensor_to_proto(one)) for one in shapes)
                return answer
            masks = colour_masks(pixels)
            if request.HasField("phrases"):  # names of colours
                if not self._script.takes_phrases:
                    raise RegionSearchError(
                        Kind.FAILED_PRECONDITION, "it does not take phrases", field="phrases.texts"
                    )
                for text in request.phrases.texts:
                    colour = ImageColor.getrgb(text)
                    named = [mask for mask in masks if tuple(pixels[mask][0]) == colour]
                    answer.results.add(candidates=[region(mask) for mask in named])
                    answer.truncated.append(False)
                return answer
            if request.WhichOneof("mode") == "everything":
                selection = request.everything.selection
                limit = selection.max_regions if selection.HasField("max_regions") else 64
                answer.regions.extend(region(mask, request.output.features) for mask in masks[:limit])
            else:
                for prompt in request.prompts.prompts:
                    chosen = [mask for mask in masks if fits(mask, prompt)][:1] or [
                        np.zeros_like(pixels[:, :, 0], bool)
                    ]
                    answer.results.add(candidates=[region(mask, request.output.features) for mask in chosen])
            return answer

    async def GetModel(self, request, context):
        return segment_pb2.SegmentServiceGetModelResponse(
            model=SEGMENTER,
            everything_defaults={"mode": segment_pb2.EVERYTHING_MODE_PROPOSALS},
            prompts_choose=True,
            feature_channels=[FEATURES],
            takes_phrases=self._script.takes_phrases,
        )


class FakeEmbedder(embed_pb2_grpc.EmbedServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def _model(self, policy: int) -> types_pb2.ModelInfo:
        model = types_pb2.ModelInfo()
        model.CopyFrom(self._script.model)
        model.crop_policy = policy
        return model

    async def EmbedRegions(self, request, context):
        async with self._script.call("EmbedRegions", request):
            pixels = image_from_proto(request.image)
            rows = [colour_vector(pixels[mask_from_proto(cut.mask)].mean(axis=0)) for cut in request.regions]
            vectors = np.array(rows, np.float32).reshape(len(rows), DIMENSION)
            model = self._model(request.crop_policy or self._script.model.crop_policy)
            answer = embed_pb2.EmbedRegionsResponse(vectors=tensor_to_proto(vectors), model=model)
            if request.include_image:
                whole = colour_vector(pixels.mean(axis=(0, 1)))
                answer.image_vector.CopyFrom(tensor_to_proto(whole[None]))
            return answer

    async def EmbedImages(self, request, context):
        async with self._script.call("EmbedImages", request):
            pixels = [image_from_proto(image, field=f"images[{i}]") for i, image in enumerate(request.images)]
            rows = [colour_vector(one.mean(axis=(0, 1))) for one in pixels]
            return embed_pb2.EmbedImagesResponse(
                vectors=tensor_to_proto(np.stack(rows)), model=self._model(0)
            )

    async def EmbedTexts(self, request, context):
        async with self._script.call("EmbedTexts", request):
            if any(not text.strip() for text in request.texts):
                raise invalid("texts", "blank")
            return embed_pb2.EmbedTextsResponse(
                vectors=tensor_to_proto(np.stack([text_vector(text) for text in request.texts])),
                truncated=[len(text.split()) > 75 for text in request.texts],
                model=self._model(0),
            )

    async def GetModel(self, request, context):
        self._script.model_reads += 1
        model = self._model(self._script.model.crop_policy)
        return embed_pb2.EmbedServiceGetModelResponse(model=model, cut_offs=self._script.cut_offs)


def colour_masks(pixels: np.ndarray) -> list[np.ndarray]:
    """One mask for each colour but white, largest first."""
    packed = pixels.astype(np.int64) @ (65536, 256, 1)
    colours, counts = np.unique(packed, return_counts=True)
    order = sorted(zip(-counts, colours, strict=True))
    return [packed == colour for _, colour in order if colour != 0xFFFFFF]


def region(mask: np.ndarray, features: bool = False) -> types_pb2.Region:
    box = mask_box(mask) or (0, 0, 0, 0)
    return types_pb2.Region(
        box=types_pb2.Box(x_min=box[0], y_min=box[1], x_max=box[2], y_max=box[3]),
        mask=mask_to_proto(mask),
        area=int(mask.sum()),
        predicted_iou=0.9,
        stability_score=0.95,
        features=tensor_to_proto(shape_vector(mask)) if features else None,
    )


def fits(mask: np.ndarray, prompt: segment_pb2.Prompt) -> bool:
    """Whether a mask holds the foreground points and none of the others, or fills most of the box."""
    height, width = mask.shape
    for point in prompt.points:
        x, y = int(point.x), int(point.y)
        inside = 0 <= x < width and 0 <= y < height and bool(mask[y, x])
        if inside != (not point.HasField("label") or point.label == 1):
            return False
    if prompt.HasField("box"):
        box = prompt.box
        part = mask[int(box.y_min) : int(box.y_max), int(box.x_min) : int(box.x_max)]
        return bool(part.size and part.mean() > 0.5)
    return bool(prompt.points)


def colour_vector(colour: np.ndarray) -> np.ndarray:
    """A unit vector whose direction is the hue; white has one of its own."""
    rgb = np.asarray(colour, np.float32) / 255
    vector = np.append(rgb - rgb.min() * 0.9, 0.1).astype(np.float32)
    return vector / np.linalg.norm(vector)


def shape_vector(mask: np.ndarray) -> np.ndarray:
    """A unit vector whose direction is that of the mask's diagonal."""
    left, top, right, bottom = mask_box(mask != 0) or (0, 0, 1, 1)
    vector = np.array([right - left, bottom - top], np.float32)
    return vector / np.linalg.norm(vector)


def text_vector(text: str) -> np.ndarray:
    """The colour that a text names, or else a direction of its own."""
    for word in text.lower().split():
        with contextlib.suppress(ValueError):
            return colour_vector(np.array(ImageColor.getrgb(word)))
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    vector = np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)
    return vector / np.linalg.norm(vector)


class FakeSettings(ServiceSettings):
    process = "fake"
    grace_s: float = 1.0
    drain_delay_s: float = 0.0


def lifespan(register: Callable[..., None], servicer: object) -> Lifespan:
    """The life of a fake service."""

    @contextlib.asynccontextmanager
    async def live(server: Server) -> AsyncIterator[None]:
        server.add(register, servicer)
        yield

    return live


if __name__ == "__main__":  # a replica of the embedder that a test can kill
    run(
        FakeSettings.load(),
        [embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]],
        lifespan(embed_pb2_grpc.add_EmbedServiceServicer_to_server, FakeEmbedder(Script())),
    )
