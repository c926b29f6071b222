"""A segmenter's process whose model has a small and fragile device. Run as a module, it serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from regionsearch.v1 import segment_pb2
from services.runtime.server import run
from services.segmenter.backends import FAMILIES
from services.segmenter.backends.base import Embedding, ModelFiles, ModelIdentity, PromptBatch
from services.segmenter.backends.pocket import build_pocket_sam
from services.segmenter.backends.sam import SamBackend
from services.segmenter.service import segmenter
from services.segmenter.settings import SegmenterSettings

ROOM = 4  # prompts that fit into the device's memory
DEADLY = 7  # points of a prompt that loses the device


class TroubledBackend(SamBackend):
    """Random weights, the same every time; out of memory above `ROOM` prompts, lost at `DEADLY` points."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        sam = build_pocket_sam(img_size=64, width=32)
        torch.nn.init.constant_(sam.mask_decoder.iou_prediction_head.layers[-1].bias, 0.9)
        super().__init__(sam, ModelIdentity("failing", "", "0" * 64, "fp32", "cpu"))
        self.decode_batch = 1000
        self.lost = False

    def encode(self, prepared: Sequence[Any]) -> list[Embedding]:
        self._check()
        return super().encode(prepared)

    def decode(self, embedding: Embedding, prompts: PromptBatch) -> Any:
        if prompts.points is not None and prompts.points.shape[1] == DEADLY:
            self.lost = True
        self._check()
        if len(prompts) > ROOM:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return super().decode(embedding, prompts)

    def _check(self) -> None:
        if self.lost:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def load(files: ModelFiles, device: str, precision: str, compile_model: bool) -> TroubledBackend:
    """As a family does."""
    return TroubledBackend()


if __name__ == "__main__":
    torch.set_num_threads(1)
    FAMILIES["failing"] = "tests.segmenter.failing_process"
    settings = SegmenterSettings.load()
    run(settings, [segment_pb2.DESCRIPTOR.services_by_name["SegmentService"]], segmenter(settings))
