"""What the segmenter is measured with: models, published architectures, images."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from segment_anything import sam_model_registry

from benchmarks.compare.environments import python_of
from regionsearch.images import Pixels
from services.segmenter.backends import load_backend
from services.segmenter.backends.base import ModelIdentity, PromptBatch
from services.segmenter.backends.detector import Detector
from services.segmenter.backends.fastsam import BoxProposer
from services.segmenter.backends.mobile import build_mobile_sam
from services.segmenter.backends.sam import SamBackend
from services.segmenter.backends.vit_attention import fuse_attention
from services.segmenter.loading import find_model
from services.segmenter.options import EverythingOptions

SCENE = Path(__file__).parents[1] / "examples" / "scenes" / "scene-01.jpg"
OUT = Path(__file__).parent / "out"
FASTSAM = "REGIONSEARCH_BENCH_FASTSAM"  # path of the exported model; its weights are not ours to give
Load = Callable[[], tuple[SamBackend, EverythingOptions]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pocket(**changes: object) -> tuple[SamBackend, EverythingOptions]:
    """The bundled model and its defaults of everything mode, some of them changed."""
    files = find_model("pocket")
    backend = load_backend(files, DEVICE, "fp32")
    assert isinstance(backend, SamBackend)
    return backend, replace(EverythingOptions(), **(dict(files.everything) | changes))


def untrained(variant: str, points_per_side: int) -> tuple[SamBackend, EverythingOptions]:
    """A published architecture with random weights, which take as long; half of the masks survive."""
    torch.manual_seed(0)
    model = build_mobile_sam() if variant == "mobile" else sam_model_registry[variant]()
    if variant != "mobile":
        fuse_attention(model.image_encoder)
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
    import skimage.data  # which short runs on other machines do without

    return np.ascontiguousarray(skimage.data.astronaut())  # type: ignore[no-untyped-call]


def with_detector(load: Load) -> tuple[SamBackend, EverythingOptions]:
    """A model with FastSAM's file in front of it, if there is one."""
    backend, options = load()
    backend.proposer = BoxProposer(Detector(fastsam_file(), backend.device))
    return backend, options


def fastsam_file() -> Path:
    """The exported FastSAM that the environment names, or an untrained one, which takes as long."""
    if FASTSAM in os.environ:
        return Path(os.environ[FASTSAM])
    untrained = OUT / "yolov8s-seg.onnx"
    if not untrained.exists():
        with ultralytics(untrained):
            pass
    return untrained


@contextlib.contextmanager
def ultralytics(*arguments: object) -> Iterator[tuple[int, Callable[[], float]]]:
    """The number of masks that ultralytics finds, and a measurement of it, in an environment of its own."""
    command = [python_of("ultralytics", OUT), Path(__file__).parent / "ultralytics_peer.py", *arguments]
    with subprocess.Popen(
        [str(part) for part in command], cwd=OUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin is not None and program.stdout is not None
        stdin, stdout = program.stdin, program.stdout

        def measure() -> float:
            stdin.write("\n")
            stdin.flush()
            return float(stdout.readline())

        yield int(stdout.readline()), measure
        stdin.close()
