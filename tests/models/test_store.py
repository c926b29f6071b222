"""Where weights are looked for, and what is said when they are missing or damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models import store
from regionsearch.models.catalog import PROFILES, WEIGHTS, Weights, profile
from regionsearch.models.store import POCKET, file_digest, find, models_dir, pocket_dir, verify, verify_pocket


def put(folder: Path, data: bytes, sha256: str | None = None) -> Weights:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "w.bin").write_bytes(data)
    return Weights("test_model", "w.bin", "http://127.0.0.1:9/w.bin", sha256, "MIT")


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGIONSEARCH_MODELS_DIR", str(tmp_path))
    assert models_dir() == tmp_path
    monkeypatch.delenv("REGIONSEARCH_MODELS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_dir() == tmp_path / "regionsearch" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_dir() == tmp_path / ".cache" / "regionsearch" / "models"


def test_missing_weights_say_how_to_get_them(models: Path) -> None:
    with pytest.raises(RegionSearchError, match="regionsearch models pull sam_vit_b") as caught:
        find(WEIGHTS["sam_vit_b"])
    assert caught.value.kind is Kind.NOT_FOUND
    assert str(models) in caught.value.message


def test_verify_knows_the_published_digest(models: Path) -> None:
    weights = put(models, b"weights")
    right = Weights(weights.model, weights.file, weights.url, file_digest(models / "w.bin"), "MIT")
    assert verify(right) == models / "w.bin"
    (models / "w.bin").write_bytes(b"weighty")
    with pytest.raises(RegionSearchError, match=re.escape("w.bin")) as caught:
        verify(right)
    assert caught.value.kind is Kind.DATA_LOSS


def test_verify_knows_the_digest_of_the_download(models: Path) -> None:
    weights = put(models, b"weights")
    (models / "w.bin.sha256").write_text(f"{file_digest(models / 'w.bin')}  w.bin\n")
    assert verify(weights) == models / "w.bin"
    (models / "w.bin").write_bytes(b"weighty")
    with pytest.raises(RegionSearchError) as caught:
        verify(weights)
    assert caught.value.kind is Kind.DATA_LOSS


@pytest.mark.parametrize("part", POCKET)
def test_the_bundled_weights_are_what_their_manifests_say(part: str) -> None:
    assert verify_pocket(part) == pocket_dir() / f"{part}.safetensors"


def test_damaged_bundled_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "pocket_dir", lambda: tmp_path)
    with pytest.raises(RegionSearchError) as missing:
        verify_pocket("segmenter")
    assert missing.value.kind is Kind.NOT_FOUND
    (tmp_path / "segmenter.safetensors").write_bytes(b"x")
    (tmp_path / "segmenter.json").write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(RegionSearchError, match=re.escape("segmenter.safetensors")) as damaged:
        verify_pocket("segmenter")
    assert damaged.value.kind is Kind.DATA_LOSS


def test_profiles_are_made_of_known_models() -> None:
    assert PROFILES["pocket"].weights == ()
    for name in ("fast", "base", "large"):
        assert [weights.model for weights in profile(name).weights] == [
            profile(name).segmenter,
            profile(name).embedder,
        ]
    with pytest.raises(RegionSearchError, match="pocket, fast, base, large"):
        profile("huge")


def test_weights_are_well_formed() -> None:
    for model, weights in WEIGHTS.items():
        assert weights.model == model
        assert weights.url.startswith("https://")
        assert weights.sha256 is None or re.fullmatch("[0-9a-f]{64}", weights.sha256)
        assert Path(weights.file).name == weights.file
    assert len({weights.file for weights in WEIGHTS.values()}) == len(WEIGHTS)
