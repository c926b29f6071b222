"""What the proposal head is taught, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch

from services.segmenter.backends.pocket import build_pocket_sam
from services.segmenter.backends.proposer import ProposalHead
from tests.training.test_refiner import Scenes, scene
from training import proposer
from training.loop import Run
from training.store import SceneStore

SMALL = {"img_size": 128, "width": 32, "detail": 16, "outline": 8, "body": "regnetx_002"}


def test_every_thing_is_deepest_in_its_middle() -> None:
    labels = np.zeros((96, 96), np.uint8)
    labels[8:72, 8:72] = 1
    labels[82:90, 82:90] = 2  # a cell's worth, at a corner of four
    depths, weight = proposer.depths(labels)
    assert depths.shape == weight.shape == (12, 12)
    assert depths[0].max() == depths[:, 0].max() == 0
    row, column = divmod(int(depths[:9, :9].argmax()), 9)
    assert abs(row - 4.5) <= 1 >= abs(column - 4.5)
    assert depths[10:, 10:].max() == depths[:9, :9].max() == 1
    assert weight[0, 0] == weight[5, 5] == 1 < weight[10, 10] <= 8
    assert proposer.depths(np.zeros((96, 96), np.uint8))[0].max() == 0


def test_a_head_learns_and_the_segmenter_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = build_pocket_sam(**SMALL)
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    model = proposer.ProposerTrainingModel(sam)
    scenes = [scene(seed) for seed in range(4)]
    hit = proposer.hits(model, scenes, 128, torch.device("cpu"))
    assert set(hit) == {"hit", "asked"}
    run = Run(tmp_path, 25, 4, torch.device("cpu"), 0)
    head = proposer.train_proposer(run, cast("SceneStore", Scenes()), sam)
    assert isinstance(head, ProposalHead)
    for name, value in sam.state_dict().items():
        assert torch.equal(value, before[name])
    sam.proposer = head
    built = build_pocket_sam(**SMALL, proposer=proposer.architecture(sam))
    built.load_state_dict(sam.state_dict())
    model.head = head
    after = proposer.hits(model, scenes, 128, torch.device("cpu"))
    assert after["hit"] >= 0.5
    assert (tmp_path / "proposer.ckpt").is_file()
