from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from services.segmenter.backends.pocket import build_pocket_sam
from tests.stack import ROOT
from tests.training.test_scenes import needs_font
from training.decoder import decode_masks
from training.export import fit_half
from training.loop import AveragedWeights, build_adamw, build_muon, learning_rate, train


def test_the_rate_warms_up_stays_and_decays() -> None:
    rates = [learning_rate(step, 4000, 1e-3) for step in range(4000)]
    assert rates[0] < 1e-5
    assert rates[200:1600] == [1e-3] * 1400
    assert all(a > b for a, b in itertools.pairwise(rates[1601:]))
    assert 0 < rates[-1] < 1e-6


def test_a_longer_run_shares_its_flat_part_with_a_shorter_one() -> None:
    assert [learning_rate(s, 4000, 1.0) for s in range(1600)] == [
        learning_rate(s, 8000, 1.0) for s in range(1600)
    ]


def test_the_average_follows_weights_and_statistics() -> None:
    module = nn.BatchNorm1d(2)
    averaged = AveragedWeights(module, decay=0.5)
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.running_mean.fill_(4.0)
    averaged.update(module, 100)
    assert averaged.module.weight.tolist() == [2.0, 2.0]
    assert averaged.module.running_mean.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("build", [build_adamw, lambda module, rate: build_muon(module, rate, [])])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, build: Callable[[nn.Module, float], torch.optim.Optimizer]
) -> None:
    def run(name: str, crash_at: int | None = None) -> nn.Module:
        torch.manual_seed(1)
        module = nn.Linear(6, 5)

        def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            if step == crash_at:
                raise KeyboardInterrupt
            x = torch.from_numpy(np.random.default_rng(step).normal(size=(4, 6))).float()
            return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

        optimizer = build(module, 0.1)
        return train(module, loss, optimizer, steps=40, peak=0.1, checkpoint=tmp_path / name, save_every=10)

    with pytest.raises(KeyboardInterrupt):
        run("broken", crash_at=25)
    assert torch.load(tmp_path / "broken", weights_only=True)["step"] == 20
    resumed, whole = run("broken"), run("whole")
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)


def test_muon_turns_matrices_and_leaves_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"matrix": nn.Linear(8, 8), "readout": nn.Linear(8, 8)})
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer = build_muon(module, 0.1, module["readout"].parameters())
    gradient = torch.diag(torch.logspace(0, -1, 8))
    for parameter in module.parameters():
        parameter.grad = gradient.clone() if parameter.ndim > 1 else torch.ones(8)
    optimizer.step()

    def moved(name: str) -> torch.Tensor:
        return (before[name] * (1 - 0.1 * 0.02 * ("weight" in name)) - module.get_parameter(name)).detach()

    # Muon moves every direction of the gradient about as far, AdamW every element, however weak.
    directions = torch.linalg.svdvals(moved("matrix.weight"))
    assert directions.min() > 0.5 * directions.max() > 0
    elements = moved("readout.weight").diagonal()
    assert elements.min() > 0.99 * elements.max() > 0
    assert torch.linalg.matrix_norm(moved("readout.weight") - elements.diag()) < 1e-4
    assert (moved("matrix.bias") == moved("matrix.bias")[0]).all()


def test_weights_beyond_half_precision_are_brought_within_it() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    norm = block[1]
    norm.running_mean.copy_(torch.tensor([0.0, 300.0, -9e3, 2.0]))
    norm.running_var.copy_(torch.tensor([1.0, 128_507.0, 1e9, 3e4]))
    image = 1000 * torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before = block(image)
        fit_half(block)
        after = block(image)
    torch.testing.assert_close(after, before)
    assert norm.running_var.max() <= 2**15
    assert norm.running_var[[0, 3]].tolist() == [1.0, 3e4]


@pytest.mark.parametrize("refined", [False, True])
def test_the_shared_decoder_equals_the_published_one(refined: bool) -> None:
    torch.manual_seed(0)
    sam = build_pocket_sam(body="regnetx_002", img_size=256, width=32, heads=4, mlp_width=64)
    embeddings = torch.randn(2, 32, 32, 32)
    points = torch.rand(6, 2, 2) * 256
    labels = torch.tensor([[1.0, 0.0]]).expand(6, -1)
    earlier = torch.randn(6, 1, 128, 128) if refined else None
    sparse, dense = sam.prompt_encoder((points, labels), None, earlier)
    with torch.no_grad():
        masks, iou = decode_masks(sam, embeddings, sparse, dense if refined else None)
        for i in range(2):
            some = slice(3 * i, 3 * i + 3)
            place = sam.prompt_encoder.get_dense_pe()
            stock = sam.mask_decoder.predict_masks(embeddings[i : i + 1], place, sparse[some], dense[some])
            torch.testing.assert_close(masks[some], stock[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(iou[some], stock[1], atol=1e-5, rtol=1e-4)


TWICE = """
import json, shutil, sys
from training.__main__ import app
for folder, *arguments in json.loads(sys.argv[1]):
    app(arguments, standalone_mode=False)
    shutil.copytree("pocket", folder)
    print("END OF RUN")
"""


@needs_font
@pytest.mark.timeout(600)
def test_the_command_trains_measures_resumes_and_exports(tmp_path: Path) -> None:
    """Both runs in one process of its own, which imports torch and reads the icons once."""
    options = ["--scenes", "6", "--batch", "2", "--threads", "1", "--work", "work", "--output", "pocket"]
    runs = [
        ["first", "--steps", "2", "--held-out", "1", *options],
        ["second", "--steps", "3", "--held-out", "0", *options],
    ]
    done = subprocess.run(
        [sys.executable, "-c", TWICE, json.dumps(runs)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "200", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, again, _ = done.stdout.split("END OF RUN")
    assert "resuming" not in first
    for model in ("segmenter", "embedder", "refiner", "proposer"):
        assert f"resuming {model}.ckpt at step 2" in again
    report = json.loads((tmp_path / "work/evaluation/metrics.json").read_text())
    assert 0 <= report["metrics"]["click.miou"]["value"] <= 1
    before, after = (
        json.loads((tmp_path / name / "segmenter.json").read_text()) for name in ("first", "second")
    )
    assert before["sha256"] != after["sha256"]
    for part in ("refiner", "proposer"):
        assert after["architecture"][part] == before["architecture"][part]
    files = sorted(file.name for file in (tmp_path / "second").iterdir())
    assert files == ["embedder.json", "embedder.safetensors", "segmenter.json", "segmenter.safetensors"]
