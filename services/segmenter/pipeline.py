"""The one queue to the one thread that owns the model, and the embeddings that are kept beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from services.runtime.batcher import Batcher, BatchSettings, Priority
from services.segmenter.backends.base import Backend, Embedding, Size
from services.segmenter.cache import EmbeddingCache
from services.segmenter.call_context import CallContext, LazyImage
from services.segmenter.grid import Crop
from services.segmenter.prompts import Prompt, PromptedRegion, group_prompts
from services.segmenter.tasks import EncodeTask, PromptTask, Result, Stages, Work, joined
from services.torch_runtime.failures import classify

_T = TypeVar("_T")


class Pipeline:
    """What calls ask of the model; lives on the event loop on which it was made.

    Args:
        backend: The model.
        batching: See :class:`BatchSettings`.
        cache_bytes: Device memory for embeddings of images seen before.
        on_fatal: Called with the reason when the device is lost.
    """

    def __init__(
        self,
        backend: Backend,
        batching: BatchSettings,
        *,
        cache_bytes: int,
        on_fatal: Callable[[str], None],
    ) -> None:
        self.backend = backend
        self.cache = EmbeddingCache(cache_bytes)
        stages = Stages(backend)
        self.batcher: Batcher[Work, Result] = Batcher(
            "segmenter",
            batching,
            prepare=stages.prepare,
            device=[stages.run],
            finish=stages.finish,
            classify=classify,
            on_fatal=on_fatal,
        )

    async def embed(self, picture: LazyImage, call: CallContext, more: int = 0) -> tuple[Embedding, bool]:
        """The embedding of an image, and whether it had been there.

        Args:
            picture: What to encode.
            call: Who waits, and until when.
            more: Items that the call will bring once it has the embedding; it is judged with them.
        """
        encoding = _Encoding(self, EncodeTask(picture.decode, picture.nbytes), call, more)
        return await self.cache.get(picture.key, encoding, call.priority)

    async def encode(self, work: EncodeTask, call: CallContext, more: int = 0) -> Embedding:
        """The embedding of an image that is not kept."""
        results = await self.submit(work, call, more)
        return next(result for result in results if isinstance(result, Embedding))

    async def answer(
        self,
        embedding: Embedding,
        crop: Crop,
        prompts: Sequence[Prompt],
        multimask: bool,
        image_size: Size,
        call: CallContext,
        more: int = 0,
    ) -> list[list[PromptedRegion]]:
        """Answers prompts in pixels of a crop, whose embedding is given; for each its masks, best first.

        The call will bring `more` items then.
        """
        answers: list[list[PromptedRegion]] = [[] for _ in prompts]
        groups = group_prompts(prompts)
        later = len(prompts) - len(groups[0]) + more
        for places in groups:
            work = PromptTask(embedding, crop, [prompts[place] for place in places], image_size, multimask)
            found = joined(await self.submit(work, call, later))
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
            call = replace(call, continuation=True)
        return answers

    async def submit(self, work: Work, call: CallContext, more: int = 0) -> list[Result]:
        """What the parts of a piece of work give."""
        # Where images are encoded one by one, a batch of several would only make each wait for the others.
        alone = isinstance(work, EncodeTask) and self.backend.encode_batch == 1
        return await self.batcher.submit(
            work,
            len(work),
            nbytes=work.nbytes,
            key=work if alone else None,
            priority=call.priority,
            deadline=call.deadline,
            continuation=call.continuation,
            more=more,
        )


@dataclass
class _Encoding:
    """The encoding of an image, in the priority of the fastest of those who wait for it."""

    pipeline: Pipeline
    work: EncodeTask
    call: CallContext
    more: int

    async def make(self) -> Embedding:
        return await self.pipeline.encode(self.work, self.call, self.more)

    def escalate(self, priority: Priority) -> None:
        if priority < self.call.priority:
            self.call = replace(self.call, priority=priority)
            self.pipeline.batcher.escalate(self.work, priority)


async def gather(works: Sequence[Coroutine[None, None, _T]]) -> list[_T]:
    """The results of works that are done side by side; the first error ends them all."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the callers' errors are single ones
    return [task.result() for task in tasks]
