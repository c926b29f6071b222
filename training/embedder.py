"""Trains the pocket embedder: an open_clip CLIP on crops of drawn scenes, cut as the service cuts them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from services.embedder.options import CropPolicy
from training.captions import ALL_WORDS, describe_scene
from training.loop import Run, build_adamw, train
from training.naming import NamingQuality, crop, to_tensor, whole_crop
from training.prompts import mask_box
from training.scenes import HELD_OUT, Scene, SceneArtist
from training.store import SceneStore, fit
from training.vocabulary import Vocabulary

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {
        "image_size": 80,
        "timm_model_name": "regnetx_004",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 96, "heads": 4, "layers": 3},
}
STEPS = 5_000  # of a whole run
BATCH = 26  # scenes of a step; each gives one crop per thing
PEAK_RATE = 1.5e-3

_WHOLE_SCENES = 8  # of a step's scenes that are also seen whole
_COARSE_SIDE, _COARSE_SHARE = 64, 0.6  # the first part of a run sees smaller crops, for speed
_POLICIES = tuple(policy for policy in CropPolicy if policy is not CropPolicy.ENSEMBLE)
_POLICY_WEIGHTS = np.array([4.0 if policy is CropPolicy.BLUR else 1.0 for policy in _POLICIES])


class EmbedderTrainingModel(nn.Module):
    """The pocket CLIP with one prototype vector per class.

    Images and texts are both drawn to the prototypes, so that every step separates all classes and not
    only those of its batch; the last prototype stands for "no thing": background and parts. They are thrown
    away afterwards.
    """

    row: Tensor  # of `tokens`, for every token of the tokenizer
    known: Tensor  # tokens of the tokenizer that are trained

    def __init__(self, config: dict[str, Any], vocabulary: Vocabulary) -> None:
        super().__init__()
        self.clip = build_clip(config)
        self.prototypes = nn.Parameter(torch.randn(len(vocabulary.names) + 1, config["embed_dim"]) * 0.05)
        self.tokenize = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
        words = [*ALL_WORDS, *vocabulary.names, *(w for words in vocabulary.keywords.values() for w in words)]
        known = self.tokenize(words).unique()
        # Only the tokens of this world are trained; the others are zero, so that they change nothing.
        self.tokens = nn.Embedding(len(known), config["text_cfg"]["width"])
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.register_buffer("row", torch.zeros(config["text_cfg"]["vocab_size"], dtype=torch.long))
        self.row[known] = torch.arange(len(known))
        self.register_buffer("known", known)
        self.clip.token_embedding.requires_grad_(False).weight.zero_()
        self.clip.visual.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def init_from(self, clip: open_clip.CLIP, vocabulary: Vocabulary) -> None:
        """Begins with trained weights of the same architecture; prototypes begin at the names' texts."""
        weights = clip.state_dict()
        table = weights.pop("token_embedding.weight")
        self.clip.load_state_dict(weights, strict=False)
        self.tokens.weight.copy_(table[self.known])
        names = vocabulary.names
        texts = [self.embed_texts(names[i : i + 256]) for i in range(0, len(names), 256)]
        self.prototypes[: len(names)] = torch.cat(texts)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (N, 3, side, side) to unit vectors (N, D)."""
        with torch.autocast(pixels.device.type, torch.bfloat16):
            features = self.clip.visual(pixels.contiguous(memory_format=torch.channels_last))
        return F.normalize(features.float(), dim=-1)

    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors (N, D). Padding is cut off: under the causal mask it cannot change the result."""
        clip = self.clip
        tokens = self.tokenize(texts)
        length = int((tokens != 0).sum(1).max())
        tokens = tokens[:, :length].to(self.prototypes.device)
        with torch.autocast(tokens.device.type, torch.bfloat16):
            x = self.tokens(self.row[tokens]) + clip.positional_embedding[:length]
            x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
            x = x[torch.arange(len(x)), tokens.argmax(1)] @ clip.text_projection
        return F.normalize(x.float(), dim=-1)

    def finished(self) -> open_clip.CLIP:
        """The CLIP with the trained tokens in place."""
        self.clip.token_embedding.weight[self.known] = self.tokens.weight.detach()
        return self.clip


def build_clip(config: dict[str, Any]) -> open_clip.CLIP:
    """An open_clip ``CLIP`` with random weights from a model config."""
    return open_clip.CLIP(**config)


def train_embedder(run: Run, store: SceneStore, init: open_clip.CLIP | None = None) -> nn.Module:
    """Trains and returns the averaged :class:`open_clip.CLIP`.

    Args:
        run: What is asked for.
        store: Scenes to train on.
        init: Weights to begin with, which see crops in full size from the start; random ones when absent.
    """
    torch.manual_seed(run.seed)
    artist = SceneArtist()
    vocabulary = Vocabulary(artist.vocabulary)
    model = EmbedderTrainingModel(MODEL_CONFIG, vocabulary)
    if init is not None:
        model.init_from(init, vocabulary)
    model.to(run.device)
    fine_side = MODEL_CONFIG["vision_cfg"]["image_size"]
    coarse_steps = 0.0 if init is not None else _COARSE_SHARE * run.steps

    def compute_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((run.seed, step))
        side = _COARSE_SIDE if step < coarse_steps else fine_side
        scenes = [fit(store[int(i)]) for i in rng.integers(len(store), size=run.batch_size)]
        return _step_loss(model, vocabulary, scenes, rng, side, run.device)

    @functools.cache  # drawn once, and only by runs long enough to be looked at
    def held_out() -> list[Scene]:
        return [fit(artist.draw(HELD_OUT + i)) for i in range(60)]

    def evaluate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, EmbedderTrainingModel)
        quality = NamingQuality(module, vocabulary, fine_side, run.device)
        return quality.of_scenes(held_out()) | quality.of_unseen_icons(limit=300)

    averaged = train(
        model,
        compute_loss,
        build_adamw(model, PEAK_RATE),
        steps=run.steps,
        peak=PEAK_RATE,
        checkpoint=run.folder / "embedder.ckpt",
        evaluate=evaluate,
    )
    assert isinstance(averaged, EmbedderTrainingModel)
    clip: nn.Module = averaged.finished()
    return clip


def _step_loss(
    model: EmbedderTrainingModel,
    vocabulary: Vocabulary,
    scenes: list[Scene],
    rng: np.random.Generator,
    side: int,
    device: torch.device,
) -> tuple[Tensor, dict[str, float]]:
    crops: list[Tensor] = []
    images: list[Tensor] = []
    names: list[str | None] = []
    shown: list[list[str]] = []
    for scene in scenes:
        pixels = scene.image[:, ::-1] if (mirrored := rng.random() < 0.5) else scene.image
        labels = scene.labels[:, ::-1] if mirrored else scene.labels
        image = to_tensor(pixels, device)
        boxes, masks, seen = _regions(rng, scene, labels)
        policy = _POLICIES[int(rng.choice(len(_POLICIES), p=_POLICY_WEIGHTS / _POLICY_WEIGHTS.sum()))]
        crops.append(crop(image, boxes, masks, policy, side, device))
        names.extend(seen)
        if scene.names and len(images) < _WHOLE_SCENES:
            images.append(whole_crop(image, side))
            shown.append(scene.names)
    features = model.embed_images(torch.cat([*crops, *images]))
    nothing = len(vocabulary.names)
    classes = torch.tensor([vocabulary.index[n] if n else nothing for n in names], device=device)
    regions, wholes = features[: len(names)], features[len(names) :]
    is_thing = classes != nothing
    things = [name for name in names if name]
    spare = [vocabulary.names[int(i)] for i in rng.integers(nothing, size=32)]
    texts = model.embed_texts([vocabulary.describe(rng, name) for name in things] + spare)
    text_classes = torch.tensor([vocabulary.index[name] for name in things + spare], device=device)

    scale = model.clip.logit_scale.exp().clamp(max=100)
    prototypes = F.normalize(model.prototypes, dim=-1)
    named = scale * regions @ prototypes.T
    loss_named = F.cross_entropy(named, classes) + F.cross_entropy(scale * texts @ prototypes.T, text_classes)
    loss_paired = _contrast(scale * regions @ texts.T, classes[:, None] == text_classes[None], is_thing)

    target = torch.zeros(len(shown), len(prototypes), device=device)
    for row, present in zip(target, shown, strict=True):
        row[[vocabulary.index[name] for name in present]] = 1 / len(present)
    captions = model.embed_texts([describe_scene(rng, present) for present in shown])
    loss_scenes = F.cross_entropy(scale * wholes @ prototypes.T, target)
    loss_scenes = loss_scenes + F.cross_entropy(scale * captions @ prototypes.T, target)
    same = torch.eye(len(shown), dtype=torch.bool, device=device)
    loss_scenes = loss_scenes + _contrast(scale * wholes @ captions.T, same, same.any(1))

    loss = loss_named + loss_paired + 0.25 * loss_scenes
    with torch.no_grad():
        report = {
            "named": float(loss_named),
            "paired": float(loss_paired),
            "scenes": float(loss_scenes),
            "right": float((named.argmax(1) == classes)[is_thing].float().mean()),
            "scale": float(scale),
        }
    return loss, report


def _contrast(logits: Tensor, same: Tensor, rows: Tensor) -> Tensor:
    """Symmetric contrastive loss in which a row may have several right columns, as when a thing occurs twice.

    Args:
        logits: (R, C).
        same: (R, C) bool, the right pairs.
        rows: (R,) bool, the rows with a right column; the others only count as wrong answers for the columns.
    """
    target = same.float()
    across = F.cross_entropy(logits[rows], target[rows] / target[rows].sum(1, keepdim=True))
    columns = same.any(0)
    down = F.cross_entropy(logits.T[columns], target.T[columns] / target.T[columns].sum(1, keepdim=True))
    return (across + down) / 2


def _regions(
    rng: np.random.Generator, scene: Scene, labels: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], list[str | None]]:
    """Boxes and masks as a segmenter gives them, a little off; now and then a part or background too."""
    boxes, masks = [], []
    names: list[str | None] = []
    for thing in scene.things:
        mask = _disturb(rng, labels == thing.label)
        boxes.append(mask_box(mask))
        masks.append(mask)
        names.append(thing.name or None)
    if rng.random() < 0.5:
        mask = (
            labels == scene.things[int(rng.integers(len(scene.things)))].label
            if rng.random() < 0.6
            else labels == 0
        )
        x0, y0, x1, y1 = mask_box(mask)
        width, height = (x1 - x0) * rng.uniform(0.2, 0.5), (y1 - y0) * rng.uniform(0.2, 0.5)
        x, y = rng.uniform(x0, x1 - width), rng.uniform(y0, y1 - height)
        part = np.zeros_like(mask)
        part[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1] = True
        if (part := part & mask).sum() > 30:
            boxes.append(mask_box(part))
            masks.append(part)
            names.append(None)
    return np.stack(boxes), np.stack(masks), names


def _disturb(rng: np.random.Generator, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Grows, shrinks or shifts a mask by a pixel or two, or leaves it."""
    kind = rng.random()
    if kind < 0.4:
        return mask
    dy, dx = rng.integers(-2, 3, 2)
    moved = np.zeros_like(mask)
    height, width = mask.shape
    moved[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)] = mask[
        max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)
    ]
    changed = mask | moved if kind < 0.7 else mask & moved
    return changed if changed.sum() > 40 else mask
