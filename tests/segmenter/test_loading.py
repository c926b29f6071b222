from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models import pocket_dir
from services.segmenter.backends import FAMILIES, load_backend
from services.segmenter.backends.refiner import Refiner
from services.segmenter.loading import CHECKPOINTS, find_model
from services.segmenter.service import load
from services.segmenter.settings import SegmenterSettings


def failure(model: str) -> RegionSearchError:
    with pytest.raises(RegionSearchError) as caught:
        load_backend(find_model(model), "cpu", "fp32")
    assert caught.value.field == "model"
    return caught.value


def copy_pocket(folder: Path) -> Path:
    for file in ("segmenter.json", "segmenter.safetensors"):
        (folder / file).write_bytes((pocket_dir() / file).read_bytes())
    return folder / "segmenter.json"


def test_every_checkpoint_name_belongs_to_a_model_family() -> None:
    assert {family for family, _ in CHECKPOINTS.values()} == set(FAMILIES)


def test_a_segmenter_loads_from_a_manifest_in_any_folder(tmp_path: Path) -> None:
    manifest = copy_pocket(tmp_path)
    files = find_model(str(manifest))
    backend = load_backend(files, "cpu", "fp32")
    assert backend.identity.variant == "pocket"
    assert backend.identity.digest == json.loads(manifest.read_text())["sha256"]


@pytest.mark.parametrize(("setting", "zooms"), [(None, True), (True, True), (False, False)])
def test_the_zoom_setting_overrides_the_default_of_the_model(setting: bool | None, zooms: bool) -> None:
    _, defaults = load(SegmenterSettings(zoom=setting))
    assert defaults.zoom is zooms


def test_warmup_runs_the_refiner(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    refine = Refiner.refine

    def watched(self: Refiner, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        shapes.append([tuple(maps.shape) for maps in prepared])
        return refine(self, prepared)

    monkeypatch.setattr(Refiner, "refine", watched)
    load(SegmenterSettings())
    assert shapes == [[(9, 128, 128)]]


def test_missing_weights_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONSEARCH_MODELS_DIR", str(tmp_path))
    error = failure("sam_vit_b")
    assert error.kind is Kind.NOT_FOUND
    assert "regionsearch models pull" in error.message
    assert failure(str(tmp_path / "sam_vit_h.pth")).kind is Kind.NOT_FOUND


def test_unknown_names_are_refused() -> None:
    error = failure("sam_vit_z")
    assert error.kind is Kind.INVALID_ARGUMENT
    assert "sam_vit_b" in error.message


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    manifest = copy_pocket(tmp_path)
    weights = manifest.with_suffix(".safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert failure(str(manifest)).kind is Kind.DATA_LOSS


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my_sam_vit_b.pth"
    torch.save({"image_encoder.pos_embed": torch.zeros(2)}, path)
    error = failure(str(path))
    assert error.kind is Kind.DATA_LOSS
    assert str(path) in error.message


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sam_vit_b.pth"
    path.write_bytes(content)
    assert failure(str(path)).kind is Kind.DATA_LOSS


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    path = tmp_path / "sam_vit_b.pth"
    torch.save({"image_encoder": Trap()}, path)
    assert failure(str(path)).kind is Kind.DATA_LOSS
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"family": "sam"}'])
def test_an_invalid_segmenter_manifest_is_named(tmp_path: Path, content: str) -> None:
    manifest = copy_pocket(tmp_path)
    manifest.write_text(content)
    error = failure(str(manifest))
    assert error.kind is Kind.DATA_LOSS
    assert "segmenter.json" in error.message
