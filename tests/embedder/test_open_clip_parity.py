"""Every family of open_clip gives the vectors that open_clip's own preprocessing and encoders give.

The architectures are open_clip's, with random weights, one layer and narrow towers; how images and texts are
prepared, and which activation is used, is that of the tag. Weights go through a file, as published ones do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.transform import image_transform
from PIL import Image

from services.embedder.backends import load_backend
from services.embedder.crops import CropPolicy, crop_regions
from services.embedder.loading import find_model
from services.embedder.tasks import ImageTask

ROOT = Path(__file__).resolve().parents[2]
SIZES = ((96, 128), (300, 200), (257, 511), (64, 640), (512, 512), (700, 120), (333, 90), (450, 451))
TEXTS = ["a mug", "An old-fashioned  TYPEWRITER, on a desk!", "word " * 200, "", "naïve café & <b>tea</b>"]
PAIRS = [pair for pair in open_clip.list_pretrained() if open_clip.get_model_config(pair[0])]
# One for each class of towers, way of preparing images and kind of tokenizer; all weights run with -m slow.
REPRESENTATIVES = [
    ("ViT-B-32", "laion2b_s34b_b79k"),
    ("ViT-B-32", "openai"),
    ("RN50", "openai"),
    ("ViT-H-14-378", "dfn5b"),
    ("MobileCLIP2-S0", "dfndr2b"),
    ("PE-Core-T-16-384", "meta"),
    ("coca_ViT-B-32", "laion2b_s13b_b90k"),
    ("ViT-L-14-CLIPA", "datacomp1b"),
    ("ViT-B-32-SigLIP2-256", "webli"),
    ("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k"),
]
TEXT_TOWERS = {
    "roberta-base": ("roberta", {}),
    "xlm-roberta-base": ("xlm-roberta", {}),
    "xlm-roberta-large": ("xlm-roberta", {}),
    "facebook/nllb-200-distilled-600M": ("m2m_100", {}),
    "facebook/nllb-200-distilled-1.3B": ("m2m_100", {}),
}
VOCABULARY = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "a",
    "mug",
    "word",
    "old",
    "fashioned",
    "an",
    "on",
    "desk",
    "tea",
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a small tokenizer."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("tokenizer")
    words = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 1), ("</s>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return folder


def reduced(name: str, folder: Path | None) -> dict[str, Any]:
    """The configuration of an architecture, narrow and flat, with the files of the hub in a folder."""
    config: dict[str, Any] = deepcopy(open_clip.get_model_config(name))
    vision, text = config["vision_cfg"], config["text_cfg"]
    if isinstance(vision.get("layers"), list):
        vision |= {"layers": [1, 1, 1, 1], "width": 16}
    elif "timm_model_name" not in vision:
        vision |= {"layers": 1, "width": 64, "head_width": 32}
        if "attn_pooler_heads" in vision:
            vision["attn_pooler_heads"] = 2
    if "hf_tokenizer_name" in text:
        assert folder is not None
        text |= {"hf_tokenizer_name": str(folder), "vocab_size": len(VOCABULARY)}
    if "hf_model_name" in text:
        import transformers

        kind, options = TEXT_TOWERS[text["hf_model_name"]]
        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        if kind == "m2m_100":
            small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
            small |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        options = small | {"vocab_size": len(VOCABULARY), "pad_token_id": 0, **options}
        transformers.AutoConfig.for_model(kind, **options).save_pretrained(folder)
        text["hf_model_name"] = str(folder)
    else:
        text |= {"layers": 1, "width": 64, "heads": 2}
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"layers": 1, "width": 64, "heads": 2, "attn_pooler_heads": 2}
        config["embed_dim"] = 64
    return config


FLAT = (("vit", {"depth": 1}), ("eva", {"depth": 1}), ("convnext", {"depths": (1, 1, 1, 1)}))


@contextmanager
def small(name: str, folder: Path | None) -> Iterator[None]:
    """open_clip's architecture of that name is a small one meanwhile."""
    create = timm.create_model
    config = reduced(name, folder)

    def flat(body: str, **options: Any) -> Any:
        extra = next((extra for start, extra in FLAT if body.startswith(start)), {})
        try:
            return create(
                body, **options, **(extra if not body.startswith(("vitamin", "vit_base_mci")) else {})
            )
        except TypeError:
            return create(body, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        patch.setattr(timm, "create_model", flat)
        yield


def photographs() -> list[Image.Image]:
    """Parts of a scene in sizes that meet every way of resizing."""
    scene = Image.open(sorted((ROOT / "examples" / "scenes").iterdir())[0]).convert("RGB")
    scene = scene.resize((1024, 1024), Image.Resampling.LANCZOS)
    return [scene.crop((i * 31, i * 17, i * 31 + w, i * 17 + h)) for i, (w, h) in enumerate(SIZES)]


def centred_cosine(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The least cosine between rows that belong together, after the mean of the right ones is taken off."""
    mean = theirs.mean(0)
    return float(torch.nn.functional.cosine_similarity(ours - mean, theirs - mean, dim=-1).min())


@torch.inference_mode()
def parity(name: str, tag: str, folder: Path | None, tmp_path: Path) -> tuple[float, float, float]:
    """Centred cosines of images, of regions and of texts between open_clip and the embedder."""
    published = open_clip.get_pretrained_cfg(name, tag)
    with small(name, folder), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        activation = {"force_quick_gelu": bool(published.get("quick_gelu"))}
        file = tmp_path / "weights.pt"
        torch.save(open_clip.create_model(name, pretrained_text=False, **activation).state_dict(), file)
        patch.setattr(open_clip.factory, "download_pretrained", lambda *args, **options: str(file))
        theirs, _, preprocess = open_clip.create_model_and_transforms(name, tag, **activation)
        theirs.eval()
        tokenizer = open_clip.get_tokenizer(name)
        backend = load_backend(find_model(f"{name}:{tag}", weights=file), torch.device("cpu"), "fp32", False)
    file.unlink()
    photos = photographs()
    expected = theirs.encode_image(torch.stack([preprocess(photo) for photo in photos]), normalize=True)
    images = [
        ImageTask(lambda photo=photo: np.asarray(photo)).prepare(backend).crops(0, 1, backend)
        for photo in photos
    ]
    found = backend.embed_crops(torch.cat(images))
    keys = ("mean", "std", "interpolation")
    squash = image_transform(
        backend.size, False, resize_mode="squash", **{key: published[key] for key in keys}
    )
    pixels = torch.from_numpy(np.asarray(photos[4]).copy()).permute(2, 0, 1)
    boxes = [(0, 0, 512, 512), (10, 20, 200, 90), (300, 5, 340, 500), (50, 60, 58, 75), (1, 2, 400, 300)]
    crops = torch.stack([squash(photos[4].crop(box)) for box in boxes])
    expected_regions = theirs.encode_image(crops, normalize=True)
    options = {"mean": backend.mean, "std": backend.std, "interpolation": backend.interpolation}
    cut = crop_regions(pixels, torch.tensor(boxes).float(), None, CropPolicy.BBOX, backend.size, **options)
    tokens, truncated = backend.tokenize(TEXTS)
    assert tokens.equal(tokenizer(TEXTS))
    assert truncated == [False, False, True, False, False]
    expected_texts = theirs.encode_text(tokens, normalize=True)
    return (
        centred_cosine(found, expected),
        centred_cosine(backend.embed_crops(cut), expected_regions),
        centred_cosine(backend.embed_tokens(tokens), expected_texts),
    )


def check(name: str, tag: str, request: pytest.FixtureRequest, folder: Path) -> None:
    hub = None
    if "hf_tokenizer_name" in open_clip.get_model_config(name)["text_cfg"]:
        hub = request.getfixturevalue("hub")
    assert min(parity(name, tag, hub, folder)) >= 0.9999


@pytest.mark.parametrize(("name", "tag"), REPRESENTATIVES, ids=map(":".join, REPRESENTATIVES))
def test_a_model_answers_as_open_clip_does(
    name: str, tag: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    check(name, tag, request, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tag"), PAIRS, ids=map(":".join, PAIRS))
def test_all_weights_answer_as_open_clip_does(
    name: str, tag: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    check(name, tag, request, tmp_path)
