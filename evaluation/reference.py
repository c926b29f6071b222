"""The pocket models behind the reference implementations: segment_anything's own generator and predictor,
open_clip's own towers.

Slow and plain. What our engines reach must be what these reach.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from pycocotools import mask as coco
from safetensors.torch import load_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor

from evaluation import rle
from evaluation.rle import Rle
from evaluation.system import InProcess, Proposals, Regions, VectorArray
from regionsearch.images import Pixels
from services.embedder.backends.open_clip import unpack_rows
from services.embedder.crops import crop_regions
from services.embedder.options import CropPolicy
from services.segmenter.backends.pocket import build_pocket_sam

MAX_REGIONS = 64  # per image
POCKET = Path(__file__).parent.parent / "models" / "pocket"


class StockSegmenter:
    """`SamAutomaticMaskGenerator` and `SamPredictor` on the pocket SAM."""

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "segmenter.json").read_text())
        sam = build_pocket_sam(**manifest["architecture"])
        sam.load_state_dict(load_file(folder / "segmenter.safetensors"))
        sam = sam.float().eval()
        self._digest = manifest["sha256"]
        self._generator = SamAutomaticMaskGenerator(
            sam, output_mode="coco_rle", **manifest.get("everything", {})
        )
        self._predictor = SamPredictor(sam)

    def describe(self) -> dict[str, Any]:
        """See `evaluation.system.Segmenter`."""
        return {"code": "segment_anything", "sha256": self._digest}

    def everything(self, pixels: Pixels) -> Proposals:
        """See `evaluation.system.Segmenter`."""
        found = self._generator.generate(pixels)
        found.sort(key=lambda region: -region["predicted_iou"] * region["stability_score"])
        masks: list[Rle] = [
            {"size": region["segmentation"]["size"], "counts": region["segmentation"]["counts"].encode()}
            for region in found
        ]
        regions = Regions(masks, np.array([r["predicted_iou"] * r["stability_score"] for r in found]))
        return Proposals(regions, regions.take(MAX_REGIONS))

    @torch.inference_mode()
    def click(self, pixels: Pixels, points: Sequence[tuple[int, int]]) -> Sequence[Rle]:
        """See `evaluation.system.Segmenter`."""
        self._predictor.set_image(pixels)
        coordinates = self._predictor.transform.apply_coords(np.array(points, dtype=float), pixels.shape[:2])
        masks, quality, _ = self._predictor.predict_torch(
            torch.from_numpy(coordinates).float()[:, None], torch.ones(len(points), 1)
        )
        chosen = masks[torch.arange(len(points)), quality.argmax(dim=1)].numpy()
        return [rle.encode(mask) for mask in chosen]


class StockEmbedder:
    """open_clip's CLIP on single crops."""

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "embedder.json").read_text())
        self._model = CLIP(**manifest["model_config"])
        self._model.load_state_dict(unpack_rows(load_file(folder / "embedder.safetensors")))
        self._model.float().eval()
        self._digest = manifest["sha256"]
        self._mean, self._std = manifest["preprocess"]["mean"], manifest["preprocess"]["std"]
        self._size = manifest["model_config"]["vision_cfg"]["image_size"]
        self._tokenizer = open_clip.SimpleTokenizer(
            context_length=manifest["model_config"]["text_cfg"].get("context_length", 77)
        )

    def describe(self) -> dict[str, Any]:
        """See `evaluation.system.Embedder`."""
        return {"code": "open_clip", "sha256": self._digest}

    @torch.inference_mode()
    def regions(self, pixels: Pixels, masks: Sequence[Rle], policy: str) -> VectorArray:
        """See `evaluation.system.Embedder`."""
        if not masks:
            return np.zeros((0, self._model.text_projection.shape[1]), dtype=np.float32)
        boxes = torch.from_numpy(coco.toBbox(list(masks))).float()
        boxes[:, 2:] += boxes[:, :2]
        planes = torch.from_numpy(np.stack([rle.decode(mask) for mask in masks]))
        parts = [self._crops(pixels, boxes, planes, part) for part in CropPolicy(policy).parts]
        vectors = torch.stack([self._model.encode_image(crops, normalize=True) for crops in parts]).sum(0)
        unit: VectorArray = torch.nn.functional.normalize(vectors, dim=-1).numpy()
        return unit

    @torch.inference_mode()
    def image(self, pixels: Pixels) -> VectorArray:
        """See `evaluation.system.Embedder`."""
        height, width = pixels.shape[:2]
        crops = self._crops(pixels, torch.tensor([[0.0, 0.0, width, height]]), None, CropPolicy.BBOX)
        vector: VectorArray = self._model.encode_image(crops, normalize=True)[0].numpy()
        return vector

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> VectorArray:
        """See `evaluation.system.Embedder`."""
        chunks = [self._tokenizer(list(texts[i : i + 256])) for i in range(0, len(texts), 256)]
        return torch.cat([self._model.encode_text(chunk, normalize=True) for chunk in chunks]).numpy()

    def _crops(
        self, pixels: Pixels, boxes: torch.Tensor, masks: torch.Tensor | None, policy: CropPolicy
    ) -> torch.Tensor:
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return crop_regions(image, boxes, masks, policy, self._size, mean=self._mean, std=self._std)


def reference_system(models: Path | None = None, policy: str = "blur") -> InProcess:
    """The reference implementations on the pocket models of a folder, by default the bundled ones."""
    folder = models or POCKET
    return InProcess(StockSegmenter(folder), StockEmbedder(folder), policy)
