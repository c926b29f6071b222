"""The embedder without its transport: images, regions and texts in, unit vectors out."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionsearch.lru import LruCache
from regionsearch.rpc.calls import gather_or_cancel
from services.embedder.backends.base import Backend
from services.embedder.options import CropPolicy, TextTemplates
from services.embedder.tasks import ImageTask, Pixels, Regions, RegionsTask, TextsTask, cut_batch
from services.runtime.batcher import Batcher, BatchSettings, BatchSlice, Priority
from services.torch_runtime.devices import classify, to_device
from services.torch_runtime.streams import Stage

Vectors = NDArray[np.float32]

SENTENCES_AT_ONCE = 1024  # sentences of one call in the queue
AHEAD = 2  # batches given to a device: one runs, the next one follows it without a pause
TOKENIZED_AT_ONCE = 32  # sentences tokenized at a time; a cancelled call ends before the next ones

_VISION, _TEXT = "vision", "text"


class EmbedEngine:
    """One model on one or several devices, behind one queue. Use it on the event loop that made it.

    Args:
        backends: The same model on each device.
        batching: Limits and times.
        text_cache: Number of texts whose vectors are cached.
        on_fatal: Called when a device is lost.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        batching: BatchSettings,
        *,
        text_cache: int = 10_000,
        on_fatal: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.backend = backends[0]
        self._cache: LruCache[Hashable, tuple[Vectors, bool]] = LruCache(text_cache)
        self._runners = [DeviceRunner(backend, batching.max_batch) for backend in backends]
        self._batcher: Batcher[Any, Vectors] = Batcher(
            "embedder",
            batching,
            prepare=lambda task: task.prepare(self.backend),
            device=self._runners,
            finish=to_vectors,
            classify=classify,
            on_fatal=on_fatal,
        )

    async def warmup(self) -> None:
        """Runs every shape once on every device. Await it before any other call."""
        await asyncio.gather(*(asyncio.to_thread(runner.warmup) for runner in self._runners))

    async def embed_regions(
        self,
        read: Callable[[], Regions],
        count: int,
        policy: CropPolicy,
        priority: Priority = Priority.INTERACTIVE,
        *,
        include_image: bool = False,
        nbytes: int = 0,
        continuation: bool = False,
        more: int = 0,
    ) -> Vectors:
        """Vectors (count, dimension) of the regions of one image, before them that of the whole image.

        Args:
            read: Decodes the image and its regions; called in a thread. What it raises is raised here.
            count: Number of regions that it will return.
            policy: How they are shown to the model.
            priority: Who waits.
            include_image: Whether the whole image is embedded too; the shape is (1 + count, dimension) then.
            nbytes: Memory that the image takes.
            continuation: Other regions of the same call have been embedded; these are not refused.
            more: Regions of the same call that will come later.
        """
        task = RegionsTask(read, count, policy, include_image)
        parts = len(policy.parts)
        crops = np.concatenate(
            await self._batcher.submit(
                task,
                task.items,
                nbytes=nbytes,
                key=_VISION,
                priority=priority,
                continuation=continuation,
                more=more * parts,
            )
        )
        if parts == 1 or not count:
            return crops
        whole, regions = crops[:include_image], crops[include_image:]
        return np.concatenate([whole, _unit(regions.reshape(parts, count, -1).mean(axis=0))])

    async def embed_images(
        self,
        reads: Sequence[Callable[[], Pixels]],
        priority: Priority = Priority.INTERACTIVE,
        *,
        nbytes: Sequence[int] | None = None,
    ) -> Vectors:
        """Vectors (images, dimension) of whole images.

        Args:
            reads: Decode an image each; called in a thread.
            priority: Who waits.
            nbytes: Memory that each image takes.
        """
        found = await gather_or_cancel(
            *(
                self._batcher.submit(ImageTask(read), 1, nbytes=size, key=_VISION, priority=priority)
                for read, size in zip(reads, nbytes or [0] * len(reads), strict=True)
            )
        )
        return np.concatenate([vectors for (vectors,) in found])

    async def embed_texts(
        self, texts: Sequence[str], templates: TextTemplates = TextTemplates.NONE
    ) -> tuple[Vectors, list[bool]]:
        """Vectors (texts, dimension), and for each text whether it was longer than the model's context."""
        found: dict[str, tuple[Vectors, bool] | None] = {
            text: self._cache.get(_cache_key(templates, text)) for text in texts
        }
        missing = [text for text, entry in found.items() if entry is None]
        each = len(templates.fill(""))
        step = max(1, SENTENCES_AT_ONCE // each)
        if missing:
            self._batcher.judge(min(len(missing), step) * each, more=max(0, len(missing) - step) * each)
        for first in range(0, len(missing), step):
            some = missing[first : first + step]
            done = await self._embed_sentences(some, templates)
            for text, (vector, cut) in zip(some, done, strict=True):
                found[text] = vector, cut
                self._cache.put(_cache_key(templates, text), (vector, cut))
        entries = [entry for text in texts if (entry := found[text]) is not None]
        return np.stack([vector for vector, _ in entries]), [truncated for _, truncated in entries]

    async def _embed_sentences(
        self, texts: Sequence[str], templates: TextTemplates
    ) -> list[tuple[Vectors, bool]]:
        sentences = [sentence for text in texts for sentence in templates.fill(text)]
        tokens, cut = [], []
        for first in range(0, len(sentences), TOKENIZED_AT_ONCE):
            some = sentences[first : first + TOKENIZED_AT_ONCE]
            ids, longer = await asyncio.to_thread(self.backend.tokenize, some)
            tokens.append(ids)
            cut += longer
        task = TextsTask(torch.cat(tokens))
        parts = await self._batcher.submit(task, task.items, key=_TEXT, continuation=True)  # judged before
        each = len(sentences) // len(texts)
        vectors = np.concatenate(parts).reshape(len(texts), each, -1)
        vectors = vectors[:, 0] if each == 1 else _unit(vectors.mean(axis=1))
        return [(vectors[i].copy(), any(cut[i * each : (i + 1) * each])) for i in range(len(texts))]

    async def close(self) -> None:
        """Waits for admitted requests, then ends the threads."""
        await self._batcher.close()


class DeviceRunner:
    """Runs batches on one device; called from the thread that owns it."""

    def __init__(self, backend: Backend, max_batch: int) -> None:
        self._backend = backend
        # A GPU or a compiled model needs few different shapes; a CPU would only waste time on padding.
        few = backend.compiled or backend.device.type == "cuda"
        self._buckets = buckets(max_batch) if few else None
        self._cropping, self._computing = Stage(backend.device), Stage(backend.device)
        self._queued: deque[torch.cuda.Event] = deque()  # the ends of the batches that the tower was given

    def warmup(self) -> None:
        """Runs every shape once, so that no caller waits for its initialization."""
        backend = self._backend
        tokens, _ = backend.tokenize(["warm"])
        with self._computing.running():
            for size in self._buckets or (1, 2):
                backend.embed_crops(torch.zeros(size, 3, backend.size, backend.size, device=backend.device))
                backend.embed_tokens(tokens.expand(size, -1).to(backend.device))
        pixels = np.zeros((2 * backend.size, 2 * backend.size, 3), np.uint8)
        boxes = np.array([[0, 0, backend.size, backend.size]], np.float32)
        with self._cropping.running():
            for policy in CropPolicy:
                task = RegionsTask(lambda: Regions(pixels, boxes), 1, policy)
                cut_batch([(task.prepare(backend), 0, task.items)], backend)

    @torch.inference_mode()
    def __call__(self, parts: Sequence[BatchSlice[Any]]) -> PendingVectors:
        """Embeds the items of slices of one tower.

        On a GPU, crops are cut while the tower computes the batch before.
        """
        backend = self._backend
        are_texts = isinstance(parts[0].prepared, TextsTask)
        with self._cropping.running():
            if are_texts:
                tokens = torch.cat([part.prepared.tokens[part.start : part.stop] for part in parts])
                inputs = to_device(tokens, backend.device)
            else:
                inputs = cut_batch([(part.prepared, part.start, part.stop) for part in parts], backend)
            ready = self._cropping.mark()
        if len(self._queued) == AHEAD:
            self._queued.popleft().synchronize()
        with self._computing.running():
            self._computing.receive(ready, [inputs])
            embed = backend.embed_tokens if are_texts else backend.embed_crops
            pending = PendingVectors(embed(self._pad(inputs))[: len(inputs)], [part.size for part in parts])
        if pending.event is not None:
            self._queued.append(pending.event)
        return pending

    def _pad(self, inputs: Tensor) -> Tensor:
        if self._buckets is None:
            return inputs
        size = next((bucket for bucket in self._buckets if bucket >= len(inputs)), len(inputs))
        return torch.cat([inputs, inputs.new_zeros(size - len(inputs), *inputs.shape[1:])])


class PendingVectors:
    """Vectors on their way from the device."""

    def __init__(self, vectors: Tensor, sizes: list[int]) -> None:
        self.sizes = sizes
        self.event: torch.cuda.Event | None = None
        self.host = vectors
        if vectors.is_cuda:
            self.host = torch.empty(vectors.shape, pin_memory=True)
            self.host.copy_(vectors, non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record(torch.cuda.current_stream(vectors.device))


def to_vectors(raw: PendingVectors) -> list[Vectors]:
    """The vectors of each slice, once the device has delivered them.

    Raises:
        FloatingPointError: A vector is not finite; the batcher isolates its request.
    """
    if raw.event is not None:
        raw.event.synchronize()
    vectors: Vectors = raw.host.numpy().copy()
    if not np.isfinite(vectors).all():
        raise FloatingPointError("the model returned values that are not finite")
    return np.split(vectors, np.cumsum(raw.sizes)[:-1])


def buckets(max_batch: int) -> list[int]:
    """Batch sizes for padding and warmup: powers of two and the steps half-way between, up to `max_batch`."""
    sizes = {max_batch}
    size = 1
    while size < max_batch:
        sizes |= {size, min(max_batch, size * 3 // 2)}
        size *= 2
    return sorted(sizes)


def _cache_key(templates: TextTemplates, text: str) -> bytes:
    """A key of fixed size, so that the cache's limit on entries limits its memory."""
    return hashlib.blake2b(f"{templates}\0{text}".encode(), digest_size=16).digest()


def _unit(vectors: NDArray[Any]) -> Vectors:
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return unit
