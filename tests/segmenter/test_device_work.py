"""What everything mode asks of a GPU, counted on the CPU: kernels to start, and waits for their results."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import profile

from services.segmenter import masks
from services.segmenter.backends.base import DecodedMasks, Embedding, Geometry
from services.segmenter.backends.proposer import HeadProposer, ProposalHead
from services.segmenter.backends.sam import SamBackend
from services.segmenter.everything import decode_points, draw_candidates, filter_survivors
from services.segmenter.grid import Crop, grid_points
from services.segmenter.options import EverythingOptions

# Operations that only look at a tensor in another way, or allocate one.
VIEWS = re.compile(
    r"alias|as_strided|detach|empty\w*|expand|flatten|lift_fresh|new_empty|narrow|permute|reshape|resize_|"
    r"resolve_\w+|result_type|select|slice|split\w*|squeeze|t|to|transpose|unbind|unflatten|unsqueeze|view|"
    r"_reshape_alias|_unsafe_view"
)

# What has to wait until the device is done, because the host wants to know a value or a number of values.
WAITS = re.compile(r"cpu|item|tolist|nonzero|masked_select|unique\w*|__(bool|int|float|index|contains)__")


class Waits(TorchFunctionMode):
    """Counts calls that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        by_mask = name in ("__getitem__", "__setitem__") and any(
            isinstance(part, torch.Tensor) and part.dtype == torch.bool
            for part in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if WAITS.fullmatch(name) or by_mask:
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[tuple[Counter[str], Counter[str]]]:
    """Counts (kernels, waits) inside, by name; complete when it ends."""
    kernels: Counter[str] = Counter()
    waits = Waits()
    with profile() as profiled, waits:
        yield kernels, waits.counted
    for event in profiled.events():
        if event.cpu_parent is None:
            kernels.update(started(event))


def started(event: Any) -> Counter[str]:
    """The kernels that an operation starts: those of the operations that it consists of, or its own."""
    inside = sum(map(started, event.cpu_children), Counter[str]())
    name = event.name.removeprefix("aten::")
    return inside or Counter([name] if event.name.startswith("aten::") and not VIEWS.fullmatch(name) else [])


@pytest.fixture
def as_on_a_gpu(untrained: SamBackend, monkeypatch: pytest.MonkeyPatch) -> SamBackend:
    """A backend that works in the portions, and with the operations, that a GPU gets."""
    monkeypatch.setattr(untrained, "decode_batch", 256)
    monkeypatch.setitem(masks.PASSES, "cpu", masks.PASSES["cuda"])
    monkeypatch.setattr(masks, "on_host", lambda values: False)
    return untrained


def test_launches_and_waits_of_an_image_are_bounded(as_on_a_gpu: SamBackend) -> None:
    """1,024 points of which 900 masks survive took 45,000 kernels and 1,600 waits, mask by mask."""
    backend, size = as_on_a_gpu, (125, 185)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    options = EverythingOptions(pred_iou_thresh=0.0, stability_score_thresh=0.0)
    (embedding,) = backend.encode([backend.prepare(image)])
    crop = Crop.whole(size)
    with counting() as (kernels, waits):
        parts = [
            decode_points(backend, embedding, points, options)
            for points in np.split(grid_points(crop, options), 1024 // backend.decode_batch)
        ]
        candidates = []
        for part in parts:
            some = DecodedMasks(part.logits[:225], part.scores[:225], part.points[:225])
            candidates += filter_survivors(backend, embedding, crop, some, size, options)
        regions = draw_candidates(backend, embedding, crop, candidates, size)
    assert len(regions) == 900
    assert kernels.total() <= 2000, kernels
    assert waits.total() <= 60, waits


def test_launches_do_not_grow_with_the_number_of_masks(as_on_a_gpu: SamBackend) -> None:
    size = (60, 80)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    options = EverythingOptions(points_per_side=8, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    (embedding,) = as_on_a_gpu.encode([as_on_a_gpu.prepare(image)])
    crop = Crop.whole(size)
    every = decode_points(as_on_a_gpu, embedding, grid_points(crop, options), options)
    counted = []
    for number in (1, 20, 160):  # the first one makes the tables of the geometry
        some = DecodedMasks(every.logits[:number], every.scores[:number], every.points[:number])
        with counting() as (kernels, waits):
            found = filter_survivors(as_on_a_gpu, embedding, crop, some, size, options)
            assert len(draw_candidates(as_on_a_gpu, embedding, crop, found, size)) == number
        counted.append(kernels | waits)
    assert counted[1] == counted[2]


def test_what_a_head_proposes_is_chosen_in_a_few_operations() -> None:
    """However much it sees; the choice itself is made without asking for values one by one."""
    torch.manual_seed(0)
    size = (128, 128)
    embedding = Embedding((torch.randn(16, 16, 16),), Geometry(size, size, size, ()))
    counted = []
    for bias in (-20.0, 0.0):
        head = ProposalHead(channels=16, width=8).eval()
        torch.nn.init.constant_(head.layers[-1].bias, bias)
        proposer = HeadProposer(head, nullcontext)
        with counting() as (kernels, waits):
            prompts = proposer.propose(embedding, None, EverythingOptions())
        counted.append((sum(map(len, prompts)), kernels.total(), waits.total()))
    (few, *_), (many, launches, copies) = counted
    assert few == 0 < many
    assert counted[0][1:] == (launches, copies)
    assert launches <= 60
    assert copies <= 2
