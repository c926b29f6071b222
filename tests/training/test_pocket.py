from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam

from services.embedder.backends.open_clip import unpack_rows
from services.embedder.crops import crop_regions
from services.embedder.options import CropPolicy
from services.segmenter.backends.pocket import build_pocket_sam
from training.export import load_weights
from training.shapes import draw_shape

POCKET = Path(__file__).parents[2] / "models/pocket"
FIXTURE = Path(__file__).parents[2] / "evaluation/fixture"
MODELS = ("segmenter", "embedder")


@pytest.fixture(scope="module")
def sam() -> Sam:
    manifest = json.loads((POCKET / "segmenter.json").read_text())
    model = build_pocket_sam(**manifest["architecture"])
    load_weights(model, POCKET / "segmenter.safetensors")
    return model.eval()


@pytest.mark.parametrize("model", MODELS)
def test_weights_match_their_digest_and_are_half_precision(model: str) -> None:
    manifest = json.loads((POCKET / f"{model}.json").read_text())
    file = POCKET / f"{model}.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == manifest["sha256"]
    weights = load_file(file)
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float16}
    assert all(torch.isfinite(w).all() for w in weights.values() if w.is_floating_point())


def test_the_segmenter_says_what_reduced_precision_finds() -> None:
    rates = json.loads((POCKET / "segmenter.json").read_text())["match_rates"]
    assert set(rates) == {"bf16", "fp16", "tf32"}
    assert all(0 <= rate <= 1 for rate in rates.values())


def test_both_models_fit_their_size() -> None:
    assert sum((POCKET / f"{model}.safetensors").stat().st_size for model in MODELS) <= 32 * 2**20


def test_the_reference_predictor_works_on_images_of_any_shape(sam: Sam) -> None:
    predictor = SamPredictor(sam)
    for width, height in ((256, 256), (600, 400), (171, 256)):
        image = np.full((height, width, 3), 200, np.uint8)
        y, x = np.ogrid[:height, :width]
        disc = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 5) ** 2
        image[disc] = (215, 40, 45)
        predictor.set_image(image)
        masks, quality, low = predictor.predict(np.array([[width / 2, height / 2]]), np.array([1]))
        assert masks.shape == (3, height, width)
        assert low.shape == (3, 192, 192)
        best = masks[quality.argmax()]
        assert (best & disc).sum() / (best | disc).sum() > 0.8
        again, _, _ = predictor.predict(
            np.array([[width / 2, height / 2]]), np.array([1]), mask_input=low[quality.argmax()][None]
        )
        assert again.shape == (3, height, width)


def test_the_reference_generator_works_with_the_pocket_model(sam: Sam) -> None:
    everything = json.loads((POCKET / "segmenter.json").read_text())["everything"]
    content = json.loads((FIXTURE / "scenes.json").read_text())
    record = content["images"][0]
    image = np.asarray(Image.open(FIXTURE / record["file_name"]).convert("RGB"))
    coarse = everything | {"points_per_side": 8}  # a quarter of the time
    regions = SamAutomaticMaskGenerator(sam, **coarse).generate(image)
    assert regions
    assert all(region["segmentation"].shape == image.shape[:2] for region in regions)


def test_a_wrong_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        build_pocket_sam(img_size=250)
    with pytest.raises(ValueError, match="width"):
        build_pocket_sam(width=100)


def test_unknown_words_change_nothing() -> None:
    manifest = json.loads((POCKET / "embedder.json").read_text())
    weights = unpack_rows(load_file(POCKET / "embedder.safetensors"))
    table = weights["token_embedding.weight"]
    tokenize = open_clip.SimpleTokenizer(
        context_length=manifest["model_config"]["text_cfg"]["context_length"]
    )
    assert table[tokenize("chair")[0, 1]].abs().sum() > 0
    unread = tokenize("zirconium quarterback")[0]
    assert table[unread[1]].abs().sum() == 0


def test_the_embedder_names_coloured_shapes() -> None:
    manifest = json.loads((POCKET / "embedder.json").read_text())
    clip = open_clip.CLIP(**manifest["model_config"])
    load_weights(clip, POCKET / "embedder.safetensors")
    clip.eval()
    names = ["yellow ring", "red heart", "blue square", "green star", "dog", "guitar"]
    tokens = open_clip.SimpleTokenizer(context_length=77)(names)
    for name in names[:4]:
        shape = Image.fromarray(draw_shape(name, np.random.default_rng(3))).resize((90, 90))
        image = Image.new("RGB", (256, 200), (205, 210, 190))
        image.paste(shape, (80, 60), shape)
        mask = np.zeros((200, 256), bool)
        mask[60:150, 80:170] = np.asarray(shape)[..., 3] > 127
        crops = crop_regions(
            torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()),
            torch.tensor([[80.0, 60.0, 170.0, 150.0]]),
            torch.from_numpy(mask[None]),
            CropPolicy.BLUR,
            manifest["model_config"]["vision_cfg"]["image_size"],
        )
        with torch.no_grad():
            scores = clip.encode_image(crops, normalize=True) @ clip.encode_text(tokens, normalize=True).T
        assert names[int(scores.argmax())] == name
