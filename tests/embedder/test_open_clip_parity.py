"""Every family of open_clip gives the vectors that open_clip's own preprocessing and encoders give."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.embedder.open_clip_parity import LEAST, ROOT, families, parity, write_tokenizer

# One for each class of towers, way of preparing images and kind of tokenizer; docs/models.md has them all.
REPRESENTATIVES = [
    ("ViT-B-32", "laion2b_s34b_b79k"),
    ("ViT-B-32", "openai"),
    ("RN50", "openai"),
    ("ViT-H-14-378", "dfn5b"),
    ("MobileCLIP2-S0", "dfndr2b"),
    ("PE-Core-T-16-384", "meta"),
    ("coca_ViT-B-32", "laion2b_s13b_b90k"),
    ("ViT-L-14-CLIPA", "datacomp1b"),
    ("ViT-B-32-SigLIP2-256", "webli"),
    ("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k"),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a small tokenizer."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize(("name", "tag"), REPRESENTATIVES, ids=map(":".join, REPRESENTATIVES))
def test_a_model_answers_as_open_clip_does(name: str, tag: str, hub: Path, tmp_path: Path) -> None:
    assert min(parity(name, tag, hub, tmp_path)) >= LEAST


def test_the_page_of_models_compares_all_weights() -> None:
    """It was written with the open_clip that is installed; `make docs/models.md` renews it."""
    page = (ROOT / "docs" / "models.md").read_text()
    rows = {tuple(line.split(" | ")[:2]): line for line in page.splitlines() if line.startswith("| `")}
    for family in families():
        row = rows.get(family.cells(), "not in docs/models.md: run make docs/models.md")
        assert row.endswith("| same |"), f"{family.name}: {row}"
