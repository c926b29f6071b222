"""Encoder, decoder and post-processing have a stream each on a GPU; shown by a stand-in for its streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from services.runtime.batch import BatchSettings
from services.segmenter import everything, tasks
from services.segmenter.backends.base import Embedding
from services.segmenter.backends.sam import SamBackend
from services.segmenter.call_context import LazyImage
from services.segmenter.engine import SegmentEngine
from services.segmenter.options import EverythingOptions
from services.segmenter.prompts import Prompt
from services.torch_runtime.streams import Stage
from tests.recorded_streams import RecordedStreams

ENCODING, DECODING, FINISHING = 0, 1, 2
CLICK = Prompt(np.array([[20.0, 30.0]]), np.array([1], np.int32))
GRID = EverythingOptions(2, pred_iou_thresh=0.0, stability_score_thresh=0.0)


class Noted:
    """A backend that notes on which stream its model runs."""

    def __init__(self, backend: SamBackend, streams: RecordedStreams) -> None:
        self._backend, self._streams = backend, streams

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def encode(self, prepared: Sequence[Any]) -> list[Embedding]:
        self._streams.note("encoder")
        return self._backend.encode(prepared)

    def decode(self, embedding: Embedding, prompts: Any) -> Any:
        self._streams.note("decoder")
        return self._backend.decode(embedding, prompts)


async def test_each_stage_waits_for_what_the_one_before_has_made(
    untrained: SamBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = RecordedStreams(monkeypatch)
    monkeypatch.setattr(tasks, "Stage", lambda device: Stage(torch.device("cuda")))
    measure = everything.measure

    def noted(*args: Any) -> Any:
        streams.note("measuring")
        return measure(*args)

    monkeypatch.setattr(everything, "measure", noted)
    image = LazyImage("key", lambda: np.zeros((60, 80, 3), np.uint8))
    engine = SegmentEngine(Noted(untrained, streams), BatchSettings(max_batch=64), cache_bytes=1 << 24)
    try:
        await engine.everything(image, GRID)
        made = [
            f"{ENCODING} runs encoder",
            f"{ENCODING} records 0.1",
            f"{DECODING} records 1.1",  # the batch of the image had nothing to decode
            f"{FINISHING} waits for 1.1",
            f"host waits for {FINISHING}",
            f"{DECODING} waits for 0.1",
            f"{DECODING} uses a tensor",
            f"{DECODING} runs decoder",
            f"{DECODING} records 1.2",
            f"{FINISHING} waits for 1.2",
            f"{FINISHING} runs measuring",
            f"host waits for {FINISHING}",
            f"host waits for {FINISHING}",  # drawing
            f"{FINISHING} waits for 0.1",  # whose pooling may read the embedding
            f"host waits for {FINISHING}",
        ]
        assert streams.log == made

        streams.log.clear()
        await engine.prompts(image, [CLICK])
        assert streams.log[:5] == [
            f"{DECODING} waits for 0.1",  # of the embedding in the cache
            f"{DECODING} uses a tensor",
            f"{DECODING} runs decoder",
            f"{DECODING} records 1.3",
            f"{FINISHING} waits for 1.3",
        ]
    finally:
        await engine.close()
