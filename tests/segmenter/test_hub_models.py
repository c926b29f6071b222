"""SAM 3 and SAM-HQ from folders of the Hugging Face hub give the answers of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import segment_pb2, types_pb2
from services.segmenter.backends import load_backend
from services.segmenter.backends.base import Backend
from services.segmenter.backends.sam3 import Sam3Backend
from services.segmenter.backends.sam_hq import SamHqBackend
from services.segmenter.call_context import LazyImage
from services.segmenter.everything import segment_everything
from services.segmenter.grid import Crop
from services.segmenter.loading import find_model
from services.segmenter.options import Defaults, EverythingOptions
from services.segmenter.prompts import Prompt, decode_prompts, draw_answers, stack_prompts
from services.segmenter.service import load
from services.segmenter.servicer import SegmentServicer
from services.segmenter.settings import SegmenterSettings
from tests.segmenter.hub_models import SIDE, write_sam3, write_sam_hq
from tests.segmenter.test_engine import engine_for

transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")

PHRASES = ["red mug", "a chair"]
POINTS, BOX = np.array([[100.0, 80.0], [20.0, 30.0]]), (20.0, 30.0, 200.0, 150.0)
PROMPTS = [
    Prompt(POINTS, np.array([1, 0], np.int32)),
    Prompt(np.empty((0, 2)), np.empty(0, np.int32), BOX),
    Prompt(POINTS[:1], np.array([1], np.int32), BOX),
]


@pytest.fixture(scope="module")
def sam3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sam3(tmp_path_factory.mktemp("hub") / "sam3")


@pytest.fixture(scope="module")
def sam3(sam3_folder: Path) -> Sam3Backend:
    backend = load_backend(find_model(str(sam3_folder)), "cpu", "fp32")
    assert isinstance(backend, Sam3Backend)
    return backend


@pytest.fixture(scope="module")
def hq_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sam_hq(tmp_path_factory.mktemp("hub") / "sam_hq")


@pytest.fixture(scope="module")
def sam_hq(hq_folder: Path) -> SamHqBackend:
    backend = load_backend(find_model(str(hq_folder)), "cpu", "fp32")
    assert isinstance(backend, SamHqBackend)
    return backend


def lazy(image: NDArray[np.uint8]) -> LazyImage:
    return LazyImage("image", lambda: image, image.nbytes)


def processed(folder: Path, image: NDArray[np.uint8], **texts: Any) -> Any:
    """What transformers' own processor of SAM 3 makes of an image."""
    size = {"height": SIDE, "width": SIDE}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.Sam3Processor(transformers.Sam3ImageProcessor(size=size), tokenizer)
    return processor, processor(images=image, return_tensors="pt", **texts)


async def test_phrases_give_the_masks_and_scores_of_transformers(
    sam3: Sam3Backend, sam3_folder: Path, coffee: NDArray[np.uint8]
) -> None:
    reference = transformers.Sam3Model.from_pretrained(sam3_folder).eval()
    size = coffee.shape[:2]
    async with engine_for(sam3) as engine:
        for phrase in PHRASES:
            processor, inputs = processed(sam3_folder, coffee, text=phrase)
            with torch.inference_mode():
                wanted = reference(**inputs)
            scores = (wanted.pred_logits.sigmoid() * wanted.presence_logits.sigmoid())[0]
            least = float(scores.sort().values[len(scores) // 2 :][:2].mean())
            found = await engine.phrases(lazy(coffee), [phrase], min_score=least)
            (answer,) = found.answers
            order = [int(place) for place in scores.argsort(descending=True) if scores[place] > least]
            # The publisher enlarges logits, transformers their sigmoid.
            logits = F.interpolate(wanted.pred_masks, size, mode="bilinear", align_corners=False)[0]
            whole = [place for place in order if (logits[place] > 0).any()]
            assert len(whole) > 1
            assert [one.region.predicted_iou for one in answer] == pytest.approx(
                scores[whole].tolist(), abs=1e-5
            )
            for one, place in zip(answer, whole, strict=True):
                assert (one.region.runs.to_mask() != (logits[place] > 0).numpy()).mean() < 1e-3
            (theirs,) = processor.post_process_instance_segmentation(wanted, least, 0.5, [size])
            union = theirs["masks"].amax(0).bool().numpy()
            ours = np.any([one.region.runs.to_mask() for one in answer], axis=0)
            assert (union != ours).mean() < 0.1


async def test_several_phrases_are_answered_in_their_order_and_long_ones_said_to_be_cut(
    sam3: Sam3Backend, coffee: NDArray[np.uint8]
) -> None:
    async with engine_for(sam3) as engine:
        single = [(await engine.phrases(lazy(coffee), [one], min_score=0)).answers[0] for one in PHRASES]
        both = await engine.phrases(lazy(coffee), [*PHRASES, "x" * 40], min_score=0, features=0)
        none = await engine.phrases(lazy(coffee), PHRASES, min_score=1)
    assert [[one.region.box for one in answer] for answer in both.answers[:2]] == [
        [one.region.box for one in answer] for answer in single
    ]
    assert both.truncated == (False, False, True)
    assert both.features is not None
    assert both.features[0].shape == (len(both.answers[0]), sam3.feature_channels[0])
    assert none.answers == [[], []]


def answers(backend: Backend, image: NDArray[np.uint8], prompt: Prompt, multimask: bool) -> list[Any]:
    (embedding,) = backend.encode([backend.prepare(image)])
    batch = stack_prompts([prompt, prompt], embedding.geometry, backend.mask_size)
    decoded = decode_prompts(backend, embedding, batch, multimask)
    size = image.shape[0], image.shape[1]
    first, second = draw_answers(backend, embedding, decoded, Crop.whole(size), size)
    assert [one.region.box for one in first] == [one.region.box for one in second]
    return sorted(first, key=lambda one: -one.region.predicted_iou)


def given(prompt: Prompt) -> dict[str, Any]:
    """A prompt as the processors of transformers take it."""
    named: dict[str, Any] = {}
    if len(prompt.points):
        named |= {"input_points": [[prompt.points.tolist()]], "input_labels": [[prompt.labels.tolist()]]}
    if prompt.box is not None:
        named["input_boxes"] = [[list(prompt.box)]]
    return named


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("prompt", PROMPTS, ids=["points", "box", "point and box"])
def test_prompts_of_sam_3_give_the_masks_of_its_tracker(
    sam3: Sam3Backend, sam3_folder: Path, coffee: NDArray[np.uint8], prompt: Prompt, multimask: bool
) -> None:
    reference = transformers.Sam3TrackerModel.from_pretrained(sam3_folder).eval()
    images = transformers.Sam3ImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = transformers.Sam3TrackerProcessor(images, target_size=SIDE)
    inputs = processor(images=coffee, return_tensors="pt", **given(prompt))
    sizes, pixels = inputs.pop("original_sizes"), inputs.pop("pixel_values")
    with torch.inference_mode():
        maps = reference.get_image_embeddings(pixels)
        # As the publisher's predictor does; transformers adds it to a map that it drops.
        maps[-1] = maps[-1] + reference.no_memory_embedding.view(1, -1, 1, 1)
        wanted = reference(image_embeddings=maps, multimask_output=multimask, **inputs)
    (masks,) = processor.post_process_masks(wanted.pred_masks, sizes)
    ious = wanted.iou_scores[0, 0]
    found = answers(sam3, coffee, prompt, multimask)
    for one, place in zip(found, ious.argsort(descending=True).tolist(), strict=True):
        assert one.region.predicted_iou == pytest.approx(float(ious[place]), abs=1e-5)
        assert (one.region.runs.to_mask() != masks[0, place].numpy()).mean() < 1e-3


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("prompt", PROMPTS, ids=["points", "box", "point and box"])
def test_prompts_of_sam_hq_give_the_masks_of_transformers(
    sam_hq: SamHqBackend, hq_folder: Path, coffee: NDArray[np.uint8], prompt: Prompt, multimask: bool
) -> None:
    reference = transformers.SamHQModel.from_pretrained(hq_folder).eval()
    images = transformers.SamImageProcessorPil(
        size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE}
    )
    processor = transformers.SamHQProcessor(images)
    inputs = processor(images=coffee, return_tensors="pt", **given(prompt))
    sizes, inside = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    if "input_boxes" in inputs:
        inputs["input_boxes"] = inputs["input_boxes"].float()
    decoder, after = reference.mask_decoder, []
    # The publisher draws masks from the map that its transformer returns; transformers takes that for the
    # IoU's token, and draws them from the map before, with rows and columns exchanged.
    decoder.transformer.register_forward_hook(lambda module, given, found: after.append(found[1]))
    decoder.upscale_conv1.register_forward_pre_hook(
        lambda module, given: (after.pop().transpose(2, 3).reshape(given[0].shape),)
    )
    with torch.inference_mode():
        wanted = reference(multimask_output=multimask, **inputs)
    (masks,) = processor.image_processor.post_process_masks(
        wanted.pred_masks, sizes, inside, pad_size={"height": SIDE, "width": SIDE}
    )
    ious = wanted.iou_scores[0, 0]
    found = answers(sam_hq, coffee, prompt, multimask)
    for one, place in zip(found, ious.argsort(descending=True).tolist(), strict=True):
        assert one.region.predicted_iou == pytest.approx(float(ious[place]), abs=1e-4)
        assert (one.region.runs.to_mask() != masks[0, place].numpy()).mean() < 5e-3


def test_masks_as_prompts_change_the_answer(
    sam3: Sam3Backend, sam_hq: SamHqBackend, coffee: NDArray[np.uint8]
) -> None:
    for backend in (sam3, sam_hq):
        logits = np.full(backend.mask_size, -10, np.float32)
        logits[8:20, 8:20] = 10
        asked = Prompt(POINTS[:1], np.array([1], np.int32), mask_logits=logits)
        without = Prompt(POINTS[:1], np.array([1], np.int32))
        alone = Prompt(np.empty((0, 2)), np.empty(0, np.int32), mask_logits=logits)
        scores = [
            answers(backend, coffee, one, False)[0].region.predicted_iou for one in (asked, without, alone)
        ]
        assert len(set(scores)) == 3


def test_everything_mode_works_and_the_service_loads_and_warms_up(
    sam3_folder: Path, hq_folder: Path, coffee: NDArray[np.uint8]
) -> None:
    options = EverythingOptions(points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0)
    for folder in (sam3_folder, hq_folder):
        backend, _ = load(SegmenterSettings(model=str(folder), device="cpu"))
        assert (backend.identity.family, backend.identity.variant) == (folder.name, folder.name)
        assert segment_everything(backend, coffee, options)


async def test_the_service_answers_phrases_and_refuses_wrong_ones_with_a_sentence(
    sam3: Sam3Backend, sam_hq: SamHqBackend, coffee: NDArray[np.uint8]
) -> None:
    height, width = coffee.shape[:2]
    image = types_pb2.Image(raw=types_pb2.RawImage(rgb=coffee.tobytes(), height=height, width=width))

    async def ask(backend: Backend, **phrases: Any) -> segment_pb2.SegmentResponse:
        async with engine_for(backend) as engine:
            servicer = SegmentServicer(engine, Defaults(), SegmenterSettings())
            request = segment_pb2.SegmentRequest(image=image, phrases=segment_pb2.Phrases(**phrases))
            model = await servicer.GetModel(segment_pb2.SegmentServiceGetModelRequest(), None)
            assert model.takes_phrases is (backend is sam3)
            return await servicer._segment(request, None)

    answer = await ask(sam3, texts=PHRASES, min_score=0)
    assert len(answer.results) == 2
    assert list(answer.truncated) == [False, False]
    scores = [one.predicted_iou for one in answer.results[0].candidates]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0
    for backend, phrases, kind, message in (
        (sam_hq, {"texts": PHRASES}, Kind.FAILED_PRECONDITION, "sam_hq does not take phrases"),
        (sam3, {}, Kind.INVALID_ARGUMENT, "at least one phrase"),
        (sam3, {"texts": ["mug", " "]}, Kind.INVALID_ARGUMENT, r"phrases.texts\[1\] is empty"),
        (sam3, {"texts": ["mug"] * 65}, Kind.TOO_LARGE, "at most 64"),
        (sam3, {"texts": ["mug"], "min_score": float("nan")}, Kind.INVALID_ARGUMENT, "min_score is nan"),
    ):
        with pytest.raises(RegionSearchError, match=message) as caught:
            await ask(backend, **phrases)
        assert caught.value.kind is kind


def test_folders_that_do_not_fit_are_named(sam3_folder: Path, hq_folder: Path, tmp_path: Path) -> None:
    def changed(name: str, source: Path, **files: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        for file_name, content in files.items():
            path = folder / {"config": "config.json", "weights": "model.safetensors"}[file_name]
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return folder

    def fails(folder: Path, message: str) -> None:
        with pytest.raises(RegionSearchError, match=message) as caught:
            load_backend(find_model(str(folder)), "cpu", "fp32")
        assert str(folder) in caught.value.message

    fails(changed("other", sam3_folder, config={"model_type": "bert"}), "of the type 'bert'; those that")
    fails(changed("damaged", sam3_folder, config=b"{"), "is not the configuration of a model")
    fails(changed("truncated", hq_folder, weights=b"12345678"), "cannot be read: it is damaged")
    weights = load_file(hq_folder / "model.safetensors")
    del weights["mask_decoder.hq_token.weight"]
    missing = changed("missing", hq_folder)
    save_file(weights, missing / "model.safetensors")
    fails(missing, "mask_decoder.hq_token.weight is missing or of another shape")
    (untold := changed("untold", sam3_folder)).joinpath("tokenizer.json").unlink()
    untold.joinpath("tokenizer_config.json").unlink()
    fails(untold, "does not hold a tokenizer")
    (empty := changed("empty", hq_folder)).joinpath("model.safetensors").unlink()
    with pytest.raises(RegionSearchError, match=r"model.safetensors does not exist"):
        find_model(str(empty))


def test_a_pulled_model_is_found_by_its_name(
    sam3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIONSEARCH_MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "sam3.safetensors").symlink_to(sam3_folder / "model.safetensors")
    with pytest.raises(RegionSearchError, match=r"config.json of facebook/sam3 .* models pull sam3"):
        find_model("sam3")
    snapshot = tmp_path / "hub" / "models--facebook--sam3" / "snapshots" / "main"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(sam3_folder)
    found = find_model("sam3")
    assert (found.family, found.variant, found.folder) == ("sam3", "sam3", snapshot)
    assert isinstance(load_backend(found, "cpu", "fp32"), Sam3Backend)
    with pytest.raises(RegionSearchError, match="models pull sam_hq_vit_b"):
        find_model("sam_hq_vit_b")
