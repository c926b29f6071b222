import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regionsearch.errors import Kind, RegionSearchError
from services.embedder.backends import load_backend
from services.embedder.backends.base import Backend
from services.embedder.backends.onnx_tower import OnnxTower
from services.embedder.backends.open_clip import OpenClipBackend
from services.embedder.service import find_model
from training.graph import write_graph

CPU = torch.device("cpu")


def runs_in_onnx(backend: Backend) -> bool:
    assert isinstance(backend, OpenClipBackend)
    return isinstance(backend._model.visual, OnnxTower)


def test_the_bundled_graph_gives_the_vectors_of_the_bundled_weights() -> None:
    files = find_model("pocket")
    graph = load_backend(files, CPU, "fp32", False)
    torch_only = load_backend(replace(files, graph=None), CPU, "fp32", False)
    assert runs_in_onnx(graph)
    assert not runs_in_onnx(torch_only)
    for count in (1, 5):
        crops = torch.randn(count, 3, graph.size, graph.size)
        torch.testing.assert_close(graph.embed_crops(crops), torch_only.embed_crops(crops), rtol=0, atol=2e-6)


def test_a_tower_in_another_precision_stays_in_torch() -> None:
    assert not runs_in_onnx(load_backend(find_model("pocket"), CPU, "bf16", False))


def test_a_damaged_graph_is_refused_and_a_missing_one_left_out(tmp_path: Path) -> None:
    graph = find_model("pocket").graph
    assert graph is not None
    for file in graph.parent.glob("embedder.*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "embedder.onnx").write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(RegionSearchError, match=r"embedder\.onnx is not the one that") as caught:
        find_model(str(tmp_path))
    assert caught.value.kind is Kind.DATA_LOSS
    (tmp_path / "embedder.onnx").unlink()
    assert find_model(str(tmp_path)).graph is None


@pytest.mark.slow  # the export alone takes seconds
def test_a_written_graph_is_served(manifest: Path, tmp_path: Path) -> None:
    for file in manifest.parent.iterdir():
        shutil.copy(file, tmp_path)
    write_graph(tmp_path)
    files = find_model(str(tmp_path))
    assert files.graph == tmp_path / "embedder.onnx"
    assert str(Path.cwd()).encode() not in files.graph.read_bytes()
    described = json.loads((tmp_path / "embedder.json").read_text())
    assert described.keys() == {*json.loads(manifest.read_text()), "graph_sha256"}
    backend = load_backend(files, CPU, "fp32", False)
    expected = load_backend(replace(files, graph=None), CPU, "fp32", False)
    assert runs_in_onnx(backend)
    crops = torch.randn(3, 3, backend.size, backend.size)
    torch.testing.assert_close(backend.embed_crops(crops), expected.embed_crops(crops), rtol=0, atol=2e-6)
