"""What the proposal head is taught, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from services.segmenter.backends.pocket import build_pocket_sam
from services.segmenter.backends.proposer import ProposalHead, boxes_of
from tests.training.test_refiner import Scenes, scene
from training import proposer
from training.loop import Run
from training.store import SceneStore

SMALL = {"img_size": 128, "width": 32, "detail": 16, "outline": 8, "body": "regnetx_002"}


def test_every_thing_is_deepest_in_its_middle_and_knows_its_box() -> None:
    labels = np.zeros((96, 96), np.uint8)
    labels[8:72, 8:72] = 1
    labels[82:90, 82:90] = 2  # a cell's worth, at a corner of four
    depths, weight, *sides = proposer.targets(labels)
    assert depths.shape == weight.shape == (12, 12)
    assert depths[0].max() == depths[:, 0].max() == 0
    row, column = divmod(int(depths[:9, :9].argmax()), 9)
    assert abs(row - 4.5) <= 1 >= abs(column - 4.5)
    assert depths[10:, 10:].max() == depths[:9, :9].max() == 1
    assert weight[0, 0] == weight[5, 5] == 1 < weight[10, 10] <= 8
    assert proposer.targets(np.zeros((96, 96), np.uint8))[0].max() == 0
    boxes = boxes_of(torch.from_numpy(np.stack(sides))[None])[0]
    assert boxes[2, 3].tolist() == [1, 1, 9, 9]
    assert boxes[10, 10].tolist() == [82 / 8, 82 / 8, 90 / 8, 90 / 8]


def test_a_head_learns_and_the_segmenter_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = build_pocket_sam(**SMALL)
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    device = torch.device("cpu")
    scenes = proposer.EmbeddedScenes(tmp_path, cast("SceneStore", Scenes()), 30)
    scenes.prepare(sam, device)
    unseen = proposer.embed(sam, [scene(seed) for seed in range(40, 44)], device)
    head = proposer.train_proposer(Run(tmp_path, 60, 4, device, 0), scenes, sam)
    assert isinstance(head, ProposalHead)
    for name, value in sam.state_dict().items():
        assert torch.equal(value, before[name])
    hit = proposer.hits(head, unseen, device)
    assert set(hit) == {"box", "hit", "asked"}
    assert hit["hit"] >= 0.5
    sam.proposer = head
    built = build_pocket_sam(**SMALL, proposer=proposer.architecture(sam))
    built.load_state_dict(sam.state_dict())
    assert (tmp_path / "proposer.ckpt").is_file()
    again = proposer.EmbeddedScenes(tmp_path, cast("SceneStore", Scenes()), 30)
    again.prepare(sam, device)  # a head changes no embedding
    assert again[7].tobytes() == scenes[7].tobytes()


def test_iou_of_pairs_of_boxes() -> None:
    some = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    others = torch.tensor([[1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
    assert proposer.paired_iou(some, others).tolist() == pytest.approx([1 / 3, 0])
