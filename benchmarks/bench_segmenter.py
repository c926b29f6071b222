"""Everything mode against SamAutomaticMaskGenerator, clicks, callers, memory; same weights, same images."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator

from benchmarks.emulation import EmulatedTf32
from benchmarks.harness import Case, Pair, SkipCase, timed
from benchmarks.segmenter_memory import peak
from benchmarks.segmenter_rig import (
    DEVICE,
    FASTSAM,
    SCENE,
    Load,
    fastsam_file,
    photograph,
    pocket,
    scene,
    ultralytics,
    untrained,
    with_detector,
)
from regionsearch.images import Pixels
from services.runtime.batcher import BatchSettings
from services.segmenter.backends import load_backend
from services.segmenter.backends.detector import detect
from services.segmenter.backends.sam import SamBackend
from services.segmenter.call_context import LazyImage
from services.segmenter.engine import SegmentEngine
from services.segmenter.everything import (
    Region,
    decode_points,
    deduplicate,
    draw_candidates,
    filter_survivors,
    segment_everything,
)
from services.segmenter.grid import grid_points, plan_crops
from services.segmenter.loading import find_model
from services.segmenter.options import Mode
from services.segmenter.prompts import Prompt

CALLERS = 8
CLICK = Prompt(np.array([[60.0, 60.0]]), np.array([1], np.int32))


@contextlib.contextmanager
def everything(load: Load, image: Callable[[], Pixels]) -> Iterator[Pair]:
    """Our everything mode against the published one."""
    (backend, options), pixels = load(), image()
    reference = SamAutomaticMaskGenerator(backend.model, **asdict(options))

    def ours() -> list[Region]:
        return segment_everything(backend, pixels, options)

    yield Pair(timed(ours), timed(lambda: reference.generate(pixels)))
    masks = [record["segmentation"] for record in reference.generate(pixels)]
    differing = [
        int((region.runs.to_mask() != mask).sum()) for region, mask in zip(ours(), masks, strict=True)
    ]
    if sum(differing) > len(masks):  # a pixel a mask may be a tie; see tests/segmenter/parity.py
        raise AssertionError(f"everything mode no longer gives the reference's masks: {differing}")


@contextlib.contextmanager
def proposals(load: Load, reference: bool) -> Iterator[Pair]:
    """Everything mode by the model's proposals, against our grid or against the published generator."""
    (backend, options), pixels = load(), scene()
    if backend.proposer is None:
        raise SkipCase(f"{backend.identity.variant} has no proposer; see {FASTSAM} in docs/models.md")

    def grid() -> object:
        if reference:
            return SamAutomaticMaskGenerator(backend.model, **asdict(options)).generate(pixels)
        return segment_everything(backend, pixels, options)

    yield Pair(timed(lambda: segment_everything(backend, pixels, options, Mode.PROPOSALS)), timed(grid))


@contextlib.contextmanager
def fastsam() -> Iterator[Pair]:
    """FastSAM's masks of a photograph against those of ultralytics, of the same file: a hundred at most."""
    path, pixels = fastsam_file(), photograph()
    backend = load_backend(find_model(str(path)), DEVICE, "auto")
    assert backend.choices is not None
    (embedding,) = backend.encode([backend.prepare(pixels)])
    scores = detect(embedding, 0.0, backend.choices.box_nms_thresh).scores[:101].tolist()
    options = replace(backend.choices, pred_iou_thresh=max(scores[-1], 0.0))
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "pixels.npy", pixels)
        asked: dict[str, Any] = {
            "conf": options.pred_iou_thresh,
            "iou": options.box_nms_thresh,
            "rect": False,
        }
        asked |= {
            "imgsz": backend.mask_size[0] * 4,
            "retina_masks": True,
            "verbose": False,
            "device": str(backend.device),
        }
        with ultralytics(path, Path(folder) / "pixels.npy", json.dumps(asked)) as (count, reference):
            assert count == len(segment_everything(backend, pixels, options, Mode.PROPOSALS))
            yield Pair(timed(lambda: segment_everything(backend, pixels, options, Mode.PROPOSALS)), reference)


ENCODE, DECODE, REST = STAGES = ("encode", "decode", "filter, upscale, NMS, draw")


class Profile:
    """Where the time of both goes; each run is measured once and serves the case of every stage."""

    def __init__(self, load: Load, image: Callable[[], Pixels]) -> None:
        self._load, self._image = functools.cache(load), functools.cache(image)
        self._ours, self._theirs = functools.cache(self._run_ours), functools.cache(self._run_reference)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Pair]:
        """The case of one stage."""
        ours, theirs = itertools.count(), itertools.count()
        yield Pair(lambda: self._ours(next(ours))[name], lambda: self._theirs(next(theirs))[name])

    def _run_ours(self, run: int) -> dict[str, float]:
        (backend, options), pixels = self._load(), self._image()
        size = pixels.shape[0], pixels.shape[1]
        (crop,) = plan_crops(size, options)
        began = time.perf_counter()
        (embedding,) = backend.encode([backend.prepare(pixels)])
        encoded = time.perf_counter()
        survivors = decode_points(backend, embedding, grid_points(crop, options), options)
        decoded = time.perf_counter()
        candidates = filter_survivors(backend, embedding, crop, survivors, size, options)
        draw_candidates(backend, embedding, crop, deduplicate(candidates, options), size)
        return dict(
            zip(STAGES, (encoded - began, decoded - encoded, time.perf_counter() - decoded), strict=True)
        )

    def _run_reference(self, run: int) -> dict[str, float]:
        (backend, options), pixels = self._load(), self._image()
        generator = SamAutomaticMaskGenerator(backend.model, **asdict(options), output_mode="coco_rle")
        spent = dict.fromkeys(STAGES, 0.0)

        def watch(stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
            def watched(*args: Any, **kwargs: Any) -> Any:
                began = time.perf_counter()
                result = work(*args, **kwargs)
                if backend.device.type == "cuda":
                    torch.cuda.synchronize()
                spent[stage] += time.perf_counter() - began
                return result

            return watched

        model = backend.model
        parts = [(generator.predictor, "set_image", ENCODE)]
        parts += [(part, "forward", DECODE) for part in (model.prompt_encoder, model.mask_decoder)]
        with contextlib.ExitStack() as stack:
            for owner, name, stage in parts:
                stack.enter_context(
                    unittest.mock.patch.object(owner, name, watch(stage, getattr(owner, name)))
                )
            began = time.perf_counter()
            generator.generate(pixels)
            total = time.perf_counter() - began
        return spent | {REST: total - sum(spent.values())}


@contextlib.contextmanager
def clicking(load: Load) -> Iterator[Callable[..., Region]]:
    """A function that clicks on a small thing of a scene under a name and gives the best mask."""
    backend, _ = load()
    pixels = scene(270, 360)
    with contextlib.closing(asyncio.new_event_loop()) as loop:

        async def make() -> SegmentEngine:
            return SegmentEngine(backend, BatchSettings(max_batch=32), cache_bytes=1 << 28)

        engine = loop.run_until_complete(make())

        def click(key: str, zoom: bool = False) -> Region:
            image = LazyImage(key, lambda: pixels)
            [[best]] = loop.run_until_complete(engine.prompts(image, [CLICK], zoom=zoom)).answers
            return best.region

        yield click
        loop.run_until_complete(engine.close())


@contextlib.contextmanager
def second_click(load: Load) -> Iterator[Pair]:
    """A click on an image seen before against a click on a new one."""
    fresh = iter(range(1 << 30))
    with clicking(load) as click:
        click("seen")
        yield Pair(timed(lambda: click("seen")), timed(lambda: click(f"new {next(fresh)}")))


@contextlib.contextmanager
def zoomed_click() -> Iterator[Pair]:
    """A click that looks more closely, twice, against one that does not, images not seen before."""
    fresh = iter(range(1 << 30))
    with clicking(pocket) as click:
        yield Pair(
            timed(lambda: click(f"new {next(fresh)}", zoom=True)), timed(lambda: click(f"new {next(fresh)}"))
        )


@contextlib.contextmanager
def callers(points_per_side: int = 8) -> Iterator[Pair]:
    """Eight callers at once against the same eight in turn, everything mode, images not seen before."""
    backend, options = pocket(points_per_side=points_per_side)
    images = [scene(300 + 10 * number, 400) for number in range(CALLERS)]
    with contextlib.closing(asyncio.new_event_loop()) as loop:

        async def make() -> SegmentEngine:
            return SegmentEngine(backend, BatchSettings(max_batch=32), cache_bytes=0)

        engine = loop.run_until_complete(make())

        async def call(number: int) -> None:
            await engine.everything(LazyImage(str(number), lambda: images[number]), options)

        async def together() -> None:
            await asyncio.gather(*map(call, range(CALLERS)))

        async def in_turn() -> None:
            for number in range(CALLERS):
                await call(number)

        yield Pair(
            timed(lambda: loop.run_until_complete(together())),
            timed(lambda: loop.run_until_complete(in_turn())),
        )
        loop.run_until_complete(engine.close())


@contextlib.contextmanager
def memory(height: int, width: int) -> Iterator[Pair]:
    """Peak memory of both, each in a process of its own."""
    yield Pair(
        functools.partial(peak, "ours", height, width), functools.partial(peak, "reference", height, width)
    )


@contextlib.contextmanager
def match_rate(precision: str, mode: Mode, images: int = 6, load: Load = pocket) -> Iterator[Pair]:
    """Share of the fp32 regions that lower precision finds with an IoU of 0.9 or more, over the scenes."""
    backend, options = load()
    low = SamBackend(backend.model, replace(backend.identity, precision=precision))
    if precision == "tf32" and backend.device.type == "cpu":
        low._autocast = EmulatedTf32  # type: ignore[assignment]

    @functools.cache
    def rate() -> float:
        found = matched = 0
        for file in sorted(SCENE.parent.glob("*.jpg"))[:images]:
            pixels = np.array(Image.open(file).convert("RGB"))
            others = [region.runs.to_mask() for region in segment_everything(low, pixels, options, mode)]
            regions = segment_everything(backend, pixels, options, mode)
            found += len(regions)
            matched += sum(_best_iou(region, others) >= 0.9 for region in regions)
        return matched / found

    yield Pair(rate)


def _best_iou(region: Region, others: list[np.ndarray]) -> float:
    mask = region.runs.to_mask()
    return max(((mask & other).sum() / (mask | other).sum() for other in others), default=0.0)


def cases() -> list[Case]:
    """Everything that is measured about the segmenter."""
    goal = 3.0 if DEVICE == "cpu" else 5.0
    published = ["mobile", "vit_b"] if DEVICE == "cpu" else ["mobile", "vit_b", "vit_l", "vit_h"]
    points = 8 if DEVICE == "cpu" else 32
    small = functools.partial(scene, 256, 256)
    profile = Profile(pocket, photograph)
    sizes = ((1, 1000, 1000), (12, 3000, 4000), (50, 6000, 8333))
    return [
        *[
            Case(
                f"segmenter: everything mode, pocket, {name}",
                "s",
                functools.partial(everything, pocket, image),
                target=goal,
                runs=3,
            )
            for name, image in (("scene of 256 px", small), ("photograph of 512 px", photograph))
        ],
        *[
            Case(
                f"segmenter: everything mode, {variant}, {points} x {points} points",
                "s",
                functools.partial(everything, functools.partial(untrained, variant, points), scene),
                target=None
                if DEVICE == "cpu"
                else goal,  # there the encoder, the same in both, is most of it
                runs=2,
                slow=True,
            )
            for variant in published
        ],
        *[
            Case(f"segmenter: stage {name}", "s", functools.partial(profile.stage, name), runs=3)
            for name in STAGES
        ],
        Case(
            "segmenter: second click, vit_b",
            "s",
            functools.partial(second_click, functools.partial(untrained, "vit_b", 1)),
            target=10.0,
            runs=3,
            slow=True,
        ),
        *[
            Case(
                f"segmenter: everything by proposals, {name}, against {what}",
                "s",
                functools.partial(proposals, load, what != "our grid"),
                runs=3,
                slow=slow,
            )
            for name, load, slow in (
                ("pocket", pocket, False),
                (
                    "mobile with a detector",
                    functools.partial(with_detector, functools.partial(untrained, "mobile", points)),
                    True,
                ),
            )
            for what in ("our grid", "the published generator")
        ],
        Case(
            "segmenter: FastSAM, photograph of 512 px, against ultralytics", "s", fastsam, runs=3, slow=True
        ),
        Case("segmenter: zoomed click / click, pocket", "s", zoomed_click, runs=5),
        Case("segmenter: 8 callers at once / in turn", "s", callers, runs=2),
        *[
            Case(
                f"segmenter: peak memory, {megapixels} megapixels (stopped at 8 GiB)",
                "MiB",
                functools.partial(memory, height, width),
                runs=1,
                slow=True,
            )
            for megapixels, height, width in sizes
        ],
        *[
            Case(
                f"segmenter: {precision} match rate, {mode}",
                "share",
                functools.partial(match_rate, precision, mode),
                better="higher",
                runs=1,
                slow=(precision, mode) != ("bf16", Mode.GRID),
            )
            for precision in ("bf16", "fp16", "tf32")
            for mode in Mode
        ],
    ]
