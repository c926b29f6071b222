from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models.catalog import WEIGHTS
from regionsearch.models.store import pocket_dir
from services.runtime.batch import BatchSettings
from services.segmenter import service
from services.segmenter.backends import FAMILIES, load_backend
from services.segmenter.backends.base import ModelFiles
from services.segmenter.backends.hugging_face import FAMILY_OF_TYPE, load_pretrained
from services.segmenter.backends.refiner import Refiner
from services.segmenter.backends.sam import SamBackend
from services.segmenter.backends.sam2 import build as build_sam2
from services.segmenter.loading import CHECKPOINTS, FOLDERS, find_model
from services.segmenter.options import EverythingOptions, Mode
from services.segmenter.service import load
from services.segmenter.settings import EverythingSettings, SegmenterSettings


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
    by_path_only = {"fastsam"}
    by_folder = set(FAMILY_OF_TYPE.values())
    assert {family for family, _ in CHECKPOINTS.values()} == set(FAMILIES) - by_path_only - by_folder
    assert set(FOLDERS) <= set(WEIGHTS)


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


@pytest.mark.parametrize(("setting", "side"), [({}, 16), ({"points_per_side": 5}, 5)])
def test_a_model_that_names_no_grid_gets_a_small_one_on_a_cpu(
    untrained: SamBackend, monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any], side: int
) -> None:
    files = ModelFiles("sam", "untrained", Path("untrained.pth"), "0" * 64, {}, {})
    monkeypatch.setattr(service, "find_model", lambda model: files)
    monkeypatch.setattr(service, "load_backend", lambda *args: untrained)
    _, defaults = load(SegmenterSettings(everything=EverythingSettings(**setting)))
    assert defaults.everything == EverythingOptions(side)


def test_proposals_cannot_be_the_default_of_a_model_without_a_proposer(
    untrained: SamBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "load_backend", lambda *args: untrained)
    with pytest.raises(RegionSearchError, match="no proposer"):
        load(SegmenterSettings(everything=EverythingSettings(mode=Mode.PROPOSALS)))


def test_batches_on_a_gpu_are_as_large_as_the_model_decodes_unless_set() -> None:
    on_a_gpu: Any = SimpleNamespace(device=torch.device("cuda"), decode_batch=256)
    on_a_cpu: Any = SimpleNamespace(device=torch.device("cpu"), decode_batch=8)
    unset, small = SegmenterSettings(), SegmenterSettings(batching=BatchSettings(max_batch=4))
    assert service.batching_for(unset, on_a_gpu).max_batch == 256
    assert service.batching_for(unset, on_a_cpu).max_batch == 32
    assert service.batching_for(small, on_a_gpu).max_batch == 4


def test_warmup_runs_the_refiner(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    refine = Refiner.refine

    def watched(self: Refiner, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        shapes.append([tuple(maps.shape) for maps in prepared])
        return refine(self, prepared)

    monkeypatch.setattr(Refiner, "refine", watched)
    load(SegmenterSettings())
    assert shapes == [[(9, 128, 128)], [(9, 128, 128)] * 2]  # a compiled one has a graph for each


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


@pytest.fixture
def pocket_weights() -> dict[str, Tensor]:
    return load_file(pocket_dir() / "segmenter.safetensors")


def pocket_files(path: Path) -> ModelFiles:
    return replace(find_model("pocket"), weights=path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"model": weights},
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {"model": {f"module.{name}": tensor for name, tensor in weights.items()}},
    ],
    ids=["model", "state_dict", "parallel", "both"],
)
def test_a_checkpoint_of_a_training_loop_is_unwrapped(
    wrap: Callable[[dict[str, Tensor]], object], tmp_path: Path, pocket_weights: dict[str, Tensor]
) -> None:
    torch.save(wrap(pocket_weights), tmp_path / "mine.pt")
    backend = load_backend(pocket_files(tmp_path / "mine.pt"), "cpu", "fp32")
    name = "mask_decoder.iou_token.weight"
    assert cast("SamBackend", backend).model.state_dict()[name].equal(pocket_weights[name].float())


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(2)], {}, {"model": {"epoch": 3}}])
def test_a_file_without_tensors_by_name_is_told_in_a_sentence(content: object, tmp_path: Path) -> None:
    path = tmp_path / "sam_vit_b.pth"
    torch.save(content, path)
    error = failure(str(path))
    assert error.kind is Kind.DATA_LOSS
    assert "not tensors by name" in error.message


def encoder_of(width: int) -> dict[str, Tensor]:
    return {"image_encoder.pos_embed": torch.zeros(1, 64, 64, width)}


def test_a_checkpoint_of_another_size_is_named(tmp_path: Path) -> None:
    save_file(encoder_of(1024), tmp_path / "sam_vit_b.safetensors")
    assert "it holds those of sam_vit_l" in failure(str(tmp_path / "sam_vit_b.safetensors")).message
    save_file({"vision_encoder.pos_embed": torch.zeros(1)}, tmp_path / "sam_vit_b.safetensors")
    assert "transformers package" in failure(str(tmp_path / "sam_vit_b.safetensors")).message
    torch.save({"backbone.weight": torch.zeros(1)}, tmp_path / "detector.pth")
    assert (
        "not hold the weights of a segmenter that is known" in failure(str(tmp_path / "detector.pth")).message
    )


def sam2(width: int, last_block: int) -> dict[str, Tensor]:
    trunk = "image_encoder.trunk."
    return {
        f"{trunk}patch_embed.proj.weight": torch.zeros(width, 3, 7, 7),
        f"{trunk}blocks.{last_block}.norm1.weight": torch.zeros(width),
    }


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        (encoder_of(768), "sam_vit_b"),
        (encoder_of(1280), "sam_vit_h"),
        (sam2(96, 11), "sam2.1_hiera_tiny"),
        (sam2(96, 15), "sam2.1_hiera_small"),
        (sam2(112, 23), "sam2.1_hiera_base_plus"),
        (sam2(144, 47), "sam2.1_hiera_large"),
    ],
)
def test_an_architecture_is_recognised_by_its_tensors(
    weights: dict[str, Tensor], name: str, tmp_path: Path
) -> None:
    save_file(weights, tmp_path / "finetuned.safetensors")
    files = find_model(str(tmp_path / "finetuned.safetensors"))
    assert (files.family, files.variant) == CHECKPOINTS[name]


def test_a_folder_stands_for_what_is_in_it(tmp_path: Path) -> None:
    with_manifest, with_weights = tmp_path / "a", tmp_path / "b"
    with_manifest.mkdir()
    with_weights.mkdir()
    copy_pocket(with_manifest)
    assert find_model(str(with_manifest)).variant == "pocket"
    assert "holds none" in failure(str(with_weights)).message
    save_file(encoder_of(768), with_weights / "model.safetensors")
    assert find_model(str(with_weights)).variant == "vit_b"
    save_file(encoder_of(768), with_weights / "older.safetensors")
    assert "model.safetensors, older.safetensors; give the path of one" in failure(str(with_weights)).message


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


@pytest.mark.parametrize(
    ("module", "class_name", "package"),
    [
        ("sam2.build_sam", "", r"SAM2_BUILD_CUDA=0 .*regionsearch\[sam2\]"),
        ("transformers", "Sam3Model", r"regionsearch\[hf\]"),
    ],
)
def test_a_package_that_is_not_installed_is_named(
    module: str, class_name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    files = ModelFiles("sam3", "sam3", tmp_path / "model.safetensors", "", {}, {}, folder=tmp_path)
    with pytest.raises(RegionSearchError, match=package) as caught:
        load_pretrained(class_name, files) if class_name else build_sam2("sam2.1_hiera_t")
    assert caught.value.kind is Kind.FAILED_PRECONDITION
