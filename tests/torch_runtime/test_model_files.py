from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.torch_runtime.model_files import read_manifest, verified_digest


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "Expecting"), ("[]", "not a JSON object"), ('{"family": 1}', "sha256")]
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "embedder.json"
    path.write_text(content)
    with pytest.raises(RegionSearchError, match=reason) as caught:
        read_manifest(path, "embedder", ("family", "sha256"))
    assert caught.value.kind is Kind.DATA_LOSS
    assert str(path) in caught.value.message


def test_weights_must_be_those_of_their_manifest(tmp_path: Path) -> None:
    weights, manifest = tmp_path / "embedder.safetensors", tmp_path / "embedder.json"
    with pytest.raises(RegionSearchError, match=r"next to embedder\.json") as caught:
        verified_digest(weights, manifest, "")
    assert caught.value.kind is Kind.NOT_FOUND
    weights.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert verified_digest(weights, manifest, digest) == digest
    with pytest.raises(RegionSearchError, match="restore both files") as caught:
        verified_digest(weights, manifest, "0" * 64)
    assert caught.value.kind is Kind.DATA_LOSS
