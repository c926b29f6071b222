"""SegmentService: translates messages to calls of the engine, and its results to messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import invalid, too_large
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import segment_pb2 as pb
from regionsearch.v1 import segment_pb2_grpc, types_pb2
from services.runtime.batcher import Priority
from services.runtime.interceptor import answer_items, item_status
from services.runtime.requests import Load, check_enums
from services.segmenter import messages
from services.segmenter.call_context import CallContext, LazyImage, Prompted
from services.segmenter.choosing import check_choosable
from services.segmenter.engine import SegmentEngine
from services.segmenter.options import Defaults
from services.segmenter.settings import SegmenterSettings


class SegmentServicer(segment_pb2_grpc.SegmentServiceServicer):
    """Answers the calls of ``regionsearch.v1.SegmentService``.

    Args:
        engine: The engine.
        defaults: What holds where a request leaves an option unset.
        settings: The limits.
        load: Limits the bytes of requests in progress; a stream has many.
    """

    def __init__(
        self,
        engine: SegmentEngine,
        defaults: Defaults,
        settings: SegmenterSettings,
        load: Load | None = None,
    ) -> None:
        self._load = load or Load(settings.max_concurrent_calls, settings.max_concurrent_bytes)
        self._engine = engine
        self._defaults = defaults
        self._settings = settings
        self._limits = settings.image_limits
        self._model = messages.write_model(engine.backend.identity)

    async def Segment(self, request: pb.SegmentRequest, context: Any) -> pb.SegmentResponse:
        """Segments everything, or the object of each prompt."""
        return await self._segment(request, _deadline(context))

    async def SegmentStream(
        self, request_iterator: AsyncIterator[pb.SegmentStreamRequest], context: Any
    ) -> AsyncIterator[pb.SegmentStreamResponse]:
        """Segments many images; answers come in the order of completion."""
        deadline = _deadline(context)

        async def answer(item: pb.SegmentStreamRequest, _: object) -> pb.SegmentStreamResponse:
            try:
                check_enums(item.request)
                with self._load.message(item.ByteSize()):
                    response = await self._segment(item.request, deadline)
            except (Exception, asyncio.CancelledError) as error:  # fails one item, not the stream
                return pb.SegmentStreamResponse(key=item.key, error=item_status(error))
            return pb.SegmentStreamResponse(key=item.key, response=response)

        answers = answer_items(request_iterator, answer, self._settings.max_stream_calls)
        async with contextlib.aclosing(answers):
            async for one in answers:
                yield one

    async def GetModel(
        self, request: pb.SegmentServiceGetModelRequest, context: Any
    ) -> pb.SegmentServiceGetModelResponse:
        """The served model and its defaults."""
        return pb.SegmentServiceGetModelResponse(
            model=self._model,
            everything_defaults=messages.write_everything(self._defaults),
            zoom_default=self._defaults.zoom,
            prompts_choose=self._engine.backend.choices is not None,
            feature_channels=self._engine.backend.feature_channels,
            takes_phrases=self._engine.backend.phrase_finder is not None,
        )

    async def _segment(self, request: pb.SegmentRequest, deadline: float | None) -> pb.SegmentResponse:
        image = await asyncio.to_thread(messages.read_image, request.image, self._limits)
        priority = Priority.BULK if request.priority == types_pb2.PRIORITY_BULK else Priority.INTERACTIVE
        call = CallContext(priority, deadline)
        match request.WhichOneof("mode"):
            case "everything":
                return await self._everything(image, request, call)
            case "prompts":
                return await self._prompts(image, request, call)
            case "known":
                return await self._known(image, request, call)
            case "phrases":
                return await self._phrases(image, request, call)
            case _:
                raise invalid("mode", "mode is missing; set everything, prompts, phrases or known")

    async def _everything(
        self, image: LazyImage, request: pb.SegmentRequest, call: CallContext
    ) -> pb.SegmentResponse:
        options, selection, mode = messages.read_everything(
            request.everything, self._defaults, self._settings.max_grid_points
        )
        found = await self._engine.everything(
            image, options, selection, mode=mode, features=self._features(request), call=call
        )
        encoding = request.output.mask_encoding

        def write() -> pb.SegmentResponse:
            of_image, *features = _rows(found.features, 1 + len(found.regions))
            budget = _ResponseBudget(self._settings.max_message_bytes)
            regions = [
                budget.take(messages.write_region(region, encoding, feature))
                for region, feature in zip(found.regions, features, strict=True)
            ]
            return self._response(
                found.image_size,
                found.cached,
                regions=regions,
                image_features=None if of_image is None else tensor_to_proto(of_image),
            )

        return await asyncio.to_thread(write)

    async def _known(
        self, image: LazyImage, request: pb.SegmentRequest, call: CallContext
    ) -> pb.SegmentResponse:
        self._features(request)  # checks the level
        masks = await asyncio.to_thread(
            messages.read_known, request.known, self._settings.max_prompts, self._limits
        )
        found = await self._engine.pool(image, masks, request.output.features_level, call)
        of_image, *features = map(tensor_to_proto, found.features)
        return self._response(
            found.image_size,
            found.cached,
            regions=[types_pb2.Region(features=one) for one in features],
            image_features=of_image,
        )

    async def _prompts(
        self, image: LazyImage, request: pb.SegmentRequest, call: CallContext
    ) -> pb.SegmentResponse:
        settings, output, backend = self._settings, request.output, self._engine.backend
        if backend.choices is not None:
            check_choosable(request, backend.identity.variant)
        prompts = await asyncio.to_thread(
            messages.read_prompts, request.prompts, settings.max_prompts, settings.max_points, self._limits
        )
        found = await self._engine.prompts(
            image,
            prompts,
            multimask=request.prompts.multimask,
            zoom=messages.read_zoom(request, self._defaults.zoom),
            features=self._features(request),
            logits=output.low_res_logits,
            call=call,
        )

        return await asyncio.to_thread(self._write_answers, found, output)

    async def _phrases(
        self, image: LazyImage, request: pb.SegmentRequest, call: CallContext
    ) -> pb.SegmentResponse:
        texts, min_score = messages.read_phrases(request)
        found = await self._engine.phrases(
            image, texts, min_score=min_score, features=self._features(request), call=call
        )
        return await asyncio.to_thread(self._write_answers, found, request.output)

    def _write_answers(self, found: Prompted, output: pb.OutputOptions) -> pb.SegmentResponse:
        results = []
        budget = _ResponseBudget(self._settings.max_message_bytes)
        for index, answer in enumerate(found.answers):
            features = _rows(None if found.features is None else found.features[index], len(answer))
            candidates = [
                budget.take(
                    messages.write_region(
                        candidate.region,
                        output.mask_encoding,
                        feature,
                        candidate.low_res_logits if output.low_res_logits else None,
                    )
                )
                for candidate, feature in zip(answer, features, strict=True)
            ]
            results.append(pb.PromptResult(candidates=candidates))
        return self._response(found.image_size, found.cached, results=results, truncated=found.truncated)

    def _features(self, request: pb.SegmentRequest) -> int | None:
        return messages.read_features_level(request.output, self._engine.backend.feature_channels)

    def _response(self, image_size: tuple[int, int], cached: bool, **answer: Any) -> pb.SegmentResponse:
        return pb.SegmentResponse(
            image_height=image_size[0],
            image_width=image_size[1],
            model=self._model,
            embedding_cached=cached,
            **answer,
        )


def _rows(features: NDArray[np.float32] | None, count: int) -> list[NDArray[np.float32] | None]:
    return [None] * count if features is None else list(features)


class _ResponseBudget:
    """Keeps a response within the message limit: masks may be far larger than the image was."""

    def __init__(self, max_message_bytes: int) -> None:
        self._most = self._left = max_message_bytes

    def take(self, region: types_pb2.Region) -> types_pb2.Region:
        """Deducts the region's bytes and returns it; raises TOO_LARGE if they do not fit."""
        self._left -= region.ByteSize()
        if self._left < 0:
            raise too_large(
                "output",
                f"the answer takes more than the {self._most} bytes of a message (max_message_bytes); ask "
                "for masks as COCO run lengths, without features and logits, or for fewer regions",
            )
        return region


def _deadline(context: Any) -> float | None:
    """The call's deadline on the event loop's clock."""
    remaining = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining
