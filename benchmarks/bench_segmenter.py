"""Everything mode against SamAutomaticMaskGenerator, clicks, callers, memory; same weights, same pictures."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

from benchmarks.harness import Case, Pair, timed
from regionsearch.images import Pixels
from services.runtime.batcher import BatchSettings
from services.segmenter.backends import load_backend
from services.segmenter.backends.base import ModelIdentity, PromptBatch
from services.segmenter.backends.sam import SamBackend
from services.segmenter.engine import Picture, SegmentEngine
from services.segmenter.everything import (
    Region,
    decode_points,
    filter_survivors,
    finish_crop,
    segment_everything,
)
from services.segmenter.grid import grid_points, plan_crops
from services.segmenter.loading import find_model
from services.segmenter.options import EverythingOptions
from services.segmenter.prompts import Prompt

SCENE = Path(__file__).parents[1] / "examples" / "scenes" / "scene-01.jpg"
CALLERS = 8
CLICK = Prompt(np.array([[200.0, 150.0]]), np.array([1], np.int32))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pocket() -> tuple[SamBackend, EverythingOptions]:
    """The bundled model and its defaults of everything mode."""
    files = find_model("pocket")
    backend = load_backend(files, DEVICE, "fp32")
    assert isinstance(backend, SamBackend)
    return backend, replace(EverythingOptions(), **files.everything)


def vit(variant: str, points_per_side: int) -> tuple[SamBackend, EverythingOptions]:
    """A published architecture with random weights, which take as long; half of the masks survive."""
    torch.manual_seed(0)
    model = sam_model_registry[variant]()
    backend = SamBackend(model, ModelIdentity("sam", variant, "", "fp32", DEVICE))
    (embedding,) = backend.encode([backend.prepare(scene())])
    points = torch.rand(16, 1, 2) * 1024
    ious = backend.decode(embedding, PromptBatch(points, torch.ones(16, 1, dtype=torch.int32))).ious
    thresh = float(ious[:, 1:].median().clamp(0.01, 0.99))
    return backend, EverythingOptions(points_per_side, pred_iou_thresh=thresh, stability_score_thresh=0.0)


def scene(height: int = 400, width: int = 600) -> Pixels:
    """A bundled scene, resized."""
    return np.array(Image.open(SCENE).convert("RGB").resize((width, height)))


def photograph() -> Pixels:
    """512 x 512 pixels of an astronaut."""
    return np.ascontiguousarray(skimage.data.astronaut())  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def everything(
    load: Callable[[], tuple[SamBackend, EverythingOptions]], image: Callable[[], Pixels]
) -> Iterator[Pair]:
    """Our everything mode against the published one."""
    (backend, options), pixels = load(), image()
    reference = SamAutomaticMaskGenerator(backend.model, **asdict(options), output_mode="coco_rle")

    def ours() -> list[str]:
        return [region.runs.coco_rle() for region in segment_everything(backend, pixels, options)]

    masks = [record["segmentation"]["counts"] for record in reference.generate(pixels)]
    if load is pocket and ours() != masks:
        raise AssertionError("everything mode no longer gives the reference's masks")
    yield Pair(timed(ours), timed(lambda: reference.generate(pixels)))


@contextlib.contextmanager
def stage(name: str) -> Iterator[Pair]:
    """One stage of our everything mode by itself."""
    (backend, options), pixels = pocket(), scene()
    size = pixels.shape[0], pixels.shape[1]
    (crop,) = plan_crops(size, options)
    prepared = [backend.prepare(pixels)]
    (embedding,) = backend.encode(prepared)
    survivors = decode_points(backend, embedding, grid_points(crop, options), options)
    candidates = filter_survivors(backend, embedding, crop, survivors, size, options)
    stages: dict[str, Callable[[], object]] = {
        "prepare and encode": lambda: backend.encode([backend.prepare(pixels)]),
        "decode": lambda: decode_points(backend, embedding, grid_points(crop, options), options),
        "filter": lambda: filter_survivors(backend, embedding, crop, survivors, size, options),
        "NMS and draw": lambda: finish_crop(backend, embedding, crop, candidates, size, options),
    }
    yield Pair(timed(stages[name]))


@contextlib.contextmanager
def second_click() -> Iterator[Pair]:
    """A click on a picture seen before against a click on a new one, ViT-B."""
    backend, _ = vit("vit_b", 1)
    pixels, fresh = scene(), iter(range(1 << 30))
    with contextlib.closing(asyncio.new_event_loop()) as loop:

        async def make() -> SegmentEngine:
            return SegmentEngine(backend, BatchSettings(max_batch=32), cache_bytes=1 << 28)

        engine = loop.run_until_complete(make())

        def click(key: str) -> None:
            loop.run_until_complete(engine.prompts(Picture(key, lambda: pixels), [CLICK]))

        click("seen")
        yield Pair(timed(lambda: click("seen")), timed(lambda: click(f"new {next(fresh)}")))
        loop.run_until_complete(engine.close())


@contextlib.contextmanager
def callers() -> Iterator[Pair]:
    """Eight callers at once against the same eight in turn, everything mode, pictures not seen before."""
    backend, options = pocket()
    pictures = [scene(300 + 10 * number, 400) for number in range(CALLERS)]
    with contextlib.closing(asyncio.new_event_loop()) as loop:

        async def make() -> SegmentEngine:
            return SegmentEngine(backend, BatchSettings(max_batch=32), cache_bytes=0)

        engine = loop.run_until_complete(make())

        async def call(number: int) -> None:
            await engine.everything(Picture(str(number), lambda: pictures[number]), options)

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


PEAK = """
import sys
from pathlib import Path
from benchmarks.bench_segmenter import *
backend, options = pocket()
options = replace(options, points_per_side=8)
height, width = int(sys.argv[2]), int(sys.argv[3])
image = scene(height, width)
def kibibytes(name):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").open() if l.startswith(name))
before = kibibytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
if sys.argv[1] == "ours":
    segment_everything(backend, image, options)
else:
    SamAutomaticMaskGenerator(backend.model, **asdict(options), output_mode="coco_rle").generate(image)
print((kibibytes("VmHWM") - before) / 1024)
"""


def peak(side: str, height: int, width: int) -> float:
    """MiB that everything mode (8 x 8 points) adds to a process that holds the model and the picture."""
    command = [sys.executable, "-c", PEAK, side, str(height), str(width)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SCENE.parents[2])
    return float(result.stdout.split()[-1])


@contextlib.contextmanager
def memory(height: int, width: int, with_reference: bool) -> Iterator[Pair]:
    """Peak memory of both; the reference needs 38 GB for 50 megapixels and is left out there."""
    reference = functools.partial(peak, "reference", height, width) if with_reference else None
    yield Pair(functools.partial(peak, "ours", height, width), reference)


@contextlib.contextmanager
def match_rate(precision: str) -> Iterator[Pair]:
    """Share of the fp32 regions that lower precision finds with an IoU of 0.9 or more, over the scenes."""
    backend, options = pocket()
    low = SamBackend(backend.model, replace(backend.identity, precision=precision))

    def rate() -> float:
        found = matched = 0
        for file in sorted(SCENE.parent.iterdir())[:8]:
            pixels = np.array(Image.open(file).convert("RGB"))
            others = [region.runs.to_mask() for region in segment_everything(low, pixels, options)]
            regions = segment_everything(backend, pixels, options)
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
    vits = [("vit_b", 8)] if DEVICE == "cpu" else [("vit_b", 32), ("vit_l", 32), ("vit_h", 32)]
    return [
        Case("segmenter: everything mode, scene", "s", lambda: everything(pocket, scene), target=goal),
        Case(
            "segmenter: everything mode, photograph", "s", lambda: everything(pocket, photograph), target=goal
        ),
        *[
            Case(
                f"segmenter: everything mode, {variant}, {points} x {points} points",
                "s",
                functools.partial(everything, functools.partial(vit, variant, points), scene),
                target=goal,
                runs=3,
                slow=True,
            )
            for variant, points in vits
        ],
        *[
            Case(f"segmenter: stage {name}", "s", functools.partial(stage, name))
            for name in ("prepare and encode", "decode", "filter", "NMS and draw")
        ],
        Case("segmenter: second click, vit_b", "s", second_click, target=10.0, runs=3, slow=True),
        Case("segmenter: 8 callers at once", "s", callers, runs=3),
        *[
            Case(
                f"segmenter: peak memory, {megapixels} megapixels",
                "MiB",
                functools.partial(memory, height, width, megapixels < 50),
                runs=1,
                slow=True,
            )
            for megapixels, height, width in ((1, 1000, 1000), (12, 3000, 4000), (50, 6000, 8333))
        ],
        Case("segmenter: bf16 match rate", "share", lambda: match_rate("bf16"), better="higher", runs=1),
    ]
