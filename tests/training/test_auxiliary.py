from __future__ import annotations

import numpy as np
import pytest
import torch

from training.auxiliary import FINE, AuxiliaryHead, _box_distances, mask_loss, shrink

GRID, SIDE = 8, 64


@pytest.fixture
def labels() -> torch.Tensor:
    """A scene with two things that touch, and an empty one."""
    planes = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    planes[0, 8:40, 8:32] = 1
    planes[0, 16:56, 32:60] = 2
    return planes


def test_a_right_mask_costs_nothing_and_every_error_something() -> None:
    truth = torch.zeros(16, 16)
    truth[4:12, 4:12] = 1
    right = mask_loss(40 * truth - 20, truth)
    larger = torch.zeros(16, 16)
    larger[2:12, 4:12] = 1
    assert right < 1e-3
    assert right < mask_loss(40 * larger - 20, truth) < mask_loss(20 - 40 * truth, truth)


def test_an_empty_target_rewards_an_empty_mask() -> None:
    empty = torch.zeros(16, 16)
    assert mask_loss(empty - 20, empty) < 1e-3 < mask_loss(empty + 20, empty)


def test_shrinking_keeps_the_share_that_is_covered() -> None:
    plane = torch.zeros(1, 1, 8, 8)
    plane[..., :3, :2] = 1
    assert shrink(plane, 4)[0, 0].tolist() == [[1, 0, 0, 0], [0.5, 0, 0, 0], [0] * 4, [0] * 4]


def test_distances_reach_from_a_cell_to_the_box_of_its_thing(labels: torch.Tensor) -> None:
    distances, inside = _box_distances(labels, GRID)
    assert not inside[1].any()
    assert inside[0, 1, 1]
    # The cell's middle is (12, 12); the box goes from (8, 8) to (32, 40).
    assert (distances[0, 1, 1] * 64).tolist() == [4, 4, 20, 28]
    assert (distances[0, 0, 0] == 0).all()


def test_an_embedding_can_be_found_that_answers_everything(labels: torch.Tensor) -> None:
    """Each part must have a gradient that leads there."""
    torch.manual_seed(0)
    head = AuxiliaryHead(width=32, outline=8, classes=5)
    embeddings = torch.nn.Parameter(0.1 * torch.randn(2, 32, GRID, GRID))
    outlines = torch.nn.Parameter(0.1 * torch.randn(2, 8, FINE * GRID, FINE * GRID))
    names = np.full((2, 256), -1)
    names[0, 1:3] = 3, 1
    optimizer = torch.optim.Adam([embeddings, outlines, *head.parameters()], lr=0.02)
    history = []
    for step in range(150):
        loss, parts = head(embeddings, outlines, labels, names, np.random.default_rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(parts)
    assert set(parts) == {"thing", "fine", "box", "name", "same", "fine_same"}
    for part, value in parts.items():
        assert value < 0.3 * history[0][part], part


def test_scenes_without_objects_are_accepted() -> None:
    head = AuxiliaryHead(width=32, outline=8, classes=5)
    empty = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    embeddings = torch.randn(2, 32, GRID, GRID, requires_grad=True)
    outlines = torch.randn(2, 8, FINE * GRID, FINE * GRID)
    loss, _ = head(embeddings, outlines, empty, np.full((2, 256), -1), np.random.default_rng(0))
    loss.backward()
    assert torch.isfinite(loss)
    assert embeddings.grad is not None and torch.isfinite(embeddings.grad).all()
