"""Models that are given as a folder, and what is said when something of them is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from regionsearch.errors import Kind, RegionSearchError
from services.embedder.backends import load_backend
from services.embedder.backends.open_clip import build
from services.embedder.service import find_model
from tests.embedder.conftest import CONFIG

PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


def write(folder: Path, *files: str, **changes: Any) -> None:
    """A folder as open_clip's `push_to_hf_hub` writes it."""
    described = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS} | changes
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    for file in files:
        state = build(CONFIG).state_dict()
        if file.endswith(".safetensors"):
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / file)
        else:
            torch.save(
                {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, folder / file
            )


def failure(model: Path) -> RegionSearchError:
    with pytest.raises(RegionSearchError) as caught:
        load_backend(find_model(str(model)), torch.device("cpu"), "fp32", False)
    return caught.value


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "mine.safetensors", "epoch_3.pt"])
def test_a_folder_says_how_its_weights_are_to_be_used(file: str, tmp_path: Path) -> None:
    write(tmp_path, file)
    backend = load_backend(find_model(str(tmp_path)), torch.device("cpu"), "fp32", False)
    assert (backend.mean, backend.interpolation, backend.resize_mode) == ((0.5,) * 3, "bilinear", "squash")
    assert backend.files.variant == tmp_path.name
    again = find_model(str(tmp_path / file))
    assert (again.digest, again.preprocess) == (backend.files.digest, backend.files.preprocess)


def test_a_folder_with_several_weights_takes_the_usual_name_or_asks(tmp_path: Path) -> None:
    write(tmp_path, "a.pt", "b.pt")
    assert "holds a.pt, b.pt; give the path of one" in failure(tmp_path).message
    write(tmp_path, "open_clip_model.safetensors")
    assert find_model(str(tmp_path)).weights == tmp_path / "open_clip_model.safetensors"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        # QuickGELU and another mean: a wrong guess would give wrong vectors without a word.
        ("ViT-B-16", "differ in preprocessing or activation; say which ones these are: ViT-B-16:openai"),
        ("ViT-B-16:mine", "ViT-B-16 has no weights 'mine'; there are openai"),
        ("hf-hub:timm/ViT-B-16-SigLIP", "services never reach the network: download"),
        ("ViT-Z-1", "'ViT-Z-1' is not a model"),
    ],
)
def test_what_a_name_leaves_open_is_refused(model: str, message: str) -> None:
    with pytest.raises(RegionSearchError, match=message) as caught:
        find_model(model)
    assert (caught.value.kind, caught.value.field) == (Kind.INVALID_ARGUMENT, "model")


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    assert "open_clip_config.json is not there" in failure(tmp_path).message
    assert failure(tmp_path / "nowhere.safetensors").kind is Kind.NOT_FOUND
    write(tmp_path)
    assert "holds none" in failure(tmp_path).message
    write(tmp_path, "w.safetensors", model_cfg={"embed_dim": 8})
    assert "is not a configuration of open_clip's" in failure(tmp_path).message
    write(tmp_path, model_cfg=CONFIG | {"embed_dim": 24})
    error = failure(tmp_path)
    assert error.kind is Kind.DATA_LOSS
    assert "w.safetensors does not hold the weights" in error.message
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    assert failure(tmp_path).kind is Kind.DATA_LOSS


@pytest.mark.parametrize("model", ["ViT-B-16-SigLIP", "xlm-roberta-base-ViT-B-32"])
def test_a_tokenizer_of_the_hub_needs_its_package_and_its_files(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the model is built, which would take long."""
    for name in ("HF_HUB_CACHE", "REGIONSEARCH_MODELS_DIR"):
        monkeypatch.setenv(name, str(tmp_path))

    def refusal() -> RegionSearchError:
        with pytest.raises(RegionSearchError) as caught:
            load_backend(find_model(model, random_weights=True), torch.device("cpu"), "fp32", False)
        return caught.value

    pytest.importorskip("transformers")
    missing = refusal()
    assert missing.kind is Kind.NOT_FOUND
    assert "regionsearch models pull open_clip:" in missing.message
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert refusal().kind is Kind.FAILED_PRECONDITION
    assert "pip install 'regionsearch[hf]'" in refusal().message
