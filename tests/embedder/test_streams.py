from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from services.embedder import engine
from services.embedder.engine import DeviceRunner
from services.embedder.options import CropPolicy
from services.embedder.tasks import Regions, RegionsTask
from services.runtime.batch import BatchSlice
from services.torch_runtime.streams import Stage
from tests.recorded_streams import RecordedEvent, RecordedStreams

CROPPING, COMPUTING = 0, 1


def test_crops_of_a_batch_are_cut_while_the_tower_computes_the_one_before(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = RecordedStreams(monkeypatch)
    monkeypatch.setattr(engine, "Stage", lambda device: Stage(torch.device("cuda")))
    batches: list[int] = []

    class Pending:
        def __init__(self, vectors: torch.Tensor, sizes: list[int]) -> None:
            streams.note("tower")
            batches.append(len(vectors))
            self.event = RecordedEvent(f"batch {len(batches)}", streams.log)

    monkeypatch.setattr(engine, "PendingVectors", Pending)
    regions = Regions(np.zeros((40, 50, 3), np.uint8), np.array([[5.0, 5.0, 30.0, 30.0]], np.float32))
    task = RegionsTask(lambda: regions, 1, CropPolicy.BBOX)
    run = DeviceRunner(backend, 8)
    for _ in range(3):
        request: Any = SimpleNamespace(prepared=task.prepare(backend))
        run([BatchSlice(request, 0, 1)])
    assert batches == [1, 1, 1]
    turns = [
        [
            f"{CROPPING} records 0.{number}",
            f"{COMPUTING} waits for 0.{number}",
            f"{COMPUTING} uses a tensor",
            f"{COMPUTING} runs tower",
        ]
        for number in (1, 2, 3)
    ]
    turns[2].insert(1, "host waits for batch 1")
    assert streams.log == [line for turn in turns for line in turn]
