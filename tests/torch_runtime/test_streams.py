from __future__ import annotations

import pytest
import torch

from services.torch_runtime.streams import Stage
from tests.recorded_streams import RecordedStreams


def test_stages_of_a_gpu_are_ordered_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = RecordedStreams(monkeypatch)
    first, second = Stage(torch.device("cuda:1")), Stage(torch.device("cuda:1"))
    with first.running():
        streams.note("one")
        ready = first.mark()
    with second.running():
        second.receive(ready, [torch.zeros(1)])
        streams.note("two")
    second.synchronize()
    streams.note("nothing")
    assert streams.log == [
        "0 runs one",
        "0 records 0.1",
        "1 waits for 0.1",
        "1 uses a tensor",
        "1 runs two",
        "host waits for 1",
        "default runs nothing",
    ]


def test_stages_of_a_cpu_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = RecordedStreams(monkeypatch)
    stage = Stage(torch.device("cpu"))
    with stage.running():
        stage.receive(stage.mark(), [torch.zeros(1)])
        stage.synchronize()
    assert streams.log == []
