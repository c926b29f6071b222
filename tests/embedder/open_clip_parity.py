"""Whether a model of open_clip answers as open_clip itself does; and docs/models.md, which says so for all.

The architectures are open_clip's, with random weights, one layer and narrow towers; how images and texts are
prepared, and which activation is used, is that of the tag. Weights go through a file, as published ones do.

``python -m tests.embedder.open_clip_parity docs/models.md`` checks all published weights and writes the page.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.transform import image_transform
from PIL import Image

from regionsearch.errors import RegionSearchError
from services.embedder.backends import load_backend
from services.embedder.crops import crop_regions
from services.embedder.options import CropPolicy
from services.embedder.service import find_model
from services.embedder.tasks import ImageTask, cut_batch
from tests.stack import ROOT

LEAST = 0.9999
SIZES = ((96, 128), (300, 200), (257, 511), (64, 640), (512, 512), (700, 120), (333, 90), (450, 451))
TEXTS = ["a mug", "An old-fashioned  TYPEWRITER, on a desk!", "word " * 200, "", "naïve café & <b>tea</b>"]
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


def write_tokenizer(folder: Path) -> None:
    """Writes the files of a small tokenizer of the Hugging Face hub's kind."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

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


# Bodies of timm whose depth is an argument; the few others stay as deep as they are.
FLAT = {
    "vitamin": {},  # has an argument of its own, further down
    "vit": {"depth": 1},
    "eva": {"depth": 1},
    "convnext": {"depths": (1,) * 4},
    "fastvit_mci3": {"layers": (1,) * 5},
    "fastvit_mci4": {"layers": (1,) * 5},
    "fastvit": {"layers": (1,) * 4},
}


@contextmanager
def small(name: str, folder: Path | None) -> Iterator[None]:
    """open_clip's architecture of that name is a small one meanwhile."""
    create, create_vitamin = timm.create_model, timm.models.vitamin._create_vitamin
    config = reduced(name, folder)

    def flat(body: str, **options: Any) -> Any:
        extra = next((extra for start, extra in FLAT.items() if body.startswith(start)), {})
        try:
            return create(body, **options, **extra)
        except TypeError:
            return create(body, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        patch.setattr(timm, "create_model", flat)
        patch.setattr(
            timm.models.vitamin,
            "_create_vitamin",
            lambda *args, **options: create_vitamin(*args, **options | {"depth": 1}),
        )
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
    # One at a time: some towers take hundreds of megabytes an image.
    expected = torch.cat([theirs.encode_image(preprocess(photo)[None], normalize=True) for photo in photos])
    images = [
        cut_batch([(ImageTask(lambda photo=photo: np.asarray(photo)).prepare(backend), 0, 1)], backend)
        for photo in photos
    ]
    found = torch.cat([backend.embed_crops(image) for image in images])
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


@dataclass(frozen=True)
class Family:
    """Weights of one architecture that are prepared alike and use the same activation."""

    name: str
    tags: tuple[str, ...]

    def cells(self) -> tuple[str, str]:
        """The first cells of its row."""
        return f"| `{self.name}`", ", ".join(f"`{tag}`" for tag in self.tags)


def families() -> list[Family]:
    """All weights that open_clip publishes."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, tag in open_clip.list_pretrained():
        published = open_clip.get_pretrained_cfg(name, tag)
        keys = ("quick_gelu", "mean", "std", "interpolation", "resize_mode", "size")
        found.setdefault((name, repr([published.get(key) for key in keys])), []).append(tag)
    return [Family(name, tuple(tags)) for (name, _), tags in found.items()]


def row(family: Family, folder: Path) -> str:
    """A line of the table; what cannot be served says why."""
    config = open_clip.get_model_config(family.name)
    published = open_clip.get_pretrained_cfg(family.name, family.tags[0])
    vision, text = config["vision_cfg"], config["text_cfg"]
    activation = "QuickGELU" if published.get("quick_gelu") or config.get("quick_gelu") else ""
    image = (str(vision["image_size"]), published["interpolation"], published["resize_mode"], activation)
    tokenizer = text.get("hf_tokenizer_name", "CLIP")
    cells = [*family.cells(), " ".join(filter(None, image)), f"{text.get('context_length', 77)}, {tokenizer}"]
    try:
        cosines = parity(family.name, family.tags[0], folder, folder)
        cells += [f"{cosine:.5f}" for cosine in cosines]
        cells.append("same" if min(cosines) >= LEAST else "**differs**")
    except RegionSearchError as error:
        cells += ["", "", "", f"not served: {error.message}"]
    return " | ".join(cells) + " |"


HEADER = """## Embedders

Generated by `make docs/models.md` with open_clip {version}: every family of weights that it publishes,
compared with its own preprocessing and encoders. The figures are the least centred cosine over photographs,
regions and texts of different sizes (1 means the same vectors; at least {least} is asked for); token ids
are equal. What is compared is how images and texts are prepared, which activation is used and how files of
weights are read: architectures are flattened to one layer, with random weights.

Any of them runs with `regionsearch up --embedder NAME:TAG`, after
`regionsearch models pull open_clip:NAME:TAG`. Tokenizers other than CLIP's own need
`pip install 'regionsearch[hf]'`.

Left out are the architectures of which open_clip publishes no weights, so that their preprocessing is not
known. A folder with your own weights and their `open_clip_config.json` is served all the same. They are:
{without}.

| model | weights | images are prepared as | texts: tokens, tokenizer | images | regions | texts | |
|---|---|---|---|---|---|---|---|
"""


def page(rows: list[str]) -> str:
    """The part of docs/models.md about embedders."""
    published = {name for name, _ in open_clip.list_pretrained()}
    without = ", ".join(f"`{name}`" for name in open_clip.list_models() if name not in published)
    head = HEADER.format(version=open_clip.__version__, least=LEAST, without=without)
    return head + "\n".join(rows) + "\n"


def main(path: Path) -> None:
    """Checks all families, one at a time, and writes the page."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for family in families():
            write_tokenizer(Path(folder))  # text towers write their configuration into the same folder
            rows.append(row(family, Path(folder)))
            print(rows[-1], flush=True)
            gc.collect()
    segmenters, _, _ = path.read_text().partition(HEADER.partition("\n")[0])
    path.write_text(segmenters + page(rows))
    if any("**differs**" in line for line in rows):
        raise SystemExit("some do not answer as open_clip does")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
