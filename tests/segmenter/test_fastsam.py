"""FastSAM from an ONNX file: everything mode, prompts that choose, and object-aware prompts of other models.

The network is a small one of ours with the outputs of a segmenting YOLOv8. What its outputs mean is computed
again here, the plain way: every mask enlarged to the whole image, then cropped to its box.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import segment_pb2, types_pb2
from services.segmenter.backends import load_backend
from services.segmenter.backends.detector import Detector, detect
from services.segmenter.backends.fastsam import BoxProposer, FastSamBackend
from services.segmenter.backends.sam import SamBackend
from services.segmenter.call_context import LazyImage
from services.segmenter.choosing import check_choosable
from services.segmenter.everything import segment_everything
from services.segmenter.grid import Crop
from services.segmenter.loading import find_model
from services.segmenter.options import EverythingOptions, Mode
from services.segmenter.prompts import Prompt, decode_prompts, draw_answers, stack_prompts
from services.segmenter.service import load
from services.segmenter.settings import SegmenterSettings
from tests.segmenter.onnx_models import write_yolo
from tests.segmenter.test_engine import Watched, engine_for

OPTIONS = replace(FastSamBackend.choices, pred_iou_thresh=0.5, box_nms_thresh=0.7)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yolo(tmp_path_factory.mktemp("onnx") / "FastSAM-tiny.onnx", side=160)


@pytest.fixture(scope="module")
def fastsam(file: Path) -> FastSamBackend:
    backend = load_backend(find_model(str(file)), "cpu", "fp32")
    assert isinstance(backend, FastSamBackend)
    return backend


def photo(height: int, width: int) -> NDArray[np.uint8]:
    blobs = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    return cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC)


def plain_answer(file: Path, image: NDArray[np.uint8], min_score: float, nms_thresh: float) -> list[Any]:
    """Masks and scores, by nested loops and whole images."""
    import onnxruntime

    side = 160
    height, width = image.shape[:2]
    gain = min(side / height, side / width)
    rows, columns = max(1, round(height * gain)), max(1, round(width * gain))
    top, left = round((side - rows) / 2 - 0.1), round((side - columns) / 2 - 0.1)
    small = np.full((side, side, 3), 114, np.uint8)
    small[top : top + rows, left : left + columns] = cv2.resize(image, (columns, rows))
    session = onnxruntime.InferenceSession(str(file))
    entry = small.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    anchors, prototypes = session.run(None, {session.get_inputs()[0].name: entry})
    found: list[tuple[float, NDArray[np.float32], NDArray[np.float32]]] = []
    for values in sorted(anchors[0].T, key=lambda one: -one[4]):
        x, y, w, h = values[:4]
        box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2], np.float32)
        if values[4] > min_score and all(iou(box, other) <= nms_thresh for _, other, _ in found):
            found.append((float(values[4]), box, values[5:]))
    # Four pixels of the input for one of a prototype; the border is cut off exactly.
    masks = []
    for score, box, coefficients in found:
        logits = torch.from_numpy(np.einsum("c,chw->hw", coefficients, prototypes[0]))[None, None]
        edge = (side - rows) | (side - columns) | top | left
        scale = 1 if edge % 4 == 0 else 2 if edge % 2 == 0 else 4
        large = F.interpolate(logits, scale_factor=scale, mode="bilinear") if scale > 1 else logits
        begin, end = (top * scale // 4, left * scale // 4), (rows * scale // 4, columns * scale // 4)
        large = large[..., begin[0] : begin[0] + end[0], begin[1] : begin[1] + end[1]]
        mask = F.interpolate(large, (height, width), mode="bilinear")[0, 0].numpy() > 0
        x_min, x_max = ((box[[0, 2]] - left) / (columns / width)).clip(0, width)
        y_min, y_max = ((box[[1, 3]] - top) / (rows / height)).clip(0, height)
        mask[:, (np.arange(width) < x_min) | (np.arange(width) >= x_max)] = False
        mask[(np.arange(height) < y_min) | (np.arange(height) >= y_max)] = False
        if mask.any():
            masks.append((mask, score))
    return masks


def iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(sides.clip(0).prod())
    return shared / float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared)


# The grey border of the first takes a prototype pixel, of the second a half, of the third a quarter.
@pytest.mark.parametrize("size", [(120, 160), (156, 320), (211, 301), (90, 31)])
def test_everything_is_what_the_outputs_mean(
    file: Path, fastsam: FastSamBackend, size: tuple[int, int]
) -> None:
    image = photo(*size)
    expected = plain_answer(file, image, OPTIONS.pred_iou_thresh, OPTIONS.box_nms_thresh)
    found = segment_everything(fastsam, image, OPTIONS, Mode.PROPOSALS)
    assert len(found) == len(expected) > 5
    for region, (mask, score) in zip(found, expected, strict=True):
        assert region.predicted_iou == pytest.approx(score, abs=1e-6)
        np.testing.assert_array_equal(region.runs.to_mask(), mask)


async def test_the_engine_gives_the_same_and_prompts_choose_from_it(fastsam: FastSamBackend) -> None:
    pixels = photo(120, 160)
    image, alone = (
        LazyImage("a", lambda: pixels),
        segment_everything(fastsam, pixels, fastsam.choices, Mode.PROPOSALS),
    )
    assert alone
    region = max(alone, key=lambda one: one.area)
    left, top, right, bottom = region.box
    inside = np.argwhere(region.runs.to_mask())[region.area // 2][::-1].astype(float)
    click = Prompt(inside[None], np.array([1], np.int32))
    box = Prompt(np.empty((0, 2)), np.empty(0, np.int32), (left, top, right + 1, bottom + 1))
    watched = Watched(fastsam)  # type: ignore[arg-type]
    async with engine_for(watched) as engine:
        found = await engine.everything(image, fastsam.choices, mode=Mode.PROPOSALS)
        answers = await engine.prompts(image, [click, box], features=0)
        crops = await engine.everything(
            image, replace(OPTIONS, crop_n_layers=1), mode=Mode.PROPOSALS, features=0
        )
        with pytest.raises(RegionSearchError) as caught:
            await engine.everything(image, fastsam.choices)
    assert (caught.value.kind, caught.value.field) == (Kind.FAILED_PRECONDITION, "everything.mode")
    assert watched.log.count("encode") == 1 + 4
    assert [one.runs.coco_rle() for one in found.regions] == [one.runs.coco_rle() for one in alone]
    [[clicked], [drawn]] = answers.answers
    holding = [one.area for one in alone if one.runs.to_mask()[int(inside[1]), int(inside[0])]]
    assert clicked.region.area == min(holding)
    assert drawn.region.runs.coco_rle() == region.runs.coco_rle()
    assert answers.features is not None
    assert answers.features[0].shape == (1, 8)
    assert crops.regions
    assert crops.features is not None


async def test_a_prompt_where_nothing_is_has_no_answer(fastsam: FastSamBackend) -> None:
    nothing = np.zeros((120, 160, 3), np.uint8)
    click = Prompt(np.array([[3.0, 3.0]]), np.array([1], np.int32))
    async with engine_for(fastsam) as engine:
        answers = await engine.prompts(LazyImage("nothing", lambda: nothing), [click])
    assert answers.answers == [[]]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"prompts": {"prompts": [{}, {"mask": types_pb2.Mask()}]}}, "prompts.prompts[1].mask"),
        ({"prompts": {"prompts": [{"mask_logits": types_pb2.Tensor()}]}}, "prompts.prompts[0].mask_logits"),
        ({"prompts": {"zoom": True}}, "prompts.zoom"),
        ({"output": {"low_res_logits": True}}, "output.low_res_logits"),
    ],
)
def test_what_needs_a_decoder_is_refused(request_: dict[str, Any], field: str) -> None:
    with pytest.raises(RegionSearchError, match="FastSAM-tiny") as caught:
        check_choosable(segment_pb2.SegmentRequest(**request_), "FastSAM-tiny")
    assert (caught.value.kind, caught.value.field) == (Kind.FAILED_PRECONDITION, field)


def test_a_third_output_is_what_regions_are_pooled_from(tmp_path: Path) -> None:
    detector = Detector(write_yolo(tmp_path / "a.onnx", side=160, features=True), torch.device("cpu"))
    embedding = detector.embed(detector.prepare(photo(120, 160)))
    assert embedding.features[0].shape == (3, 20, 20)
    assert embedding.geometry.corner == (20, 0)


@pytest.mark.parametrize("broken", ["end_to_end", "no_prototypes", "truncated"])
def test_other_files_are_refused(tmp_path: Path, broken: str) -> None:
    path = write_yolo(tmp_path / "a.onnx", side=64, broken=broken)
    if broken == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RegionSearchError, match="export it again") as caught:
        Detector(path, torch.device("cpu"))
    assert caught.value.kind is Kind.DATA_LOSS


def test_the_precision_is_that_of_the_file(file: Path) -> None:
    with pytest.raises(RegionSearchError, match="exported in fp32"):
        load_backend(find_model(str(file)), "cpu", "bf16")


def test_its_defaults_are_proposals(file: Path) -> None:
    backend, defaults = load(SegmenterSettings(model=str(file), port=0))
    assert (backend.identity.family, backend.identity.variant) == ("fastsam", "FastSAM-tiny")
    assert defaults.mode is Mode.PROPOSALS
    assert defaults.everything.pred_iou_thresh == 0.4
    with pytest.raises(RegionSearchError, match="cannot be asked about points"):
        load(SegmenterSettings(model=str(file), port=0, everything={"mode": "grid"}))


async def test_boxes_of_the_detector_are_prompts_of_another_model(
    file: Path, untrained: SamBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector(file, torch.device("cpu"))
    monkeypatch.setattr(untrained, "proposer", BoxProposer(detector))
    options = EverythingOptions(pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0)
    pixels = photo(120, 160)
    detected = detect(detector.embed(detector.prepare(pixels)), 0.4, 0.9)
    alone = segment_everything(untrained, pixels, options, Mode.PROPOSALS)
    assert 8 < len(alone) <= len(detected.boxes)  # one mask for each box that has anything in it
    (embedding,) = untrained.encode([untrained.prepare(pixels)])
    prompt = Prompt(np.empty((0, 2)), np.empty(0, np.int32), tuple(detected.boxes[0].tolist()))  # type: ignore[arg-type]
    batch = stack_prompts([prompt], embedding.geometry, untrained.mask_size)
    [[answer]] = draw_answers(
        untrained,
        embedding,
        decode_prompts(untrained, embedding, batch, multimask=False),
        Crop.whole((120, 160)),
        (120, 160),
    )
    middle = ((detected.boxes[0, :2] + detected.boxes[0, 2:]) / 2).tolist()
    [of_first] = [one for one in alone if one.point == pytest.approx(middle)]
    left, top, right, bottom = detected.boxes[0].tolist()
    near, aside, above = np.zeros((120, 160), bool), (right - left) / 4, (bottom - top) / 4
    near[
        round(max(0, top - above)) : round(bottom + above), round(max(0, left - aside)) : round(right + aside)
    ] = True
    assert (of_first.runs.to_mask() == answer.region.runs.to_mask() & near).all()
    watched = Watched(untrained)
    async with engine_for(watched, max_batch=4) as engine:
        found = await engine.everything(LazyImage("a", lambda: pixels), options, mode=Mode.PROPOSALS)
    assert [one.runs.coco_rle() for one in found.regions] == [one.runs.coco_rle() for one in alone]
    assert max(watched.log.count(f"decode {size}") for size in (1, 2, 3, 4)) > 0


def test_a_detector_is_set_in_front_of_a_model(file: Path, tmp_path: Path) -> None:
    backend, defaults = load(SegmenterSettings(model="pocket", proposer=str(file), port=0))
    assert defaults.mode is Mode.PROPOSALS
    assert isinstance(backend.proposer, BoxProposer)
    with pytest.raises(RegionSearchError, match="proposer itself"):
        load(SegmenterSettings(model=str(file), proposer=str(file), port=0))
    with pytest.raises(RegionSearchError) as caught:
        load(SegmenterSettings(model="pocket", proposer=str(tmp_path / "none.onnx"), port=0))
    assert (caught.value.kind, caught.value.field) == (Kind.NOT_FOUND, "proposer")
