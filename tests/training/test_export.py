"""Manifests of exported weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from services.segmenter.backends.pocket import build_pocket_sam
from training.export import export_segmenter

SMALL: dict[str, Any] = {"img_size": 64, "width": 32, "detail": 16, "outline": 8, "body": "regnetx_002"}


def test_what_was_measured_of_weights_stays_with_them_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam, manifest = build_pocket_sam(**SMALL), tmp_path / "segmenter.json"
    rates = {"tf32": 1.0, "bf16": 0.98}

    def export() -> dict[str, object]:
        export_segmenter(sam, SMALL, {"points_per_side": 8}, tmp_path)
        return dict(json.loads(manifest.read_text()))

    assert "match_rates" not in export()
    manifest.write_text(json.dumps(export() | {"match_rates": rates}))
    assert export()["match_rates"] == rates
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight += 1
    assert "match_rates" not in export()
