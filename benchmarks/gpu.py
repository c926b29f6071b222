"""``python -m benchmarks.gpu``: everything that a GPU must prove, in one short run; rows for RESULTS.md.

Made for a machine without a network that has torch and numpy: what else it needs comes as wheels
(`scripts/vendor_wheels.sh`), which are put on the path. Cases run in the order of what is most wanted, each
is written down as soon as it is done, and none begins after the budget is spent. Published architectures
have random weights, which take as long.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import sys
import tempfile
import time
import traceback
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from contextlib import AbstractContextManager as Context

    from benchmarks.harness import Case, Outcome, Pair
    from services.segmenter.backends.sam import SamBackend
    from services.segmenter.options import EverythingOptions

    Prepare = Callable[[], Context[Pair]]

ROWS = Path(__file__).parent / "out" / "gpu.md"
BUDGET_S = 420.0
PRECISIONS = "fp32", "tf32", "bf16"
STAGES = {"encode": "images/s", "decode": "points/s", "everything mode": "images/s"}
SEARCHES = 20


def main() -> int:
    """Returns 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it out (%(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="the smallest models, at sizes that prove little"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels to take packages from")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds (%(default)s)")
    parser.add_argument("--output", type=Path, default=ROWS, help="where the rows go (%(default)s)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.wheels:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            for wheel in options.wheels.glob("*.whl"):
                zipfile.ZipFile(wheel).extractall(folder)
            described = Path(folder, "regionsearch-0.dist-info", "METADATA")  # the checkout is not installed
            described.parent.mkdir()
            described.write_text("Metadata-Version: 2.1\nName: regionsearch\nVersion: 0\n")
            sys.path.append(folder)
        if (
            importlib.util.find_spec("cv2") is None
        ):  # for steps that are not measured; too large to bring along
            sys.modules["cv2"] = types.ModuleType("cv2")
        return run(options.device, options.quick, options.budget, options.output)


def run(device: str, quick: bool, budget_s: float, output: Path) -> int:
    """Measures the cases one after the other; returns 1 when one failed."""
    import torch

    from benchmarks.harness import SkipCase, measure

    began, failed = time.monotonic(), False
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    output.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    with output.open("w") as file:

        def write(line: str) -> None:
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()

        write(f"{name}, torch {torch.__version__}: `python -m benchmarks.gpu --device {device}`\n")
        write("| what | ours | against | ratio |\n|---|---|---|---|")
        for case in cases(device, quick):
            if time.monotonic() - began > budget_s:
                write(f"| {case.name} | not begun: the budget of {budget_s:.0f} s is spent | | |")
                continue
            try:
                outcome = measure(case, quick)
            except SkipCase as why:
                write(f"| {case.name} | left out: {why} | | |")
            except Exception:  # the others shall be measured all the same
                failed = True
                traceback.print_exc()
                write(f"| {case.name} | failed | | |")
            else:
                write(row(outcome))
                entries.append(outcome.to_json())
            if device == "cuda":
                torch.cuda.empty_cache()
    output.with_suffix(".json").write_text(json.dumps(entries, indent=1) + "\n")
    return int(failed)


def row(outcome: Outcome) -> str:
    """A row of the table in RESULTS.md."""
    unit = outcome.case.unit
    against = "" if outcome.reference is None else f"{outcome.reference:.4g} {unit}"
    ratio = "" if outcome.ratio is None else f"{outcome.ratio:.2f}"
    return f"| {outcome.case.name} | {outcome.ours:.4g} {unit} | {against} | {ratio} |"


def cases(device: str, quick: bool) -> list[Case]:
    """What is measured, the most wanted first."""
    from benchmarks import bench_segmenter, segmenter_rig
    from benchmarks.harness import Case
    from services.segmenter.options import Mode
    from services.torch_runtime.devices import allow_tf32

    allow_tf32(False)
    segmenter_rig.DEVICE = device
    pocket: Callable[[], tuple[SamBackend, EverythingOptions]] = functools.partial(
        segmenter_rig.pocket, **({"points_per_side": 2} if quick else {})
    )
    variants = [] if quick else ["vit_b", "vit_h", "vit_l", "mobile"]
    points = 32

    def load(variant: str) -> tuple[SamBackend, EverythingOptions]:
        return pocket() if variant == "pocket" else segmenter_rig.untrained(variant, points)

    scene = functools.partial(segmenter_rig.scene, 64, 96) if quick else segmenter_rig.scene
    precisions, made = PRECISIONS[:1] if quick else PRECISIONS, []

    def add(name: str, unit: str, prepare: Prepare, runs: int = 3) -> None:
        better: Literal["lower", "higher"] = "lower" if unit == "s" else "higher"
        made.append(Case(name, unit, prepare, better, runs=1 if quick else runs))

    # Fails when a mask differs from the published generator's by more than a pixel.
    exact = functools.partial(bench_segmenter.everything, pocket, scene)
    add("everything mode against the published generator, pocket, fp32", "s", exact)
    for precision in PRECISIONS[1:]:
        for mode in Mode:
            rate_of = functools.partial(
                bench_segmenter.match_rate, precision, mode, 1 if quick else 6, pocket
            )
            add(
                f"share of regions that match those of fp32, pocket, {precision}, {mode}",
                "of 1",
                rate_of,
                runs=1,
            )
    for variant in [*variants[:2], "pocket", *variants[2:]]:
        for precision in precisions:
            for stage, unit in STAGES.items():
                speed = functools.partial(rate, functools.partial(load, variant), precision, stage)
                add(f"{stage}, {variant}, {precision}", unit, speed)
    for variant in variants[:2]:
        compared = functools.partial(attention, variant)
        add(f"fused attention against the published one, {variant}", "s", compared)
    click = "pocket" if quick else "vit_h"
    again = functools.partial(bench_segmenter.second_click, functools.partial(load, click))
    add(f"second click against the first, {click}", "s", again)
    callers = functools.partial(bench_segmenter.callers, 2 if quick else 16)
    add("8 callers of everything mode at once against in turn, pocket", "s", callers)
    for model in ["pocket"] if quick else ["ViT-B-32", "ViT-L-14", "ViT-H-14"]:
        for precision in ("fp32",) if quick else ("fp32", "bf16"):
            add(f"crops, {model}, {precision}", "crops/s", functools.partial(crops, model, precision))
    precision, variant, model = (
        ("fp32", "pocket", "pocket") if quick else ("bf16", "vit_b", "ViT-B-32")
    )  # compiling takes a minute each
    encoded = functools.partial(compiled_encoding, functools.partial(load, variant), precision)
    add(f"encode, compiled against not, {variant}, {precision}", "images/s", encoded)
    cropped = functools.partial(crops, model, precision, compile_model=True)
    add(f"crops, compiled against not, {model}, {precision}", "crops/s", cropped)
    for count in [1000] if quick else [1_000_000, 10_000_000]:
        name = f"search of {count:,} x 512, 32 queries at once"
        add(name, "queries/s", functools.partial(search, count), runs=1)
    return made


def waited(work: Callable[[], object]) -> float:
    """Seconds that some work takes, the device's part of it too."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


@contextlib.contextmanager
def rate(
    load: Callable[[], tuple[SamBackend, EverythingOptions]], precision: str, stage: str
) -> Iterator[Pair]:
    """Images or points a second of a stage."""
    from dataclasses import replace

    from benchmarks.harness import Pair
    from benchmarks.segmenter_rig import scene
    from services.segmenter.backends.sam import SamBackend
    from services.segmenter.everything import decode_points, segment_everything
    from services.segmenter.grid import Crop, grid_points

    full, options = load()
    backend = SamBackend(full.model, replace(full.identity, precision=precision))
    pixels = scene()
    prepared = [backend.prepare(pixels)] * backend.encode_batch
    (embedding,) = backend.encode(prepared[:1])
    grid = grid_points(Crop.whole((pixels.shape[0], pixels.shape[1])), options)
    work: Callable[[], object]
    if stage == "encode":
        work, count = (lambda: backend.encode(prepared)), len(prepared)
    elif stage == "decode":
        work, count = (lambda: decode_points(backend, embedding, grid, options)), len(grid)
    else:
        work, count = (lambda: segment_everything(backend, pixels, options)), 1
    yield Pair(lambda: count / waited(work))


@contextlib.contextmanager
def compiled_encoding(
    load: Callable[[], tuple[SamBackend, EverythingOptions]], precision: str
) -> Iterator[Pair]:
    """Images a second of a compiled image encoder and of the same one as it is; they must agree."""
    from dataclasses import replace

    import torch

    from benchmarks.harness import Pair
    from benchmarks.segmenter_rig import scene
    from services.segmenter.backends.sam import SamBackend

    full, _ = load()
    plain, compiled = (
        SamBackend(full.model, replace(full.identity, precision=precision), compile_model)
        for compile_model in (False, True)
    )
    prepared = [plain.prepare(scene())] * plain.encode_batch
    (expected, *_), (found, *_) = plain.encode(prepared), compiled.encode(prepared)
    similarity = torch.cosine_similarity(found.features[0].flatten(), expected.features[0].flatten(), dim=0)
    assert similarity > 0.99, f"the compiled encoder has another answer: cosine {similarity:.3f}"
    yield Pair(
        lambda: len(prepared) / waited(lambda: compiled.encode(prepared)),
        lambda: len(prepared) / waited(lambda: plain.encode(prepared)),
    )


@contextlib.contextmanager
def attention(variant: str) -> Iterator[Pair]:
    """Encoding with fused attention against the published one; they must agree."""
    import torch
    from segment_anything import sam_model_registry

    from benchmarks import segmenter_rig
    from benchmarks.harness import Pair
    from services.segmenter.backends.base import ModelIdentity
    from services.segmenter.backends.sam import SamBackend
    from services.segmenter.backends.vit_attention import fuse_attention

    torch.manual_seed(0)
    model = sam_model_registry[variant]()
    identity = ModelIdentity("sam", variant, "", "fp32", segmenter_rig.DEVICE)
    published = SamBackend(model, identity)
    prepared = [published.prepare(segmenter_rig.scene())]
    expected = published.encode(prepared)[0].features[0]
    seconds = min(waited(lambda: published.encode(prepared)) for _ in range(3))
    fuse_attention(model.image_encoder)
    fused = SamBackend(model, identity)
    torch.testing.assert_close(fused.encode(prepared)[0].features[0], expected, rtol=1e-3, atol=1e-3)
    yield Pair(lambda: waited(lambda: fused.encode(prepared)), lambda: seconds)


@contextlib.contextmanager
def crops(model: str, precision: str, compile_model: bool = False) -> Iterator[Pair]:
    """Regions a second of an image with 64 regions, cropped and embedded; with a compiled tower against that
    without.
    """
    from benchmarks import bench_embedder
    from benchmarks.bench_serving import on_loop
    from benchmarks.harness import Pair
    from services.embedder.options import CropPolicy

    regions = bench_embedder.scene()
    with contextlib.ExitStack() as stack:

        def speed(compile_model: bool) -> Callable[[], float]:
            backend = bench_embedder.load(model, precision, compile_model)
            run = stack.enter_context(on_loop(bench_embedder.engine(backend)))
            ours = functools.partial(bench_embedder.vectors_of, run, regions, CropPolicy.BLUR)
            return lambda: len(regions.boxes) / waited(ours)

        yield Pair(speed(compile_model), speed(False) if compile_model else None)


@contextlib.contextmanager
def search(count: int) -> Iterator[Pair]:
    """Queries a second of FAISS on the GPU, vectors in half precision, ten neighbours each."""
    from benchmarks.harness import Pair, SkipCase

    try:
        import faiss
    except ImportError as error:
        raise SkipCase("faiss is not installed") from error
    if not hasattr(faiss, "StandardGpuResources"):
        raise SkipCase("this faiss has no GPU indexes")
    import numpy as np
    import torch

    resources, config = faiss.StandardGpuResources(), faiss.GpuIndexFlatConfig()
    config.useFloat16 = True
    index = faiss.GpuIndexFlatIP(resources, 512, config)
    part = min(count, 1 << 18)
    for start in range(0, count, part):
        rows = torch.nn.functional.normalize(torch.randn(min(part, count - start), 512, device="cuda"))
        index.add(rows.cpu().numpy())
    queries = np.ascontiguousarray(rows[:32].cpu().numpy())
    index.search(queries, 10)
    yield Pair(lambda: 32 * SEARCHES / waited(lambda: [index.search(queries, 10) for _ in range(SEARCHES)]))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
