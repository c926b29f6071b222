"""The segmenter's model behind its queue, on which everything mode, prompts and refinements run their tasks.

Images, slices of everything mode's grid and prompts of all callers go through one queue to the thread that
owns the model, interactive calls first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from services.runtime.batcher import Batcher, BatchSettings, Priority
from services.runtime.memory import MemoryBudget
from services.segmenter.backends.base import Backend, Embedding, Size
from services.segmenter.cache import EmbeddingCache
from services.segmenter.call_context import CallContext, LazyImage
from services.segmenter.grid import Crop
from services.segmenter.prompts import Prompt, PromptedRegion, group_prompts
from services.segmenter.tasks import EncodeTask, Made, PromptTask, Result, Stages, Task, joined
from services.torch_runtime.devices import classify


class ModelQueue:
    """One model behind one queue, with a cache of image embeddings. Use it on the event loop that made it.

    Args:
        backend: The model.
        batching: `max_batch` is the number of grid points that run at once, which bounds how long a click
            waits behind everything mode.
        cache_bytes: Device memory for embeddings of recent images.
        on_fatal: Called with the reason when the device is lost.

    Attributes:
        backend: The model.
        cache: Embeddings of recent images.
        batcher: The queue.
        pixels: Memory for the pixels of images that are cut into crops.
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
        self._stages = stages = Stages(backend)
        self.batcher: Batcher[Task, Result] = Batcher(
            "segmenter",
            batching,
            prepare=stages.prepare,
            device=[stages.run],
            finish=stages.finish,
            classify=classify,
            on_fatal=on_fatal,
        )
        self.pixels = MemoryBudget(batching.max_bytes)

    async def close(self) -> None:
        """Waits for admitted requests, then stops the threads."""
        await self.batcher.close()

    async def embed(self, image: LazyImage, call: CallContext, more: int = 0) -> tuple[Embedding, bool]:
        """Returns the embedding of an image, and whether it came from the cache.

        Args:
            image: The image.
            call: Priority and deadline.
            more: Items that the call will submit afterwards; it is admitted together with them.
        """
        encoding = _Encoding(self, EncodeTask(image.decode, image.nbytes), call, more)
        return await self.cache.get(image.key, encoding, call.priority)

    async def encode(self, task: EncodeTask, call: CallContext, more: int = 0) -> Embedding:
        """Encodes an image, bypassing the cache."""
        results = await self.submit(task, call, more)
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
        """Answers prompts, in pixels of a crop whose embedding is given, with their masks, best first.

        The call will submit `more` items after these.
        """
        answers: list[list[PromptedRegion]] = [[] for _ in prompts]
        groups = group_prompts(prompts)
        later = len(prompts) - len(groups[0]) + more
        for places in groups:
            task = PromptTask(embedding, crop, [prompts[place] for place in places], image_size, multimask)
            found = joined(await self.submit(task, call, later))
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
            call = replace(call, continuation=True)
        return answers

    async def post_process(self, work: Callable[[], Made], embedding: Embedding | None = None) -> Made:
        """Does work in a thread, as a part of the post-processing stage; it may read an embedding."""
        ready = None if embedding is None else embedding.ready
        return await asyncio.to_thread(self._stages.post_process, work, ready)

    async def submit(self, task: Task, call: CallContext, more: int = 0) -> list[Result]:
        """Runs a task; returns one result for each batch that it was split over."""
        # If images are encoded one by one, a batch of several would only make each wait for the others.
        alone = isinstance(task, EncodeTask) and self.backend.encode_batch == 1
        return await self.batcher.submit(
            task,
            len(task),
            nbytes=task.nbytes,
            key=task if alone else None,
            priority=call.priority,
            deadline=call.deadline,
            continuation=call.continuation,
            more=more,
        )


@dataclass
class _Encoding:
    """The encoding of an image, at the most urgent priority of the calls that wait for it."""

    queue: ModelQueue
    task: EncodeTask
    call: CallContext
    more: int

    async def make(self) -> Embedding:
        return await self.queue.encode(self.task, self.call, self.more)

    def escalate(self, priority: Priority) -> None:
        if priority < self.call.priority:
            self.call = replace(self.call, priority=priority)
            self.queue.batcher.escalate(self.task, priority)
