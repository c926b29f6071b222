"""EmbedService: messages to calls of the engine, and its answers to messages."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable
from typing import Any, TypeAlias

import grpc
import numpy as np

from regionsearch.errors import invalid, too_large
from regionsearch.images import decoded_bytes, image_from_proto
from regionsearch.tensors import tensor_to_proto
from regionsearch.texts import visible_text
from regionsearch.v1 import embed_pb2 as pb
from regionsearch.v1 import embed_pb2_grpc, types_pb2
from services.embedder.engine import EmbedEngine
from services.embedder.options import CropPolicy, TextTemplates
from services.embedder.request_parsing import read_regions, runs_bytes, split_by_memory
from services.embedder.settings import EmbedderSettings
from services.runtime.batcher import Priority

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_POLICY_PREFIX, _TEMPLATES_PREFIX = "CROP_POLICY_", "TEXT_TEMPLATES_"


class EmbedServicer(embed_pb2_grpc.EmbedServiceServicer):
    """See ``embed.proto``."""

    def __init__(self, engine: EmbedEngine, settings: EmbedderSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._limits = settings.image_limits

    async def EmbedRegions(
        self, request: pb.EmbedRegionsRequest, context: _Context
    ) -> pb.EmbedRegionsResponse:
        """One image: many of its regions and, where asked for, the whole of it."""
        if request.regions or not request.include_image:
            _check_count("regions", len(request.regions), self._settings.max_regions, "max_regions")
        policy = self._policy(request.crop_policy)
        (nbytes,) = await self._decoded_bytes([request.image])
        nbytes += runs_bytes(request)
        parts = [
            await self._engine.embed_regions(
                functools.partial(read_regions, request, self._limits, places),
                len(places),
                policy,
                priority_of(request.priority),
                include_image=request.include_image and places.start == 0,
                nbytes=nbytes,
                continuation=places.start > 0,
                more=len(request.regions) - places.stop,
            )
            for places in split_by_memory(request)
        ]
        vectors = np.concatenate(parts)
        whole, regions = vectors[: request.include_image], vectors[request.include_image :]
        return pb.EmbedRegionsResponse(
            vectors=tensor_to_proto(regions),
            model=self.model(policy),
            image_vector=tensor_to_proto(whole) if request.include_image else None,
        )

    async def EmbedImages(self, request: pb.EmbedImagesRequest, context: _Context) -> pb.EmbedImagesResponse:
        """Embeds whole images."""
        _check_count("images", len(request.images), self._settings.max_images, "max_images")
        reads = [
            functools.partial(image_from_proto, image, self._limits, f"images[{index}]")
            for index, image in enumerate(request.images)
        ]
        nbytes = await self._decoded_bytes(request.images)
        vectors = await self._engine.embed_images(reads, priority_of(request.priority), nbytes=nbytes)
        return pb.EmbedImagesResponse(vectors=tensor_to_proto(vectors), model=self.model())

    async def EmbedTexts(self, request: pb.EmbedTextsRequest, context: _Context) -> pb.EmbedTextsResponse:
        """Embeds texts."""
        _check_count("texts", len(request.texts), self._settings.max_texts, "max_texts")
        for index, text in enumerate(request.texts):
            most = self._settings.max_text_chars
            if len(text) > most:
                message = (
                    f"texts[{index}] has {len(text)} characters, over the limit of {most} (max_text_chars)"
                )
                raise too_large(f"texts[{index}]", f"{message}; shorten it to a few words")
        texts = [visible_text(text) for text in request.texts]
        for index, text in enumerate(texts):
            if not text.strip():
                raise invalid(f"texts[{index}]", f"texts[{index}] is empty; describe what to search for")
        templates = self._templates(request.templates)
        vectors, truncated = await self._engine.embed_texts(texts, templates)
        return pb.EmbedTextsResponse(
            vectors=tensor_to_proto(vectors), truncated=truncated, model=self.model()
        )

    async def GetModel(
        self, request: pb.EmbedServiceGetModelRequest, context: _Context
    ) -> pb.EmbedServiceGetModelResponse:
        """The served model."""
        cut_offs = [
            pb.CutOff(crop_policy=_policy_value(policy), score=score)
            for policy, score in self._engine.backend.files.cut_offs.items()
        ]
        return pb.EmbedServiceGetModelResponse(
            model=self.model(self._settings.crop_policy), cut_offs=cut_offs
        )

    def model(self, policy: CropPolicy | None = None) -> types_pb2.ModelInfo:
        """The model that made a vector; without a crop policy for texts and whole images."""
        backend = self._engine.backend
        return types_pb2.ModelInfo(
            family=backend.files.family,
            variant=backend.files.variant,
            weights_digest=backend.files.digest,
            dimension=backend.dimension,
            crop_policy=_policy_value(policy or "unspecified"),
            precision=backend.precision,
            device=str(backend.device),
        )

    async def _decoded_bytes(self, images: Iterable[types_pb2.Image]) -> list[int]:
        """Memory that images will take once decoded; in a thread, because headers may be long."""
        return await asyncio.to_thread(lambda: [decoded_bytes(image, self._limits) for image in images])

    def _policy(self, value: types_pb2.CropPolicy.ValueType) -> CropPolicy:
        if value == types_pb2.CROP_POLICY_UNSPECIFIED:
            return self._settings.crop_policy
        return CropPolicy(types_pb2.CropPolicy.Name(value).removeprefix(_POLICY_PREFIX).lower())

    def _templates(self, value: pb.TextTemplates.ValueType) -> TextTemplates:
        if value == pb.TEXT_TEMPLATES_UNSPECIFIED:
            return self._settings.text_templates
        return TextTemplates(pb.TextTemplates.Name(value).removeprefix(_TEMPLATES_PREFIX).lower())


def _policy_value(name: str) -> types_pb2.CropPolicy.ValueType:
    return types_pb2.CropPolicy.Value(_POLICY_PREFIX + name.upper())


def priority_of(priority: types_pb2.Priority.ValueType) -> Priority:
    """The priority that a request's priority means."""
    return Priority.BULK if priority == types_pb2.PRIORITY_BULK else Priority.INTERACTIVE


def _check_count(field: str, count: int, most: int, setting: str) -> None:
    if count == 0:
        raise invalid(field, f"{field} is empty; send 1 to {most}")
    if count > most:
        raise too_large(
            field, f"{count} {field} are over the limit of {most} per call ({setting}); send several calls"
        )
