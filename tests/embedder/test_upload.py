"""What a batch asks of a GPU, counted on the CPU: one copy to the device, and no wait for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from services.embedder import upload
from services.embedder.crop_plan import pixel_box
from services.embedder.options import CropPolicy
from services.embedder.tasks import ImageTask, Regions, RegionsTask, cut_batch
from services.embedder.upload import Upload

CPU = torch.device("cpu")
SIZE = 120, 160
# Copies to a device, or waits for one: the host wants to know a value, or lets it index with its own numbers.
ASKS = re.compile(r"to|cuda|tensor|as_tensor|cpu|item|tolist|nonzero|__(bool|int|float|index)__")


class Asked(TorchFunctionMode):
    """Counts calls that would copy something to the device or wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        device = any(isinstance(part, torch.device) for part in (*args, *kwargs.values()))
        if name in ("__getitem__", "__setitem__"):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(place, list | Tensor) for place in places):
                self.counted[name] += 1
        elif ASKS.fullmatch(name) and (device or name not in ("to", "tensor", "as_tensor")):
            self.counted[name] += 1
        return func(*args, **kwargs)


def regions_of(count: int) -> Regions:
    """An image with boxes of many sizes, each with a mask."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 100, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 60, (count, 2))], axis=1).astype(np.float32)
    windows = [pixel_box(box, *SIZE) for box in boxes.tolist()]
    masks = [rng.random((window.height, window.width)) < 0.7 for window in windows]
    return Regions(rng.integers(0, 256, (*SIZE, 3), np.uint8), boxes, masks)


@pytest.fixture
def crops_as_on_a_gpu(backend: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Crops of a batch of regions and a whole image, and what was asked of the device for them."""

    def make(policy: CropPolicy) -> tuple[Tensor, Tensor, Counter[str]]:
        regions = regions_of(20)
        tasks: list[Any] = [
            RegionsTask(lambda: regions, 20, policy, include_image=True),
            ImageTask(lambda: regions.pixels),
        ]
        on_cpu = cut_batch([(task.prepare(backend), 0, task.items) for task in tasks], backend)
        slices = [(task.prepare(backend), 0, task.items) for task in tasks]
        with monkeypatch.context() as patched, Asked() as asked:
            patched.setattr(upload, "on_host", lambda device: False)
            crops = cut_batch(slices, backend)
        return crops, on_cpu, asked.counted

    return make


@pytest.mark.parametrize("policy", CropPolicy)
def test_a_batch_is_copied_at_once_and_nothing_waits_for_it(
    crops_as_on_a_gpu: Any, policy: CropPolicy
) -> None:
    crops, on_cpu, asked = crops_as_on_a_gpu(policy)
    assert asked == {"to": 1}
    assert torch.equal(crops, on_cpu)


def test_masks_that_do_not_fit_are_copied_when_they_are_needed(
    crops_as_on_a_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PACKED_BYTES", 100_000)
    crops, on_cpu, asked = crops_as_on_a_gpu(CropPolicy.BLUR)
    assert 1 < asked["to"] < 20
    assert torch.equal(crops, on_cpu)


def test_tensors_of_any_type_and_shape_arrive_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "on_host", lambda device: False)
    sent = Upload(CPU)
    tensors = [
        torch.arange(7, dtype=torch.uint8),
        torch.randn(3, 5).T,
        torch.tensor([[True], [False]]),
        torch.zeros(0, 4),
        torch.tensor(2**40),
    ]
    received = [sent.add(tensor) for tensor in tensors]
    sent.send()
    for tensor, there in zip(tensors, received, strict=True):
        assert torch.equal(there(), tensor)
        assert there().data_ptr() != tensor.data_ptr() or not tensor.numel()
